"""The trainable network: a stock transformers model whose depth is read out at several exits and whose table may be factorised.

Shapes: ``text`` number of texts, ``exit`` depths, ``hidden`` D; a bucket has ``batch`` rows of ``seq`` tokens. The state of exit l is
the pooled hidden state after l layers, passed through the model's own final norm where it has one (ML-Embed, arXiv 2605.15081, MLL);
it equals the output of a stock model that has only the first l layers. Only the pooled tokens are normed, and only they go through
the last layer past its attention, unless pooling takes the mean of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from mlembed_core.config.grid import Shape
from mlembed_core.config.model import Pooling
from mlembed_core.config.train import Checkpointing
from mlembed_core.errors import ConfigError
from mlembed_core.model.architecture import (
    Tail,
    embedding_scale,
    first_position,
    form_of,
    is_causal,
    name_of_table,
    set_submodule,
    tail_of,
)
from mlembed_core.model.attention import JOINING
from mlembed_core.model.low_rank import LowRankEmbedding, factorise
from mlembed_core.model.pack import Bucket, pack
from mlembed_core.model.recompute import recomputed


class Network(nn.Module):
    """Token ids in, pooled states at the exits out.

    Attributes:
        backbone: the stock model without its table and final norm.
        embedding: the table, dense or factorised.
        norm: the final norm; an identity where the model has none.
        pooling: which tokens of a text make its state.
        table_name: the token table's name in the stock model's state dict.
        embedding_scale: what the stock model multiplies the table's rows by.
        checkpointing: what the backward pass computes again instead of remembering it.

    Args:
        backbone: a text model of ``AutoModel``, of a form in ``model/architecture.py``. It is taken over: its table and final norm
            move into this module.
        rank: factorise the table to this rank, so that the dense table is no parameter any more; None keeps it dense.
        pooling: None: the last token of a causal model, the mean of a bidirectional one.

    Raises:
        SubmodelError: a model of no known form.
        ConfigError: pooling that reads nothing from a causal model.
    """

    def __init__(self, backbone: nn.Module, *, rank: int | None = None, pooling: Pooling | None = None) -> None:
        super().__init__()
        inner = cast("Any", backbone)
        self._form = form_of(backbone)
        self.causal = is_causal(backbone)
        self.pooling = pooling or (Pooling.LAST if self.causal else Pooling.MEAN)
        if self.causal and self.pooling is Pooling.CLS:
            raise ConfigError(
                "backbone.pooling=cls reads the first token, which sees no other in a causal model. Use last or mean, or null (by "
                "architecture)."
            )
        self.checkpointing = Checkpointing.NONE
        self.config = inner.config
        stock_table = inner.get_input_embeddings()
        self.table_name = name_of_table(backbone)
        self.embedding_scale = embedding_scale(stock_table)
        self._first_position = first_position(backbone)
        table = stock_table.weight.detach()
        self.embedding: nn.Module = LowRankEmbedding(*factorise(table, rank)) if rank is not None else DenseEmbedding(table.clone())
        self.norm: nn.Module = nn.Identity()
        if self._form.norm is not None:
            self.norm = inner.get_submodule(self._form.norm)
            set_submodule(inner, self._form.norm, nn.Identity())
        inner.set_input_embeddings(nn.Identity())
        self.backbone = inner
        self.train_everything()

    def train_everything(self) -> None:
        """Give every weight that is read a gradient."""
        self.requires_grad_(requires_grad=True)
        if getattr(self.backbone, "pooler", None) is not None:
            self.backbone.pooler.requires_grad_(requires_grad=False)  # BERT's head for next sentences: kept, never read

    @property
    def layers_name(self) -> str:
        """The list of layers, as the backbone names it."""
        return self._form.layers

    @property
    def layers(self) -> nn.ModuleList:
        return cast("nn.ModuleList", self.backbone.get_submodule(self.layers_name))

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def _table(self) -> LowRankEmbedding | DenseEmbedding:
        return cast("LowRankEmbedding | DenseEmbedding", self.embedding)

    @property
    def joins_texts(self) -> bool:
        """Whether buckets have to be rows of joined texts (``pack(…, joined=True)``)."""
        return self.config._attn_implementation in JOINING

    @property
    def shape(self) -> Shape:
        """Full size along the axes; a dense table has the rank of its smaller side."""
        if isinstance(self.embedding, LowRankEmbedding):
            vocab, rank = self.embedding.u.shape
        else:
            vocab, hidden = cast("Tensor", self.embedding.weight).shape
            rank = min(vocab, hidden)
        return Shape(layers=self.num_layers, dim=int(self.config.hidden_size), rank=rank, vocab=vocab)

    def cut(self, layers: int) -> None:
        """Drop the layers above the first ``layers``."""
        set_submodule(self.backbone, self.layers_name, self.layers[:layers])

    def stock_state_dict(self, *, table: bool = True) -> dict[str, Tensor]:
        """The weights by the stock model's names, the table multiplied out, or left out."""
        weights = {name: value.detach() for name, value in self.backbone.state_dict().items()}
        weights |= {f"{self._form.norm}.{name}": value.detach() for name, value in self.norm.state_dict().items()}
        if table:
            weights[self.table_name] = self._table.product()
        return {name: value.contiguous() for name, value in weights.items()}

    def forward(self, buckets: Sequence[Bucket], exits: Sequence[int], rank: int | None = None) -> Float[Tensor, "exit text hidden"]:
        """Pooled, normed states of all texts in the buckets, in the texts' own order."""
        order = torch.cat([bucket.order for bucket in buckets])
        ids = torch.cat([bucket.ids.flatten() for bucket in buckets])
        looked_up = torch.split(self._table.look_up(ids, rank), [bucket.ids.numel() for bucket in buckets])
        encode = recomputed(self._exit_states, self.checkpointing if self.training else Checkpointing.NONE)
        states = torch.cat([encode(bucket, rows, exits) for bucket, rows in zip(buckets, looked_up, strict=True)], dim=1)
        return states[:, torch.argsort(order)]

    def by_bucket(
        self,
        texts: Sequence[Sequence[int]] | Sequence[NDArray[np.integer]],
        exits: Sequence[int],
        rank: int | None = None,
        *,
        max_tokens: int | None,
    ) -> Iterator[tuple[NDArray[np.int64], Float[Tensor, "exit text hidden"]]]:
        """Pooled, normed states of texts, a bucket at a time, with the texts' numbers: in the memory of one bucket, however many texts.

        Args:
            max_tokens: of a bucket.
        """
        device = next(self.parameters()).device
        for bucket in pack(texts, max_tokens=max_tokens, joined=self.joins_texts):
            numbers = bucket.order.numpy()
            # It keeps its own order here, so that its rows go straight to their places.
            alone = replace(bucket, order=torch.arange(len(numbers))).to(device)
            yield numbers, self([alone], exits, rank)

    def _exit_states(
        self, bucket: Bucket, looked_up: Float[Tensor, "token width"], exits: Sequence[int]
    ) -> Float[Tensor, "exit text hidden"]:
        embedded = self._table.expand(looked_up).view(*bucket.ids.shape, -1)
        if self.embedding_scale != 1:
            embedded = embedded * self.embedding_scale
        with self._reading(bucket, exits) as pooled:
            self.backbone(inputs_embeds=embedded, **self._layout(bucket))
        states = torch.stack([pooled[depth] for depth in exits])
        # A mean does not commute with the norm, so its tokens have been normed before.
        return states if self.pooling is Pooling.MEAN else cast("Tensor", self.norm(states))

    def _layout(self, bucket: Bucket) -> dict[str, Any]:
        """What the stock model has to know of a bucket's texts."""
        options: dict[str, Any] = {"use_cache": False} if self.causal else {"attention_mask": bucket.mask}
        if bucket.cu_seq_lens is not None:
            # An all-ones mask would let joined texts see each other.
            options = {
                "use_cache": False,
                "position_ids": bucket.positions + self._first_position,
                "cu_seq_lens": bucket.cu_seq_lens,
                "max_length": int(bucket.lengths.max()),
            }
        return options

    @contextmanager
    def _reading(self, bucket: Bucket, exits: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """While the stock forward runs, hooks take the pooled states at the exits along."""
        pooled: dict[int, Tensor] = {}
        tail = None if self.pooling is Pooling.MEAN else tail_of(self.layers[-1])

        def keep(depth: int) -> Any:
            alone = tail is not None and depth == self.num_layers

            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                pooled[depth] = hidden.reshape(len(bucket.last), -1) if alone else self._pool(hidden, bucket)

            return hook

        handles = [self.layers[depth - 1].register_forward_hook(keep(depth)) for depth in exits]
        if tail is not None:
            joined = bucket.cu_seq_lens is not None
            handles += _only_pooled(self.layers[-1], tail, lambda hidden: self._pool(hidden, bucket).unsqueeze(0 if joined else 1))
        try:
            yield pooled
        finally:
            for handle in handles:
                handle.remove()

    def _pool(self, hidden: Float[Tensor, "batch seq hidden"], bucket: Bucket) -> Float[Tensor, "text hidden"]:
        if self.pooling is Pooling.MEAN:
            return bucket.means(self.norm(hidden))
        return hidden[bucket.rows, bucket.first if self.pooling is Pooling.CLS else bucket.last]


def _only_pooled(layer: nn.Module, tail: Tail, pick: Callable[[Tensor], Tensor]) -> list[Any]:
    """Let the last layer compute what follows its attention for the pooled tokens alone: nobody reads the others.

    The layer gets the pooled tokens, which make its residual stream; its first norm is handed all tokens instead, and so are the
    queries, keys and values; of the attention's output the pooled tokens go on.

    Args:
        pick: the pooled tokens of all.
    """
    everything: list[Tensor] = []

    def enter(_module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        everything.append(inputs[0])
        return (pick(inputs[0]), *inputs[1:]), options

    def all_tokens(_module: nn.Module, _inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (everything.pop(),)

    def leave(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(pick(value) for value in inputs)

    handles = [layer.get_submodule(tail.output).register_forward_pre_hook(leave)]
    if tail.norm is not None:
        handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(layer.get_submodule(tail.norm).register_forward_pre_hook(all_tokens))
    return handles


class DenseEmbedding(nn.Module):
    """A plain table with the calls of :class:`LowRankEmbedding`; cut in rank, it answers with its truncated SVD."""

    def __init__(self, weight: Float[Tensor, "vocab hidden"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self._factors: LowRankEmbedding | None = None

    def look_up(self, ids: Int[Tensor, "*tokens"], rank: int | None = None) -> Float[Tensor, "*tokens hidden"]:
        if rank is None or rank == min(self.weight.shape):
            return nn.functional.embedding(ids, self.weight)
        if self._factors is None or self.training:
            # A cut of a dense table is made for inference; a training step that asks for one pays for the SVD each time.
            self._factors = LowRankEmbedding(*factorise(self.weight, min(self.weight.shape))).requires_grad_(requires_grad=False)
        return self._factors.expand(self._factors.look_up(ids, rank))

    def expand(self, rows: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens hidden"]:
        return rows

    def product(self, rank: int | None = None) -> Tensor:
        """The table, or its best approximation of ``rank``."""
        if rank is None or rank == min(self.weight.shape):
            return self.weight.detach()
        u, v = factorise(self.weight.detach(), rank)
        return u @ v
