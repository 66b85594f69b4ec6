"""Cosine similarities at every Matryoshka dim for the price of one, and the weights of dims (MRL).

Letters: ``dim`` number of MRL dims M, ``query`` n, ``item`` m, ``hidden`` D. A vector cut to d dimensions and normalised has the dot
product Σ_{i<d} q_i p_i / (|q_<d| |p_<d|); numerator and norms are prefix sums over blocks between neighbouring dims, so no dim costs
a matrix product of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Below this length a vector has no direction to speak of; float32's own resolution around one.
MIN_NORM = 1e-12


def mrl_weights(dims: Sequence[int]) -> list[float]:
    """Weight of each dim: 1 / (n · sqrt(D / d)), n = 1 for the full size D, 2 for the next smaller (ML-Embed, MRL).

    Args:
        dims: ascending; the last is D. The weights are not normalised by their sum.
    """
    full = dims[-1]
    return [1 / ((len(dims) - index) * math.sqrt(full / dim)) for index, dim in enumerate(dims)]


def prefix_cosines(
    queries: Float[Tensor, "query hidden"], items: Float[Tensor, "item hidden"], dims: Sequence[int]
) -> Float[Tensor, "dim query item"]:
    """Cosine of every query with every item at every dim."""
    with _in_full_precision(queries):
        products = _prefix_sums([query @ item.T for query, item in zip(_blocks(queries, dims), _blocks(items, dims), strict=True)])
    return products / (prefix_norms(queries, dims)[:, :, None] * prefix_norms(items, dims)[:, None, :])


def prefix_cosines_of_own(
    queries: Float[Tensor, "query hidden"], items: Float[Tensor, "query item hidden"], dims: Sequence[int]
) -> Float[Tensor, "dim query item"]:
    """Cosine of every query with its own items (positive and hard negatives) at every dim."""
    with _in_full_precision(queries):
        products = _prefix_sums(
            [torch.einsum("nd,nkd->nk", query, item) for query, item in zip(_blocks(queries, dims), _blocks(items, dims), strict=True)]
        )
    return products / (prefix_norms(queries, dims)[:, :, None] * prefix_norms(items, dims))


def prefix_norms(vectors: Float[Tensor, "*rest hidden"], dims: Sequence[int]) -> Float[Tensor, "dim *rest"]:
    """Euclidean length of each vector cut to each dim, at least ``MIN_NORM``."""
    squares = _prefix_sums([block.square().sum(dim=-1) for block in _blocks(vectors, dims)])
    return squares.clamp_min(MIN_NORM**2).sqrt()


def _in_full_precision(states: Tensor) -> torch.autocast:
    """Autocast would round the products to bfloat16's three digits, and a temperature of 0.05 makes twenty of each of their errors."""
    return torch.autocast(states.device.type, enabled=False)


def _blocks(vectors: Tensor, dims: Sequence[int]) -> list[Tensor]:
    starts = (0, *dims[:-1])
    return [vectors[..., start:stop] for start, stop in zip(starts, dims, strict=True)]


def _prefix_sums(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts).cumsum(dim=0)
