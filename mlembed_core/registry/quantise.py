"""Vectors in one byte or one bit per dimension, and search over them.

int8: each dimension's range over the corpus in 256 steps, a quarter of the size. binary: the sign alone, a thirty-second; candidates
are found by Hamming distance and put in order by the query's own floats against the signs ("rescoring", Yamada et al.,
arXiv 2106.00882). The numbers are those of sentence-transformers' ``quantize_embeddings``, which a test holds them to; it is not called
here because loading it takes seconds.

Shapes: ``text`` number of texts, ``dim`` length of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from mlembed_core.export.kinds import VectorType

RESCORED = 8  # candidates per text that is asked for, put in order by the rescoring
MIN_RESCORED = 100
BLOCK_ROWS = 16_384  # turned into float32 at a time
LEVELS = 255


@dataclass(frozen=True)
class QuantisedVectors:
    """Vectors of a corpus.

    Attributes:
        values: int8 (text, dim), or bits packed eight to a uint8 (text, ⌈dim / 8⌉).
        ranges: the smallest and the largest value of each dimension, (2, dim); None for binary.
    """

    kind: VectorType
    values: NDArray[Any]
    ranges: Float32[NDArray[Any], "2 dim"] | None
    dim: int

    def search(self, query: Float32[NDArray[Any], "dim"], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows of the ``top`` nearest to a unit vector, the nearest first, and their scores (about the cosine)."""
        if self.kind is VectorType.INT8:
            return _best(self._int8_scores(query), top)
        bits = np.packbits(query > 0)
        distances = np.bitwise_count(self.values ^ bits).sum(axis=1, dtype=np.int32)
        candidates = _best(-distances, max(RESCORED * top, MIN_RESCORED))[0]
        signs = np.unpackbits(self.values[candidates], axis=1, count=self.dim).astype(np.float32) * 2 - 1
        order, scores = _best(signs @ query / np.float32(np.sqrt(self.dim)), top)
        return candidates[order], scores

    def _int8_scores(self, query: Float32[NDArray[Any], "dim"]) -> Float32[NDArray[Any], "text"]:
        """Of the middles of the steps: q · (start + (value + 128.5) · step)."""
        assert self.ranges is not None
        start, step = self.ranges[0], _steps(self.ranges)
        offset = float(query @ (start + 128.5 * step))
        blocks = [self.values[row : row + BLOCK_ROWS].astype(np.float32) @ (query * step) for row in range(0, len(self.values), BLOCK_ROWS)]
        return np.concatenate(blocks) + np.float32(offset)


def quantise(
    vectors: Float32[NDArray[Any], "text dim"], kind: VectorType, *, ranges: Float32[NDArray[Any], "2 dim"] | None = None
) -> QuantisedVectors:
    """Unit vectors in fewer bits.

    Args:
        kind: int8 or binary.
        ranges: of int8, where they are known from other texts; what lies outside is clipped. None takes these vectors' own.
    """
    dim = vectors.shape[1]
    if kind is VectorType.BINARY:
        return QuantisedVectors(kind, np.packbits(vectors > 0, axis=1), None, dim)
    known = ranges_of(vectors) if ranges is None else ranges
    levels = np.clip(np.floor((vectors - known[0]) / _steps(known)), 0, LEVELS)
    return QuantisedVectors(kind, (levels - 128).astype(np.int8), known, dim)


def ranges_of(vectors: Float32[NDArray[Any], "text dim"]) -> Float32[NDArray[Any], "2 dim"]:
    """The smallest and the largest value of each dimension."""
    return np.stack([vectors.min(axis=0), vectors.max(axis=0)])


def _steps(ranges: Float32[NDArray[Any], "2 dim"]) -> Float32[NDArray[Any], "dim"]:
    steps = (ranges[1] - ranges[0]) / np.float32(LEVELS)
    return np.where(steps == 0, np.float32(1), steps)


def _best(scores: NDArray[Any], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    order = np.argsort(-scores, kind="stable")[:top]
    return order, scores[order].astype(np.float32)
