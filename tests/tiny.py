"""A tiny random Qwen3, for tests that need a real decoder of no particular shape."""

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3Model


def tiny_qwen3(*, seed: int, **changes: Any) -> Qwen3Model:
    """Two layers of width 16, the weights a function of ``seed`` and large enough that attention is far from uniform.

    Args:
        changes: other fields of the configuration; ``vocab_size`` is always among them.
    """
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 32,
        "pad_token_id": None,
        "initializer_range": 0.3,
    }
    torch.manual_seed(seed)
    return Qwen3Model(Qwen3Config(**(shape | changes)))
