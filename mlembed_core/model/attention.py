"""Attention in float32 inside bfloat16 autocast, for CPUs.

The CPU kernels of scaled dot-product attention are several times slower in bfloat16 than in float32 (mostly the backward pass), and
less exact. Registered with transformers under a name of its own, so that the stock model classes run unchanged.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa_float32"


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return output.to(value.dtype), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def use_float32_attention(backbone: Any, device: torch.device) -> None:
    """Switch a transformers model to float32 attention if it computes on a CPU; elsewhere bfloat16 attention is the fast one."""
    if device.type == "cpu":
        backbone.set_attn_implementation(NAME)
