"""What several processes need of each other: a gather that carries gradients, and sums.

``accelerator.gather`` detaches: with N processes the loss is right and the gradient is not. Here the backward pass sums what every
process's loss says about a tensor, so that N processes compute the gradient of one process on the joined batch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from mlembed_core.errors import MachineError


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


def gather(own: Float[Tensor, "..."], sizes: list[int], *, dim: int = 0, with_grad: bool = True) -> Tensor:
    """Concatenate every process's tensor along ``dim``, in rank order.

    Args:
        own: this process's part.
        sizes: length along ``dim`` on each process.
        with_grad: false: the reference's way, where all items are constants once there are several processes.
    """
    if world_size() == 1:
        return own
    gathered: Tensor = _Gather.apply(own if with_grad else own.detach(), sizes, dim)  # type: ignore[no-untyped-call]
    return gathered


def split_rows(num_rows: int, processes: int) -> list[int]:
    """How many rows of a global batch each process takes: contiguous shares that differ by one at most."""
    share, rest = divmod(num_rows, processes)
    return [share + (index < rest) for index in range(processes)]


def average_gradients(network: nn.Module) -> None:
    """Replace every parameter's gradient by its mean over processes: what DistributedDataParallel does after a backward pass."""
    if world_size() == 1:
        return
    for parameter in network.parameters():
        if parameter.requires_grad:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            dist.all_reduce(gradient)
            parameter.grad = gradient.div_(world_size())


def largest(value: int, *, device: torch.device) -> int:
    """The largest of what the processes come with.

    Args:
        device: where their collectives work.
    """
    found = torch.tensor([value], device=device)
    if world_size() > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return int(found)


def agree(value: int, *, what: str, device: torch.device) -> None:
    """Raises MachineError unless every process comes with the same ``value``.

    Args:
        what: the value's meaning, for the message.
        device: where the processes' collectives work.
    """
    values = [torch.tensor([value], device=device) for _ in range(world_size())]
    if len(values) > 1:
        dist.all_gather(values, torch.tensor([value], device=device))
    found = [int(each) for each in values]
    if len(set(found)) > 1:
        raise MachineError(
            f"the processes do not agree on {what}: {found}, in rank order. Every node needs the same `.work/`: use a shared "
            "folder, or copy the first node's `.work/train` to the others."
        )
