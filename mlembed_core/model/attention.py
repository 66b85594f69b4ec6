"""Attention where the stock choice is slow: in float32 on CPUs, and over joined texts of different lengths on CUDA.

Registered with transformers under names of their own, so that the stock model classes run unchanged.

``sdpa_float32``: the CPU kernels of scaled dot-product attention are several times slower in bfloat16 than in float32 (mostly the
backward pass), and less exact.

``mlembed_varlen``: all texts of a bucket stand one behind the other in a single row, and attention gets their bounds, so that no
token is padding and no mask is built (``torch.nn.attention.varlen``, FlashAttention's kernel).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mlembed_core.config.base import Precision

FLOAT32 = "sdpa_float32"
VARLEN = "mlembed_varlen"


def _attention_float32(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return output.to(value.dtype), None


def _attention_varlen(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    *,
    scaling: float,
    cu_seq_lens: Tensor,
    max_length: int,
    sliding_window: int | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Attention inside each of the joined texts.

    Shapes: ``query`` (1, heads, tokens, head_dim), ``key`` and ``value`` likewise, with fewer heads under grouped queries; the
    result is (1, tokens, heads, head_dim), as transformers has it.
    """
    past = -1 if sliding_window is None else sliding_window - 1  # transformers counts the token itself, the kernel does not
    # The stock norms may hand over float32 queries and keys under autocast; the kernel wants one half precision type.
    states = (state[0].transpose(0, 1).to(value.dtype) for state in (query, key, value))
    output = varlen_attn(
        *states,
        cu_seq_lens,
        cu_seq_lens,
        max_length,
        max_length,
        scale=scaling,
        window_size=(past, 0 if getattr(module, "is_causal", True) else past),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[None], None


def _no_mask(**_options: Any) -> None:
    """Bounds say it all."""


ALL_ATTENTION_FUNCTIONS.register(FLOAT32, _attention_float32)
ALL_MASK_ATTENTION_FUNCTIONS.register(FLOAT32, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
ALL_ATTENTION_FUNCTIONS.register(VARLEN, _attention_varlen)
ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, _no_mask)


def choose_attention(backbone: Any, *, device: torch.device, precision: Precision) -> None:
    """Switch a transformers model to the fastest attention that is right for it on ``device``; the stock choice stays otherwise.

    Neither of ours has a soft cap of the logits (Gemma 2), and the varlen kernel knows half precision only.
    """
    if precision is not Precision.BF16 or getattr(backbone.config, "attn_logit_softcapping", None) is not None:
        return
    name = {"cpu": FLOAT32, "cuda": VARLEN}.get(device.type)
    if name is not None:
        backbone.set_attn_implementation(name)
