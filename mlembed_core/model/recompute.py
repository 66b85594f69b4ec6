"""Activation checkpointing: what the backward pass computes again instead of remembering it.

A bucket is the unit: its forward pass runs a second time when its gradient is due, hooks included, so that the stock model runs as it
is. Every policy gives the same gradients, bit for bit: the same operations run on the same numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from mlembed_core.config.train import Checkpointing

aten = torch.ops.aten
# Dear to compute, cheap to keep. What lies between (norms, rotary embedding, activation functions, casts) is the other way round.
KEPT = {
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.torch_attn._varlen_attn.default,
}


def recomputed(function: Callable[..., Any], policy: Checkpointing) -> Callable[..., Any]:
    """``function`` under a policy; it must draw no random numbers."""
    if policy is Checkpointing.NONE:
        return function
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if policy is Checkpointing.SELECTIVE:
        options["context_fn"] = _keep_and_replay
    return partial(checkpoint, function, **options)


def _keep_and_replay() -> tuple[TorchDispatchMode, TorchDispatchMode]:
    kept: deque[Any] = deque()
    return _Keep(kept), _Replay(kept)


class _Keep(TorchDispatchMode):
    """Runs everything, and keeps the results of ``KEPT`` in their order.

    torch's own selective checkpointing wants every operation to come back, but autocast casts a weight once per step and not once
    per bucket.
    """

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in KEPT:
            self._kept.append(tree_map_only(Tensor, Tensor.detach, result))
        return result


class _Replay(TorchDispatchMode):
    """Runs everything but ``KEPT``, whose results come back in their order."""

    def __init__(self, kept: deque[Any]) -> None:
        super().__init__()
        self._kept = kept

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._kept.popleft() if func in KEPT else func(*args, **(kwargs or {}))
