"""Texts of many lengths to a few tensors: length buckets with little padding, or one row without any.

A causal model needs no attention mask for right padding (a token never sees what comes after it), so a bucket is a plain
rectangle of ids, and the last token of each row is the EOS. A bidirectional model gets the rectangle's mask. Where attention
takes sequences of different lengths one behind the other (``model/attention.py``), a bucket is a single row of joined texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

# What one more rectangle costs, in padded tokens: kernel launches of a forward and backward pass against the work of a token,
# measured for hidden 256 on CPU. Larger models lose nothing by it: their buckets fill up anyway.
BUCKET_COST_TOKENS = 256
MAX_LEVELS = 64  # distinct lengths that the plan looks at; longer ladders are rounded up to these


@dataclass(frozen=True)
class Bucket:
    """A rectangle of token ids, or a row of joined texts.

    Attributes:
        ids: right-padded token ids of one text per row; joined: one row of all texts.
        last: column of each text's last token.
        order: which text each one is.
        cu_seq_lens: where texts start in a joined row, and its end; None for a rectangle.
    """

    ids: Int[Tensor, "batch seq"]
    last: Int[Tensor, "text"]
    order: Int[Tensor, "text"]
    cu_seq_lens: Int[Tensor, "bounds"] | None = None

    def to(self, device: torch.device) -> Bucket:
        bounds = None if self.cu_seq_lens is None else self.cu_seq_lens.to(device)
        return Bucket(self.ids.to(device), self.last.to(device), self.order.to(device), bounds)

    @property
    def rows(self) -> Int[Tensor, "text"]:
        """Row of each text."""
        return torch.arange(len(self.last), device=self.last.device) if self.cu_seq_lens is None else torch.zeros_like(self.last)

    @property
    def first(self) -> Int[Tensor, "text"]:
        """Column of each text's first token."""
        return torch.zeros_like(self.last) if self.cu_seq_lens is None else self.cu_seq_lens[:-1].long()

    @property
    def lengths(self) -> Int[Tensor, "text"]:
        return self.last + 1 - self.first

    @property
    def mask(self) -> Bool[Tensor, "batch seq"] | None:
        """True at tokens, False at padding; None where there is no padding."""
        mask = torch.arange(self.ids.shape[1], device=self.ids.device) <= self.last[:, None]
        return None if self.cu_seq_lens is not None or bool(mask.all()) else mask

    @property
    def positions(self) -> Int[Tensor, "batch seq"]:
        """Place of each token in its own text, from 0."""
        count = torch.arange(self.ids.shape[1], device=self.ids.device)[None]
        return count if self.cu_seq_lens is None else count - self.first.repeat_interleave(self.lengths)

    def means(self, states: Float[Tensor, "batch seq hidden"]) -> Float[Tensor, "text hidden"]:
        """Mean of each text's states, padding left out."""
        if self.cu_seq_lens is not None:
            return torch.stack([text.mean(dim=0) for text in torch.split(states[0], self.lengths.tolist())])
        mask = self.mask
        if mask is None:
            return states.mean(dim=1)
        return (states * mask[:, :, None]).sum(dim=1) / self.lengths[:, None]


def pack(
    texts: Sequence[NDArray[np.integer]] | Sequence[Sequence[int]],
    *,
    pad_id: int = 0,
    max_tokens: int | None = None,
    joined: bool = False,
) -> list[Bucket]:
    """Arrange token id lists into buckets.

    Args:
        texts: token ids of each text, none empty.
        pad_id: what fills the right; never seen by a pooled token, so any valid id will do.
        max_tokens: upper bound of a bucket's size (at least one text goes in regardless).
        joined: rows of joined texts instead of rectangles, for varlen attention.

    Raises:
        ValueError: a text without tokens; it would have no last token.
    """
    lengths = np.fromiter((len(text) for text in texts), dtype=np.int64, count=len(texts))
    if len(lengths) and lengths.min() == 0:
        raise ValueError(f"text {int(lengths.argmin())} has no tokens; the tokenizer must append an EOS to every text")
    order = np.argsort(lengths, kind="stable")
    if joined:
        return [_join(texts, order[run], lengths) for run in _runs(lengths[order], max_tokens)]
    buckets = []
    for start, stop in _plan(lengths[order]):
        width = int(lengths[order[stop - 1]])
        step = stop - start if max_tokens is None else max(1, max_tokens // width)
        buckets += [_bucket(texts, order[first : min(first + step, stop)], lengths, pad_id) for first in range(start, stop, step)]
    return buckets


def filler(order: int, *, joined: bool = False) -> Bucket:
    """A bucket with one text of one token, whose state stands for nothing.

    Args:
        order: the text's number.
    """
    bounds = torch.tensor([0, 1], dtype=torch.int32) if joined else None
    return Bucket(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, dtype=torch.long), torch.tensor([order]), bounds)


def _runs(lengths: NDArray[np.int64], max_tokens: int | None) -> Iterator[NDArray[np.int64]]:
    """Neighbouring texts of at most ``max_tokens`` together."""
    start = total = 0
    for index, length in enumerate(lengths):
        if max_tokens is not None and total + length > max_tokens and index > start:
            yield np.arange(start, index)
            start, total = index, 0
        total += length
    if start < len(lengths):
        yield np.arange(start, len(lengths))


def _join(texts: Sequence[Sequence[int]] | Sequence[NDArray[np.integer]], rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> Bucket:
    ids = np.concatenate([np.asarray(texts[row], dtype=np.int64) for row in rows])
    bounds = np.concatenate([[0], np.cumsum(lengths[rows])])
    return Bucket(
        torch.from_numpy(ids)[None],
        torch.from_numpy(bounds[1:] - 1),
        torch.from_numpy(rows),
        torch.from_numpy(bounds.astype(np.int32)),  # the kernels' type
    )


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
