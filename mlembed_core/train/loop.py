"""The training run, from a network and a cache to a trained network and its curves.

1. open the schedule of batches, the optimizer and, where a killed run left it, its state;
2. for each step: draw a batch, encode this process's share, compute the loss over exits and dims, step;
3. now and then: tell the log, look at held-out rows, save the state; leave when told to;
4. at the end, where asked: merge the last checkpoints, if held-out rows are better off with that.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import nn

from mlembed_core.config.axes import Axes
from mlembed_core.config.base import Precision
from mlembed_core.config.settings import SettingParams
from mlembed_core.config.train import MergeParams, TrainParams
from mlembed_core.data.sampler import Batch, Sampler
from mlembed_core.data.store import TrainingCache
from mlembed_core.errors import ConfigError, TrainingInterruptedError
from mlembed_core.model.attention import choose_attention
from mlembed_core.model.network import Network
from mlembed_core.progress import Reporter
from mlembed_core.train import resume, sharding
from mlembed_core.train.distributed import agree
from mlembed_core.train.faults import FiniteGuard, naming_the_knobs
from mlembed_core.train.grad_cache import grad_cache_step
from mlembed_core.train.merge import merge
from mlembed_core.train.optimizer import learning_rate, make_optimizer
from mlembed_core.train.step import StepLoss, draw_rank, step_loss
from mlembed_core.train.teacher_vectors import TeacherVectors, place
from mlembed_core.train.tracking import loss_metrics, validation_metrics
from mlembed_core.train.validation import validate

TERM_COLUMNS = ("in_batch", "hard", "distillation", "self_distillation")
LOSS_COLUMNS = ("step", "source", "kind", "loss", *TERM_COLUMNS, "learning_rate", "grad_norm", "rank", "tokens")


@dataclass
class Curves:
    """What is known of a run, free of times.

    Attributes:
        steps: done so far.
        loss: a row per logged step that was not skipped.
        validation: a row per step, source, exit and dim.
        skipped: steps (from 0) that were left out, since their loss or gradient was not finite.
        merge: mean held-out losses of the last weights and of the merged ones; empty without a merge. The lower one is the model's.
    """

    steps: int = 0
    loss: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    merge: dict[str, float] = field(default_factory=dict)


def train(
    network: Network,
    cache: TrainingCache,
    *,
    axes: Axes,
    params: TrainParams,
    seed: int,
    accelerator: Accelerator,
    state_folder: Path,
    log: Callable[[int, Mapping[str, float]], None],
    setting: SettingParams | None = None,
    teacher: Network | TeacherVectors | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Curves:
    """Train ``network`` in place; where its weights are split over processes, the main one's alone is whole in the end.

    Args:
        axes: the dims, exits and ranks to train.
        accelerator: places the network and averages gradients over processes.
        state_folder: where the resume state lives, named by the fingerprint of everything that shapes the result.
        log: called on the main process with a step and its metrics.
        setting: where the loss's terms differ from ``params``; None: not at all.
        teacher: of ``setting.distillation``, frozen; or what it said of all texts.
        stop_requested: asked in each step, in every process; one that says yes stops them all.

    Raises:
        TrainingError: the loss or the gradient is not finite; names the step, source and rows.
        TrainingInterruptedError: told to stop; the state after the step is saved.
        MachineError: out of memory (names the parameters that help), or processes that resume from different states.
    """
    # 1. The schedule of batches, and the state that a killed run left.
    sampler = Sampler(
        cache.sources,
        batch_size=params.batch_size,
        batch_size_of=params.batch_size_of,
        weights=params.source_weights,
        seed=seed,
        num_steps=params.num_steps,
        num_epochs=params.num_epochs,
    )
    # Of a network that is split over the processes, the main one keeps the whole to return it in.
    trained = copy.deepcopy(network) if sharding.asked_for() and accelerator.is_main_process else network
    run = _Run(trained, cache, sampler, axes, params, seed, accelerator, state_folder, log, setting or SettingParams(), teacher)
    run.check_held_out_rows()
    first = run.open()

    pace = _Pace()
    with Reporter("training", sampler.num_steps, "steps", start=first, shown=accelerator.is_main_process) as reporter:
        for step in range(first, sampler.num_steps):
            # 2. One batch: states, loss, gradient, new weights.
            batch = sampler.batch(step)
            outcome = run.take_step(batch, step, stop_requested)
            pace.count(batch, outcome)

            # 3. What is said, looked at and kept.
            done, last = step + 1, step + 1 == sampler.num_steps
            if last or _due(done, params.log_every):
                run.note_loss(batch, outcome, done, tokens_per_second=pace.tokens_per_second)
            if last or _due(done, params.validate_every):
                run.note_validation(done)
            if outcome.stop or _due(done, params.checkpoint_every) or (last and params.checkpoint_every):
                run.save(done)
            if outcome.stop and not last:
                raise TrainingInterruptedError(
                    f"told to stop; the state after step {done} of {sampler.num_steps} is saved in {state_folder}"
                )
            reporter.advance(note=pace.note)
    # 4. One set of weights out of the last ones.
    if params.merge is not None:
        run.merge_checkpoints(params.merge)
    run.return_weights(network)
    return run.curves


@dataclass
class _Run:
    """What a training works on, and what it does with it; see :func:`train` for the fields."""

    network: Network
    cache: TrainingCache
    sampler: Sampler
    axes: Axes
    params: TrainParams
    seed: int
    accelerator: Accelerator
    state_folder: Path
    log: Callable[[int, Mapping[str, float]], None]
    setting: SettingParams
    teacher: Network | TeacherVectors | None

    def open(self) -> int:
        """Make the optimizer, take up the state that an earlier run left, place everything; the first step to do."""
        device, precision = self.accelerator.device, self.params.precision
        saved = resume.read_newest(self.state_folder, warn=self.accelerator.print)
        first = 0 if saved is None else saved.step
        agree(first, what="the step to go on from", device=device)
        self.curves = Curves()
        if saved is not None:
            self.curves = Curves(**saved.progress)
            self.network.load_state_dict(saved.weights)
            self.accelerator.print(f"resuming after step {first} of {self.sampler.num_steps}")
        choose_attention(self.network.backbone, device=device, precision=precision)
        self.network.checkpointing = self.params.activation_checkpointing
        if isinstance(self.teacher, Network):
            place(self.teacher, device=device, precision=precision)
        if sharding.asked_for():
            sharding.shard(self.network, device=device, precision=precision)
            self.model: nn.Module = self.network
        else:
            self.model = self.accelerator.prepare(self.network.to(device))
        optimizer = make_optimizer(self.network, self.params)
        if saved is not None:
            resume.restore_moments(optimizer, saved.moments)
        self.optimizer = self.accelerator.prepare(optimizer)
        self.model.train()
        self.guard = FiniteGuard(self.curves.skipped, allowed=self.params.max_skipped_steps, warn=self.accelerator.print)
        return first

    def take_step(self, batch: Batch, step: int, stop_requested: Callable[[], bool]) -> _Outcome:
        """One optimizer step, unless the gradient is not finite: that changes no weight."""
        rate = learning_rate(step, self.sampler.num_steps, self.params)
        with naming_the_knobs(self.params):
            result = self._loss_with_gradient(batch, step)
        norm = float(sharding.whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.params.max_grad_norm)))
        outcome = _agreed(self.accelerator, result, learning_rate=rate, grad_norm=norm, stop=stop_requested())
        self.curves.steps = step + 1
        if self.guard.admits(batch, step=step, loss=outcome.loss, norm=norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return outcome

    def _loss_with_gradient(self, batch: Batch, step: int) -> StepLoss:
        options: Any = {
            "step": step,
            "seed": self.seed,
            "axes": self.axes,
            "params": self.params,
            "setting": self.setting,
            "teacher": self.teacher,
        }
        backward = self.accelerator.backward
        if self.params.grad_cache_tokens is not None:
            return grad_cache_step(self.network, self.cache, self.sampler, batch, **options, backward=backward, autocast=self._autocast)
        with self._autocast():
            result = step_loss(self.model, self.cache, self.sampler, batch, **options)
        backward(result.terms.total)
        return result

    def note_loss(self, batch: Batch, outcome: _Outcome, done: int, *, tokens_per_second: float) -> None:
        """A row of the loss curve, and the log's; none for a step that was left out, whose loss is no number to draw."""
        if self.curves.skipped[-1:] == [done - 1]:
            return
        row = _loss_row(done, batch, outcome, mel_rank=draw_rank(self.axes, seed=self.seed, step=done - 1))
        self.curves.loss.append(row)
        self.log(done, loss_metrics(row) | {"tokens_per_second": tokens_per_second, "skipped_steps": len(self.curves.skipped)})

    def check_held_out_rows(self) -> None:
        """Raises ConfigError where a merge is asked for and nothing could judge it."""
        if self.params.merge is not None and not any(len(source.validation) > 1 for source in self.sampler.sources_in_use):
            raise ConfigError(
                "train.merge is kept only where it lowers the loss of held-out rows, but no source in use has two of them; raise "
                "cache.validation_fraction, or leave it out (null)"
            )

    def merge_checkpoints(self, params: MergeParams) -> None:
        """Take the merged weights where held-out rows lose less with them; the main process's checkpoints count.

        It is a function of the saved states, so a run that is killed meanwhile comes to the same end.
        """
        before = self._held_out_loss()
        own = {name: value.clone() for name, value in self.network.state_dict().items()}
        main = self.accelerator.is_main_process
        sharding.load_from_main(
            self.network, merge(resume.last_weights(self.state_folder, count=params.last), params.method) if main else {}
        )
        after = self._held_out_loss()
        agree(int(after < before), what="whether the merged weights are better", device=self.accelerator.device)
        if not after < before:
            self.network.load_state_dict(own)
        self.curves.merge = {"last": before, "merged": after}
        self.accelerator.print(f"merged the last {params.last} checkpoints: held-out loss {before:.4f} → {after:.4f}")

    def _held_out_loss(self) -> float:
        return fmean(row["loss"] for row in self._validate())

    def _validate(self) -> list[dict[str, Any]]:
        with self._autocast():
            return validate(self.network, self.cache, self.sampler.sources_in_use, axes=self.axes, temperature=self.params.temperature)

    def note_validation(self, done: int) -> None:
        """The loss of held-out rows of every source in use, at exits and dims."""
        rows = self._validate()
        self.curves.validation += [{"step": done, **row} for row in rows]
        for row in rows:
            self.log(done, validation_metrics(row))

    def save(self, done: int) -> None:
        """The resume state, written by the main process."""
        weights = sharding.whole_on_main(self.network.state_dict())
        moments = sharding.whole_on_main(resume.moments_of(cast("Any", self.optimizer).optimizer))
        if self.accelerator.is_main_process:
            state = resume.Saved(done, weights, moments, asdict(self.curves))
            resume.save(self.state_folder, state, kept=self.params.kept_checkpoints)

    def return_weights(self, network: Network) -> None:
        """Give the main process's ``network`` the weights of the one that was split over the processes."""
        if sharding.is_sharded(self.network):  # every process has to ask, not just the one that keeps the whole
            weights = sharding.whole_on_main(self.network.state_dict())
            if self.accelerator.is_main_process:
                network.load_state_dict(weights)

    def _autocast(self) -> Any:
        return torch.autocast(self.accelerator.device.type, dtype=torch.bfloat16, enabled=self.params.precision is Precision.BF16)


@dataclass(frozen=True)
class _Outcome:
    """What all processes know of a step, the same in each.

    Attributes:
        terms: summands of the loss, in the order of ``TERM_COLUMNS``.
        grad_norm: before clipping.
        num_tokens: encoded by all processes.
        stop: one of them was told to stop.
    """

    loss: float
    terms: tuple[float, ...]
    learning_rate: float
    grad_norm: float
    num_tokens: int
    stop: bool


def _agreed(accelerator: Accelerator, result: StepLoss, *, learning_rate: float, grad_norm: float, stop: bool) -> _Outcome:
    terms = result.terms
    summands = [getattr(terms, name).detach().double() for name in TERM_COLUMNS]
    others = [torch.tensor(float(value), dtype=torch.float64, device=terms.total.device) for value in (result.num_tokens, stop)]
    mean = accelerator.reduce(torch.stack([terms.total.detach().double(), *summands, *others]), reduction="mean")
    loss, *parts, tokens, stops = mean.tolist()
    return _Outcome(loss, tuple(parts), learning_rate, grad_norm, round(tokens * accelerator.num_processes), stops > 0)


def _loss_row(done: int, batch: Batch, outcome: _Outcome, *, mel_rank: int | None) -> dict[str, Any]:
    # A term that is exactly 0 was not asked for: an empty cell.
    terms = (value if value != 0 else None for value in outcome.terms)
    source = batch.source
    values = (source.name, source.kind.value, outcome.loss, *terms, outcome.learning_rate, outcome.grad_norm, mel_rank, outcome.num_tokens)
    return dict(zip(LOSS_COLUMNS, (done, *values), strict=True))


def _due(done: int, every: int | None) -> bool:
    return every is not None and done % every == 0


class _Pace:
    """What the progress bar says beside the steps: tokens per second of this run, and the last loss of each kind of source."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._tokens = 0
        self._losses: dict[str, float] = {}

    def count(self, batch: Batch, outcome: _Outcome) -> None:
        self._tokens += outcome.num_tokens
        self._losses[batch.source.kind.value] = outcome.loss

    @property
    def tokens_per_second(self) -> float:
        return self._tokens / max(time.monotonic() - self._started, 1e-9)

    @property
    def note(self) -> str:
        losses = ", ".join(f"{kind} {loss:.3f}" for kind, loss in sorted(self._losses.items()))
        return f"loss: {losses}; {self.tokens_per_second:,.0f} tokens/s"
