"""Tiny random stock models of every architecture that the network is held to, in float64 and without dropout."""

from __future__ import annotations

import numpy as np
import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma2Config,
    Gemma2Model,
    Gemma3TextConfig,
    Gemma3TextModel,
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
    ModernBertConfig,
    ModernBertModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from mlembed_core.config.model import Pooling

VOCAB, HIDDEN, LAYERS = 97, 32, 4
FIRST_TOKEN = 2  # ids below are special: XLM-R counts positions from its padding id, 1

COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,  # large enough that attention is far from uniform
    "pad_token_id": None,
}
DECODER = {**COMMON, "num_key_value_heads": 2, "head_dim": 8}
GEMMA = {**DECODER, "query_pre_attn_scalar": 8, "sliding_window": 6}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

ARCHITECTURES = {
    "qwen3": (Qwen3Model, Qwen3Config, DECODER),
    "qwen2": (Qwen2Model, Qwen2Config, {key: value for key, value in DECODER.items() if key != "head_dim"}),
    "llama": (LlamaModel, LlamaConfig, DECODER),
    "gemma": (GemmaModel, GemmaConfig, DECODER),
    "gemma2": (Gemma2Model, Gemma2Config, GEMMA),
    "gemma3": (Gemma3TextModel, Gemma3TextConfig, {**GEMMA, "sliding_window_pattern": 2}),
    "gemma3_bidirectional": (Gemma3TextModel, Gemma3TextConfig, {**GEMMA, "use_bidirectional_attention": True}),
    "bert": (BertModel, BertConfig, {**COMMON, **NO_DROPOUT}),
    "xlm_roberta": (XLMRobertaModel, XLMRobertaConfig, {**COMMON, **NO_DROPOUT, "pad_token_id": 1}),
    "modernbert": (ModernBertModel, ModernBertConfig, {**COMMON, "local_attention": 8, "global_attn_every_n_layers": 2}),
}
CAUSAL = ("qwen3", "qwen2", "llama", "gemma", "gemma2", "gemma3")
# Each architecture with the poolings that make sense for it.
CASES = [(name, pooling) for name in ARCHITECTURES for pooling in Pooling if not (name in CAUSAL and pooling is Pooling.CLS)]


def stock(name="qwen3", layers=LAYERS, seed=0, **changes):
    model_class, config_class, settings = ARCHITECTURES[name]
    torch.manual_seed(seed)
    return model_class(config_class(**{**settings, "num_hidden_layers": layers, **changes})).double().eval()


def truncated(model, name, layers):
    """A stock model that never had more layers, with the weights of ``model``."""
    smaller = stock(name, layers=layers)
    missing, _ = smaller.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return smaller


def texts(seed=0, count=23, longest=40):
    rng = np.random.default_rng(seed)
    return [rng.integers(FIRST_TOKEN, VOCAB, size=length) for length in rng.integers(1, longest, size=count)]


def pool(states, pooling):
    """States of one text (seq, hidden) to its vector."""
    return {Pooling.LAST: states[-1], Pooling.MEAN: states.mean(dim=0), Pooling.CLS: states[0]}[pooling]


def one_by_one(model, ids, pooling=Pooling.LAST):
    with torch.no_grad():
        return torch.stack([pool(model(torch.from_numpy(text)[None]).last_hidden_state[0], pooling) for text in ids])
