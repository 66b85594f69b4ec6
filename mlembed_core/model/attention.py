"""Attention where the stock choice is slow: over joined texts of different lengths, and in float32 on CPUs.

Registered with transformers under names of their own, so that the stock model classes run unchanged.

``mlembed_varlen``: all texts of a bucket stand one behind the other in a single row, and attention gets their bounds, so that no
token is padding and no mask is built (``torch.nn.attention.varlen``, FlashAttention's kernel on CUDA).

``mlembed_by_text``: the same on CPUs, for causal models: the rest of the network sees one row, attention a text at a time (texts of one
length together).

``sdpa_float32``: for the others on CPUs, whose kernels of scaled dot-product attention are several times slower in bfloat16 than in
float32 (mostly the backward pass), and less exact. By text, too, attention is in float32 there.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mlembed_core.config.base import Precision
from mlembed_core.model.architecture import is_causal

FLOAT32 = "sdpa_float32"
VARLEN = "mlembed_varlen"
BY_TEXT = "mlembed_by_text"
JOINING = (VARLEN, BY_TEXT)  # want their texts in joined rows


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
    query, key, value = (state[0].transpose(0, 1).to(value.dtype) for state in (query, key, value))
    output = varlen_attn(
        query,
        key,
        value,
        cu_seq_lens,
        cu_seq_lens,
        max_length,
        max_length,
        scale=scaling,
        window_size=(past, 0 if getattr(module, "is_causal", True) else past),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast("Tensor", output)[None], None


def _attention_by_text(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: None,
    *,
    scaling: float,
    cu_seq_lens: Tensor,
    sliding_window: int | None = None,
    **_options: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each of the joined texts, in float32 at least; shapes as in :func:`_attention_varlen`."""
    dtype, heads = value.dtype, query.shape[1]
    runs = [(length, len(list(same))) for length, same in groupby(cu_seq_lens.diff().tolist())]
    outputs = []
    with torch.autocast(query.device.type, enabled=False):
        states = [_repeated(state.float() if state.dtype.itemsize < 4 else state, heads) for state in (query, key, value)]
        # Split, not sliced: the gradients of a split are put together once, those of a slice added up at full size.
        parts = zip(*(state[0].split_with_sizes([length * count for length, count in runs], dim=1) for state in states), strict=True)
        for (length, count), part in zip(runs, parts, strict=True):
            q, k, v = (state.unflatten(1, (count, length)).transpose(0, 1) for state in part)
            near = None if sliding_window is None or length <= sliding_window else _band(length, sliding_window)
            output = functional.scaled_dot_product_attention(q, k, v, attn_mask=near, is_causal=near is None, scale=scaling)
            outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None].to(dtype), None


def _repeated(state: Tensor, heads: int) -> Tensor:
    """Keys or values of grouped queries, once for each query head."""
    return state if state.shape[1] == heads else state.repeat_interleave(heads // state.shape[1], dim=1)


def _band(length: int, window: int) -> Tensor:
    """Which keys a query sees: itself and those before it, ``window`` in all."""
    behind = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    return (behind >= 0) & (behind < window)


def _no_mask(**_options: Any) -> None:
    """Bounds say it all."""


ALL_ATTENTION_FUNCTIONS.register(FLOAT32, _attention_float32)
ALL_MASK_ATTENTION_FUNCTIONS.register(FLOAT32, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
ALL_ATTENTION_FUNCTIONS.register(VARLEN, _attention_varlen)
ALL_MASK_ATTENTION_FUNCTIONS.register(VARLEN, _no_mask)
ALL_ATTENTION_FUNCTIONS.register(BY_TEXT, _attention_by_text)
ALL_MASK_ATTENTION_FUNCTIONS.register(BY_TEXT, _no_mask)


def choose_attention(backbone: Any, *, device: torch.device, precision: Precision) -> None:
    """Switch a transformers model to the fastest attention that is right for it on ``device``; the stock choice stays otherwise.

    None of ours has a soft cap of the logits (Gemma 2), and the varlen kernel knows half precision only.
    """
    if getattr(backbone.config, "attn_logit_softcapping", None) is not None:
        return
    half = precision is Precision.BF16
    if device.type == "cpu" and is_causal(backbone):
        backbone.set_attn_implementation(BY_TEXT)
    elif device.type == "cpu" and half:
        backbone.set_attn_implementation(FLOAT32)
    elif device.type == "cuda" and half:
        backbone.set_attn_implementation(VARLEN)
