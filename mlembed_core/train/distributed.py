"""What several processes need of each other: a gather that carries gradients, and sums.

``accelerator.gather`` detaches: with N processes the loss is right and the gradient is not. Here the backward pass sums what every
process's loss says about a tensor, so that N processes compute the gradient of one process on the joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if world_size() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], dim: int) -> Tensor:
        ctx.sizes, ctx.dim = sizes, dim
        # Collectives want equal shapes; the padding of the shorter ones is cut off again.
        largest = max(sizes)
        padded = own.new_zeros([*own.shape[:dim], largest, *own.shape[dim + 1 :]])
        padded.narrow(dim, 0, own.shape[dim]).copy_(own)
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part.narrow(dim, 0, size) for part, size in zip(parts, sizes, strict=True)], dim=dim)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        start = sum(ctx.sizes[: dist.get_rank()])
        return total.narrow(ctx.dim, start, ctx.sizes[dist.get_rank()]), None, None


def gather_with_gradient(own: Float[Tensor, "..."], sizes: list[int], *, dim: int = 0) -> Tensor:
    """Concatenate every process's tensor along ``dim``, in rank order.

    Args:
        own: this process's part.
        sizes: length along ``dim`` on each process.
    """
    if world_size() == 1:
        return own
    gathered: Tensor = _Gather.apply(own, sizes, dim)  # type: ignore[no-untyped-call]
    return gathered


def split_rows(num_rows: int, processes: int) -> list[int]:
    """How many rows of a global batch each process takes: contiguous shares that differ by one at most."""
    share, rest = divmod(num_rows, processes)
    return [share + (index < rest) for index in range(processes)]
