"""The training run, from a network and a cache to a trained network and its curves.

1. open the schedule of batches, the optimizer and, where a killed run left it, its state;
2. for each step: draw a batch, encode this process's share, compute the loss over exits and dims, step;
3. now and then: look at held-out rows, save the state, tell the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from mlembed_core.config.axes import Axes
from mlembed_core.config.base import Precision
from mlembed_core.config.train import TrainParams
from mlembed_core.data.sampler import Sampler
from mlembed_core.data.store import TrainingCache
from mlembed_core.errors import MlembedError
from mlembed_core.model.attention import choose_attention
from mlembed_core.model.network import Network
from mlembed_core.progress import Reporter
from mlembed_core.train import resume
from mlembed_core.train.optimizer import learning_rate, make_optimizer
from mlembed_core.train.step import StepLoss, draw_rank, step_loss
from mlembed_core.train.tracking import loss_metrics, validation_metrics
from mlembed_core.train.validation import validate

LOSS_COLUMNS = ("step", "source", "loss", "learning_rate", "grad_norm", "rank", "tokens")


class TrainingError(MlembedError):
    """The loss or the gradient left the numbers."""

    exit_code = 10


@dataclass
class Curves:
    """What is known of a run, free of times: ``loss`` a row per logged step, ``validation`` a row per step, source, exit and dim."""

    loss: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)


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
) -> Curves:
    """Train ``network`` in place.

    Args:
        axes: the dims, exits and ranks to train.
        accelerator: places the network and averages gradients over processes.
        state_folder: where the resume state lives, named by the fingerprint of everything that shapes the result.
        log: called on the main process with a step and its metrics.

    Raises:
        TrainingError: the loss or the gradient is not finite; names the step, source and rows.
    """
    sampler = Sampler(
        cache.sources,
        batch_size=params.batch_size,
        batch_size_of=params.batch_size_of,
        weights=params.source_weights,
        seed=seed,
        num_steps=params.num_steps,
        num_epochs=params.num_epochs,
    )
    optimizer = make_optimizer(network, params)
    curves, first = Curves(), 0
    resumed = resume.load_newest(state_folder, network=network, optimizer=optimizer, warn=accelerator.print)
    if resumed is not None:
        first, progress = resumed
        curves = Curves(**progress)
        accelerator.print(f"resuming after step {first} of {sampler.num_steps}")
    choose_attention(network.backbone, device=accelerator.device, precision=params.precision)
    network.checkpointing = params.activation_checkpointing
    model, optimizer = accelerator.prepare(network, optimizer)
    model.train()

    in_use = [source for source in sampler.sources if params.source_weights is None or params.source_weights.get(source.name)]
    with Reporter("training", sampler.num_steps, "steps") as reporter:
        reporter.advance(first)
        started, tokens = time.monotonic(), 0
        for step in range(first, sampler.num_steps):
            batch = sampler.batch(step)
            rate = learning_rate(step, sampler.num_steps, params)
            with _autocast(accelerator, params.precision):
                result = step_loss(model, cache, sampler, batch, step=step, seed=seed, axes=axes, params=params)
            loss, norm = _update(model, optimizer, accelerator, result, rate=rate, max_grad_norm=params.max_grad_norm)
            if not (np.isfinite(loss) and np.isfinite(norm)):
                raise TrainingError(
                    f"step {step}: loss {loss}, gradient norm {norm}, source {batch.source.name}, rows {batch.rows[:8].tolist()} …. "
                    "Lower train.learning_rate, or look at these rows."
                )

            done, last = step + 1, step + 1 == sampler.num_steps
            tokens += result.num_tokens
            speed = tokens / max(time.monotonic() - started, 1e-9)
            if last or done % params.log_every == 0:
                mel_rank = draw_rank(axes, seed=seed, step=step)
                values = (done, batch.source.name, loss, rate, norm, mel_rank, result.num_tokens)
                row = dict(zip(LOSS_COLUMNS, values, strict=True))
                curves.loss.append(row)
                log(done, loss_metrics(row) | {"tokens_per_second": speed})
            if last or (params.validate_every and done % params.validate_every == 0):
                with _autocast(accelerator, params.precision):
                    held_out = validate(network, cache, in_use, axes=axes, temperature=params.temperature)
                curves.validation += [{"step": done, **row} for row in held_out]
                for row in held_out:
                    log(done, validation_metrics(row))
            if params.checkpoint_every and (last or done % params.checkpoint_every == 0) and accelerator.is_main_process:
                inner = cast("Any", optimizer).optimizer
                resume.save(state_folder, step=done, network=network, optimizer=inner, progress=asdict(curves))
            reporter.advance(note=f"loss {loss:.3f}, {speed:,.0f} tokens/s")
    return curves


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Accelerator, result: StepLoss, *, rate: float, max_grad_norm: float
) -> tuple[float, float]:
    """Backward pass and optimizer step; a gradient that is not finite changes no weight.

    Returns:
        Loss of the global batch, and the gradient's norm before clipping.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    accelerator.backward(result.terms.total)
    norm = float(accelerator.clip_grad_norm_(model.parameters(), max_grad_norm))
    loss = float(accelerator.reduce(result.terms.total.detach(), reduction="mean"))
    if np.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss, norm


def _autocast(accelerator: Accelerator, precision: Precision) -> Any:
    return torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=precision is Precision.BF16)
