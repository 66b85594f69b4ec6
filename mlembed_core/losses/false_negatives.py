"""Which in-batch items are no negatives: items that answer a row about as well as its own positive does.

Letters: ``query`` n rows of this process, ``item`` m positives of the global batch. A mask is true where an item must not count as a
row's negative; a row's own positive is never masked, nor is a hard negative (those were chosen for the row).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mlembed_core.losses.matryoshka import prefix_cosines


def same_text(
    query_ids: Int[Tensor, "query"],
    targets: Int[Tensor, "query"],
    item_ids: Int[Tensor, "item"],
    item_query_ids: Int[Tensor, "item"],
) -> Bool[Tensor, "query item"]:
    """Items with the text of the row's positive or of its query, and the positives of an equal query.

    Args:
        targets: where each row's own positive stands among the items.
        item_ids: texts of the items; ids are equal exactly when texts are (training cache).
        item_query_ids: texts of the queries that the items are positives of.
    """
    mask = item_ids[None, :] == item_ids[targets][:, None]
    mask |= item_ids[None, :] == query_ids[:, None]
    mask |= item_query_ids[None, :] == query_ids[:, None]
    return _without_own(mask, targets)


def same_label(labels: Int[Tensor, "query"], targets: Int[Tensor, "query"], item_labels: Int[Tensor, "item"]) -> Bool[Tensor, "query item"]:
    """Items of rows that carry the row's label (−1: none)."""
    return _without_own((labels[:, None] == item_labels[None, :]) & (labels[:, None] >= 0), targets)


@torch.no_grad()
def similar(
    queries: Float[Tensor, "query hidden"], targets: Int[Tensor, "query"], items: Float[Tensor, "item hidden"], *, margin: float
) -> Bool[Tensor, "query item"]:
    """Items whose cosine with the query exceeds that of its own positive by more than ``margin``.

    Qwen3-Embedding (arXiv 2506.05176, eq. 1) masks so with a margin of 0.1. Judged by the states of the last exit at full size, the best
    that the model knows, for all exits and dims alike; no gradient flows through the judgement.
    """
    cosines = prefix_cosines(queries, items, (queries.shape[1],))[0]
    own = cosines.gather(1, targets[:, None])
    return _without_own(cosines > own + margin, targets)


def _without_own(mask: Bool[Tensor, "query item"], targets: Int[Tensor, "query"]) -> Bool[Tensor, "query item"]:
    return mask.scatter(1, targets[:, None], value=False)
