"""One training step's forward half: rows of the global batch to the loss of this process's share.

Everything random here is drawn from (seed, step), so that all processes and every resumed run see the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from mlembed_core.config.axes import Axes
from mlembed_core.config.train import TrainParams
from mlembed_core.data.sampler import Batch, Sampler
from mlembed_core.data.store import TrainingCache
from mlembed_core.losses.contrastive import ContrastiveTerms, contrastive_loss, false_negatives
from mlembed_core.model.pack import pack
from mlembed_core.train.distributed import gather_with_gradient, rank, split_rows, world_size

RANK_STREAM = 1  # tells the draw of a MEL rank from the sampler's draws under the same seed and step


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step, and what was worked on."""

    terms: ContrastiveTerms
    num_tokens: int


def draw_rank(axes: Axes, *, seed: int, step: int) -> int | None:
    """The MEL rank of a step, ∝ rank among the trained ranks; None where the table is dense (ML-Embed, MEL)."""
    if axes.mel_ranks is None:
        return None
    ranks = np.asarray(axes.mel_ranks)
    return int(np.random.default_rng([seed, step, RANK_STREAM]).choice(ranks, p=ranks / ranks.sum()))


def step_loss(
    network: nn.Module, cache: TrainingCache, sampler: Sampler, batch: Batch, *, step: int, seed: int, axes: Axes, params: TrainParams
) -> StepLoss:
    """Encode this process's share of the batch and compute its loss.

    The gradient of the returned loss, averaged over processes as DistributedDataParallel does, is that of one process with the
    whole batch: shares are sums divided by the global number of rows, times the number of processes.
    """
    objective = params.objectives[batch.source.kind]
    sizes = split_rows(len(batch.rows), world_size())
    start = sum(sizes[: rank()])
    # A process without a row still has to take part in every collective call: it encodes one and counts it zero times.
    share = slice(start, start + sizes[rank()]) if sizes[rank()] else slice(0, 1)
    rows = batch.rows[share]
    negative_ids = sampler.negatives(step, batch, objective.num_hard_negatives)[share] if objective.num_hard_negatives else None
    encoded = _encode(
        network,
        cache,
        rows,
        negative_ids,
        exits=axes.mll_layers,
        mel_rank=draw_rank(axes, seed=seed, step=step),
        bucket_tokens=params.bucket_tokens,
    )

    counted = slice(0, sizes[rank()])
    queries, positives = encoded.queries[:, counted], encoded.positives[:, counted]
    items = targets = excluded = None
    if objective.in_batch:
        items = gather_with_gradient(positives, sizes, dim=1)
        targets = torch.arange(start, start + sizes[rank()], device=queries.device)
        excluded = _excluded(cache, batch.rows, targets, params)
    negatives = absent = None
    if negative_ids is not None and encoded.negatives is not None:
        negatives = encoded.negatives[:, counted]
        absent = torch.from_numpy(negative_ids[counted] < 0).to(queries.device)
    terms = contrastive_loss(
        queries,
        positives,
        dims=axes.mrl_dims,
        temperature=params.temperature,
        num_rows=len(batch.rows),
        items=items,
        targets=targets,
        excluded=excluded,
        negatives=negatives,
        absent=absent,
    )
    scale = world_size()
    # + 0 · every state: a process whose share is empty still owes the others a backward pass.
    anchor = encoded.queries.sum() * 0
    return StepLoss(ContrastiveTerms(terms.in_batch * scale + anchor, terms.hard * scale), encoded.num_tokens)


@dataclass(frozen=True)
class _Encoded:
    queries: Float[Tensor, "exit query hidden"]
    positives: Float[Tensor, "exit query hidden"]
    negatives: Float[Tensor, "exit query neg hidden"] | None
    num_tokens: int


def _encode(
    network: nn.Module,
    cache: TrainingCache,
    rows: NDArray[np.int64],
    negative_ids: NDArray[np.int64] | None,
    *,
    exits: Sequence[int],
    mel_rank: int | None,
    bucket_tokens: int | None,
) -> _Encoded:
    """States of the rows' texts; a text that occurs several times is encoded once."""
    query_ids, passage_ids = cache.query_ids(rows), cache.passage_ids(rows)
    parts = [query_ids, passage_ids]
    if negative_ids is not None:
        # Padding (−1) points at the row's own positive: already encoded, and masked in the loss.
        parts.append(np.where(negative_ids < 0, passage_ids[:, None], negative_ids).ravel())
    unique, positions = np.unique(np.concatenate(parts), return_inverse=True)
    texts = [cache.tokens(int(text)) for text in unique]
    device = next(network.parameters()).device
    joined = bool(getattr(network, "module", network).joins_texts)  # DistributedDataParallel keeps the network in `module`
    buckets = [bucket.to(device) for bucket in pack(texts, max_tokens=bucket_tokens, joined=joined)]
    states = network(buckets, exits, mel_rank)
    if states.dtype in (torch.bfloat16, torch.float16):
        states = states.float()  # a softmax at temperature 0.05 needs the digits
    index = torch.from_numpy(positions).to(device)
    count = len(rows)
    negatives = None
    if negative_ids is not None:
        negatives = states[:, index[2 * count :]].unflatten(1, negative_ids.shape)
    return _Encoded(
        queries=states[:, index[:count]],
        positives=states[:, index[count : 2 * count]],
        negatives=negatives,
        num_tokens=sum(len(text) for text in texts),
    )


def _excluded(cache: TrainingCache, rows: NDArray[np.int64], targets: Tensor, params: TrainParams) -> Tensor | None:
    queries = torch.from_numpy(cache.query_ids(rows)).to(targets.device)
    passages = torch.from_numpy(cache.passage_ids(rows)).to(targets.device)
    labels = torch.from_numpy(cache.labels(rows)).to(targets.device) if params.mask_same_label else None
    return false_negatives(
        queries[targets],
        targets,
        passages,
        queries,
        same_text=params.mask_same_text,
        labels=None if labels is None else labels[targets],
        item_labels=labels,
    )
