"""The training run, from a network and a cache to a trained network and its curves.

1. open the schedule of batches, the optimizer and, where a killed run left it, its state;
2. for each step: draw a batch, encode this process's share, compute the loss over exits and dims, step;
3. now and then: look at held-out rows, save the state, tell the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
from mlembed_core.losses.matryoshka import prefix_cosines
from mlembed_core.model.attention import use_float32_attention
from mlembed_core.model.network import Network
from mlembed_core.model.pack import pack
from mlembed_core.progress import Reporter
from mlembed_core.train import resume
from mlembed_core.train.optimizer import learning_rate, make_optimizer
from mlembed_core.train.step import draw_rank, step_loss
from mlembed_core.train.tracking import loss_metrics, validation_metrics

VALIDATION_ROWS = 128  # of each source; more only makes the curve smoother


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
    if params.precision is Precision.BF16:
        use_float32_attention(network.backbone, accelerator.device)
    model, optimizer = accelerator.prepare(network, optimizer)
    model.train()

    with Reporter("training", sampler.num_steps, "steps") as reporter:
        reporter.advance(first)
        started, tokens = time.monotonic(), 0
        for step in range(first, sampler.num_steps):
            batch = sampler.batch(step)
            rate = learning_rate(step, sampler.num_steps, params)
            for group in optimizer.param_groups:
                group["lr"] = rate
            with _autocast(accelerator, params.precision):
                result = step_loss(model, cache, sampler, batch, step=step, seed=seed, axes=axes, params=params)
            accelerator.backward(result.terms.total)
            norm = accelerator.clip_grad_norm_(model.parameters(), params.max_grad_norm)
            loss = float(accelerator.reduce(result.terms.total.detach(), reduction="mean"))
            if not (np.isfinite(loss) and bool(torch.isfinite(norm))):
                raise TrainingError(
                    f"step {step}: loss {loss}, gradient norm {float(norm)}, source {batch.source.name}, rows {batch.rows[:8].tolist()} …. "
                    "Lower train.learning_rate, or look at these rows."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            done = step + 1
            tokens += result.num_tokens
            if done % params.log_every == 0 or done == sampler.num_steps:
                row = {
                    "step": done,
                    "source": batch.source.name,
                    "loss": loss,
                    "learning_rate": rate,
                    "grad_norm": float(norm),
                    "rank": draw_rank(axes, seed=seed, step=step),
                    "tokens": result.num_tokens,
                }
                curves.loss.append(row)
                speed = tokens / max(time.monotonic() - started, 1e-9)
                log(done, loss_metrics(row) | {"tokens_per_second": speed})
            if done == sampler.num_steps or (params.validate_every and done % params.validate_every == 0):
                held_out = validate(network, cache, sampler, axes=axes, params=params)
                curves.validation += [{"step": done, **row} for row in held_out]
                for row in held_out:
                    log(done, validation_metrics(row))
            if (
                params.checkpoint_every
                and (done % params.checkpoint_every == 0 or done == sampler.num_steps)
                and accelerator.is_main_process
            ):
                resume.save(
                    state_folder,
                    step=done,
                    network=network,
                    optimizer=cast("Any", optimizer).optimizer,
                    progress={"loss": curves.loss, "validation": curves.validation},
                )
            reporter.advance(note=f"loss {loss:.3f}, {tokens / max(time.monotonic() - started, 1e-9):,.0f} tokens/s")
    return curves


@torch.no_grad()
def validate(network: Network, cache: TrainingCache, sampler: Sampler, *, axes: Axes, params: TrainParams) -> list[dict[str, Any]]:
    """In-batch cross-entropy of held-out rows, at every trained exit and dim, the table at its full rank.

    Deterministic: always the first rows of each source's held-out part. A source without enough of them is left out.
    """
    network.eval()
    device = next(network.parameters()).device
    rows = []
    for source in sampler.sources:
        held_out = np.arange(source.validation.start, min(source.validation.stop, source.validation.start + VALIDATION_ROWS))
        if len(held_out) < 2:
            continue
        queries, passages = cache.query_ids(held_out), cache.passage_ids(held_out)
        _, firsts = np.unique(passages, return_index=True)  # a passage that stands twice would be its own false negative
        firsts.sort()
        texts = [cache.tokens(int(text)) for text in [*queries[firsts], *passages[firsts]]]
        states = network([bucket.to(device) for bucket in pack(texts)], axes.mll_layers, None).float()
        count = len(firsts)
        for layers, exit_states in zip(axes.mll_layers, states, strict=True):
            cosines = prefix_cosines(exit_states[:count], exit_states[count:], axes.mrl_dims) / params.temperature
            losses = nn.functional.cross_entropy(
                cosines.flatten(0, 1), torch.arange(count, device=device).repeat(len(axes.mrl_dims)), reduction="none"
            )
            for dim, loss in zip(axes.mrl_dims, losses.view(-1, count).mean(dim=1), strict=True):
                rows.append({"source": source.name, "layers": layers, "dim": dim, "loss": float(loss)})
    network.train()
    return rows


def _autocast(accelerator: Accelerator, precision: Precision) -> Any:
    return torch.autocast(accelerator.device.type, dtype=torch.bfloat16, enabled=precision is Precision.BF16)
