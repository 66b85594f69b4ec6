"""Weights, gradients and moments split over the processes (FSDP: torch's ``fully_shard``), for models that one device cannot hold.

Each layer is a unit: its weights are gathered when a pass comes to it and dropped again behind it; its gradient is averaged over
processes and split as soon as it is there. Every process therefore has to go through the layers equally often (``train/step.py``).
What a profile of configs/accelerate asks for with an ``fsdp_config`` changes no result beyond the order of sums.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from mlembed_core.config.base import Precision
from mlembed_core.model.network import Network
from mlembed_core.train.distributed import rank, world_size
from mlembed_core.train.launch import SHARDED


def asked_for() -> bool:
    """Whether this training splits its weights; one process has nobody to share with."""
    return os.environ.get(SHARDED) == "1" and world_size() > 1


def shard(network: Network, *, device: torch.device, precision: Precision) -> None:
    """Split ``network`` in place, every process keeping its part on ``device``; the parameters become DTensors.

    In bf16 the layers' weights travel in bf16, as autocast would cast them, and their gradients are summed in float32.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    policy = MixedPrecisionPolicy()
    if precision is Precision.BF16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in network.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(network, mesh=mesh)
    network.to(device)  # the buffers, which are not split


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A split tensor put together again, any other one as it is. Every process has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_main(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors put together, for the main process; split ones end on the CPU. Every process has to ask; the others get nothing."""
    found = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if rank() == 0:
            found[name] = value.cpu() if isinstance(tensor, DTensor) else value
    return found


def like(value: Tensor, target: Tensor) -> Tensor:
    """``value``, which all processes have, split as ``target`` is."""
    if isinstance(target, DTensor) and value.shape == target.shape:
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return value


@torch.no_grad()
def load_from_main(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give every process the weights that the main one has; the others' ``weights`` are not looked at."""
    for name, target in network.state_dict().items():
        value = torch.empty(target.shape, dtype=target.dtype, device=target.device)
        if rank() == 0:
            value.copy_(weights[name])
        if world_size() > 1:
            dist.broadcast(value, src=0)
        target.copy_(like(value, target))
