"""The contrastive objective over exits and dims: in-batch and hard-negative cross-entropy (ML-Embed, arXiv 2605.15081; InfoNCE).

Letters: ``exit`` E, ``query`` n rows of this process, ``item`` m positives of the global batch, ``neg`` k hard negatives of a row,
``hidden`` D. All means are over the rows of the *global* batch: this process's share is a sum divided by ``num_rows``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from mlembed_core.losses.matryoshka import mrl_weights, prefix_cosines, prefix_cosines_of_own


@dataclass(frozen=True)
class ContrastiveTerms:
    """Summands of the loss, each already averaged over exits and weighted over dims."""

    in_batch: Float[Tensor, ""]
    hard: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.in_batch + self.hard


def contrastive_loss(
    queries: Float[Tensor, "exit query hidden"],
    positives: Float[Tensor, "exit query hidden"],
    *,
    dims: Sequence[int],
    temperature: float,
    num_rows: int,
    items: Float[Tensor, "exit item hidden"] | None = None,
    targets: Int[Tensor, "query"] | None = None,
    excluded: Bool[Tensor, "query item"] | None = None,
    negatives: Float[Tensor, "exit query neg hidden"] | None = None,
    absent: Bool[Tensor, "query neg"] | None = None,
) -> ContrastiveTerms:
    """Total = (in_batch + hard) / number of exits, each term a weighted sum over MRL dims of a mean cross-entropy.

    Args:
        queries: pooled states, not normalised.
        positives: of the same rows.
        dims: MRL dims, ascending, the last the full size.
        temperature: divides the cosines.
        num_rows: rows of the global batch.
        items: positives of the global batch, for the in-batch term; None leaves that term out.
        targets: where each row's own positive stands among ``items``.
        excluded: items that are no negatives for a row (a false negative). A row's own positive is never excluded.
        negatives: hard negatives; None leaves that term out.
        absent: padding among the negatives of rows that have fewer.
    """
    weights = torch.tensor(mrl_weights(dims), device=queries.device, dtype=queries.dtype)
    in_batch = hard = queries.new_zeros(())
    for index in range(len(queries)):
        if items is not None and targets is not None:
            logits = prefix_cosines(queries[index], items[index], dims) / temperature
            in_batch = in_batch + _cross_entropy(logits, targets, excluded, weights)
        if negatives is not None:
            own = torch.cat([positives[index][:, None], negatives[index]], dim=1)
            logits = prefix_cosines_of_own(queries[index], own, dims) / temperature
            padding = None if absent is None else functional.pad(absent, (1, 0))
            hard = hard + _cross_entropy(logits, torch.zeros(len(own), dtype=torch.long, device=own.device), padding, weights)
    scale = 1 / (num_rows * len(queries))
    return ContrastiveTerms(in_batch=in_batch * scale, hard=hard * scale)


def _cross_entropy(
    logits: Float[Tensor, "dim query item"], targets: Int[Tensor, "query"], excluded: Bool[Tensor, "query item"] | None, weights: Tensor
) -> Float[Tensor, ""]:
    """Σ over dims (weighted) and rows of −log softmax at the target."""
    if excluded is not None:
        logits = logits.masked_fill(excluded, -torch.inf)
    chosen = logits.gather(2, targets[None, :, None].expand(len(logits), -1, 1)).squeeze(2)
    per_row = torch.logsumexp(logits, dim=2) - chosen
    return (weights[:, None] * per_row).sum()
