"""Texts of many lengths to a few rectangles: length buckets with little padding.

A causal model needs no attention mask for right padding (a token never sees what comes after it), so a bucket is a plain
rectangle of ids, and the pooled position is the last token of each row, the EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

# What one more rectangle costs, in padded tokens: kernel launches of a forward and backward pass against the work of a token,
# measured for hidden 256 on CPU. Larger models lose nothing by it: their buckets fill up anyway.
BUCKET_COST_TOKENS = 256
MAX_LEVELS = 64  # distinct lengths that the plan looks at; longer ladders are rounded up to these


@dataclass(frozen=True)
class Bucket:
    """A rectangle of token ids.

    Attributes:
        ids: right-padded token ids.
        last: index of each row's last token.
        order: which text each row is.
    """

    ids: Int[Tensor, "batch seq"]
    last: Int[Tensor, "batch"]
    order: Int[Tensor, "batch"]

    def to(self, device: torch.device) -> Bucket:
        return Bucket(self.ids.to(device), self.last.to(device), self.order.to(device))


def pack(texts: Sequence[NDArray[np.integer]] | Sequence[Sequence[int]], *, pad_id: int = 0, max_tokens: int | None = None) -> list[Bucket]:
    """Arrange token id lists into buckets.

    Args:
        texts: token ids of each text, none empty.
        pad_id: what fills the right; never seen by a pooled token, so any valid id will do.
        max_tokens: upper bound of a bucket's size (at least one row goes in regardless).

    Raises:
        ValueError: a text without tokens; it would have no last token.
    """
    lengths = np.fromiter((len(text) for text in texts), dtype=np.int64, count=len(texts))
    if len(lengths) and lengths.min() == 0:
        raise ValueError(f"text {int(lengths.argmin())} has no tokens; the tokenizer must append an EOS to every text")
    order = np.argsort(lengths, kind="stable")
    buckets = []
    for start, stop in _plan(lengths[order]):
        width = int(lengths[order[stop - 1]])
        step = stop - start if max_tokens is None else max(1, max_tokens // width)
        buckets += [_bucket(texts, order[first : min(first + step, stop)], lengths, pad_id) for first in range(start, stop, step)]
    return buckets


def _bucket(
    texts: Sequence[Sequence[int]] | Sequence[NDArray[np.integer]], rows: NDArray[np.int64], lengths: NDArray[np.int64], pad_id: int
) -> Bucket:
    ids = np.full((len(rows), int(lengths[rows].max())), pad_id, dtype=np.int64)
    for position, row in enumerate(rows):
        ids[position, : lengths[row]] = texts[row]
    return Bucket(torch.from_numpy(ids), torch.from_numpy(lengths[rows] - 1), torch.from_numpy(rows))


def _plan(ascending: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Cut sorted lengths into runs so that padding plus the cost of each run is least (dynamic programme over distinct lengths)."""
    if not len(ascending):
        return []
    levels, firsts = np.unique(ascending, return_index=True)
    if len(levels) > MAX_LEVELS:
        keep = np.linspace(0, len(levels) - 1, MAX_LEVELS).astype(np.int64)
        # A run ends at a kept level, so it starts right after the kept level before.
        firsts = np.concatenate([[0], firsts[keep[:-1] + 1]])
        levels = levels[keep]
    ends = np.append(firsts[1:], len(ascending))
    best = np.concatenate([[0], np.full(len(levels), np.iinfo(np.int64).max)])
    cut = np.zeros(len(levels) + 1, dtype=np.int64)
    for level in range(1, len(levels) + 1):
        costs = best[:level] + (ends[level - 1] - firsts[:level]) * levels[level - 1] + BUCKET_COST_TOKENS
        cut[level] = int(costs.argmin())
        best[level] = costs.min()
    runs = []
    level = len(levels)
    while level > 0:
        runs.append((int(firsts[cut[level]]), int(ends[level - 1])))
        level = int(cut[level])
    return runs[::-1]
