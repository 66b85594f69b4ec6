"""A tiny random Qwen3 and a tokenizer of bytes, for tests that need a real model of no particular shape."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import Qwen3Config, Qwen3Model

from mlembed_core.artifacts import write_manifest


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


def tokenizer_folder(path: Path, max_length: int = 20) -> Path:
    """The out of stage ``tokenizer`` with 258 tokens: bytes, an EOS that ends every text, and padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<eos>": 0, "<pad>": 1, **{symbol: index + 2 for index, symbol in enumerate(alphabet)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<eos>", "<pad>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 0)])
    path.mkdir()
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "pad_token": "<pad>", "model_max_length": max_length}
    (path / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "right"}))
    write_manifest(path, stage="tokenizer", params={})
    return path
