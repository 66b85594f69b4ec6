"""A stock transformers model whose token table stays the product of two factors.

This file is complete in itself: an export in the factorised form carries a copy of it, so that transformers loads the folder alone
(``trust_remote_code=True``). Where mlembed is installed, ``mlembed_core.export.formats.register`` makes that unnecessary.

Shapes: ``vocab`` V, ``rank`` r, ``hidden`` D. U is (V, r), V is (r, D).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel


class FactorisedConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not typed
    """The stock model's configuration, and the rank of its table.

    Args:
        backbone: ``config.json`` of the stock model, ``model_type`` included.
        rank: of the token table.
        embedding_scale: what the stock model multiplies its table's rows by (Gemma); 1 for others.
    """

    model_type = "mlembed_factorised"

    def __init__(self, backbone: dict[str, Any] | None = None, rank: int = 1, embedding_scale: float = 1.0, **kwargs: Any) -> None:
        self.backbone = backbone or {}
        self.rank = rank
        self.embedding_scale = embedding_scale
        # What other libraries ask a text model's configuration for.
        for key in ("hidden_size", "num_hidden_layers", "vocab_size", "max_position_embeddings", "pad_token_id"):
            kwargs.setdefault(key, self.backbone.get(key))
        super().__init__(**kwargs)


class FactorisedTable(nn.Module):
    """Looks tokens up in U, then multiplies the few rows found by V."""

    def __init__(self, vocab: int, rank: int, hidden: int, scale: float) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.zeros(vocab, rank))
        self.v = nn.Parameter(torch.zeros(rank, hidden))
        self.scale = scale

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (…, hidden) of ids (…)."""
        return nn.functional.embedding(ids, self.u) @ self.v * self.scale


class FactorisedModel(PreTrainedModel):  # type: ignore[misc]
    """The stock model behind a :class:`FactorisedTable`; its outputs are the stock model's own."""

    config_class = FactorisedConfig
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: FactorisedConfig) -> None:
        super().__init__(config)
        stock = dict(config.backbone)
        # Its own table is never filled: from_pretrained builds models without memory, and this one is replaced at once.
        self.backbone = AutoModel.from_config(AutoConfig.for_model(stock.pop("model_type"), **stock))
        vocab, hidden = self.backbone.get_input_embeddings().weight.shape
        self.backbone.set_input_embeddings(FactorisedTable(vocab, config.rank, hidden, config.embedding_scale))
        self.post_init()

    def get_input_embeddings(self) -> Any:
        """The factorised table."""
        return self.backbone.get_input_embeddings()

    def forward(self, input_ids: torch.Tensor | None = None, attention_mask: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """As the stock model."""
        return self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
