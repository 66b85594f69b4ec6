"""The trainable network: a stock transformers decoder whose depth is read out at several exits and whose table may be factorised.

Shapes: ``batch`` texts, ``exit`` depths, ``hidden`` D. The state of exit l is the hidden state of the last (EOS) token after l
layers, passed through the model's own final norm (ML-Embed, arXiv 2605.15081, MLL); it equals the output of a stock model that
has only the first l layers. Only the pooled tokens are normed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mlembed_core.config.grid import Shape
from mlembed_core.errors import SubmodelError
from mlembed_core.model.low_rank import LowRankEmbedding, factorise
from mlembed_core.model.pack import Bucket


class Network(nn.Module):
    """Token ids in, pooled states at the exits out.

    Args:
        backbone: a decoder of ``AutoModel`` (attributes ``layers``, ``norm`` and an input embedding). It is taken over: its table
            and final norm move into this module.
        rank: factorise the table to this rank, so that the dense table is no parameter any more; None keeps it dense.
    """

    def __init__(self, backbone: nn.Module, *, rank: int | None = None) -> None:
        super().__init__()
        inner = cast("Any", backbone)
        if not (hasattr(inner, "layers") and hasattr(inner, "norm")):
            raise SubmodelError(
                f"{type(backbone).__name__} has no `layers` and `norm`: exits are known for decoders of the Qwen and Llama form. "
                "Use such a backbone."
            )
        self.config = inner.config
        table = inner.get_input_embeddings().weight
        self.embedding: nn.Module = (
            LowRankEmbedding(*factorise(table.detach(), rank)) if rank is not None else DenseEmbedding(table.detach().clone())
        )
        self.norm: nn.Module = inner.norm
        inner.norm = nn.Identity()
        inner.set_input_embeddings(nn.Identity())
        self.backbone = inner

    @property
    def num_layers(self) -> int:
        return len(self.backbone.layers)

    @property
    def shape(self) -> Shape:
        """Full size along the axes; a dense table has the rank of its smaller side."""
        if isinstance(self.embedding, LowRankEmbedding):
            vocab, rank = self.embedding.u.shape
        else:
            vocab, hidden = cast("Tensor", self.embedding.weight).shape
            rank = min(vocab, hidden)
        return Shape(layers=self.num_layers, dim=int(self.config.hidden_size), rank=rank, vocab=vocab)

    def forward(self, buckets: Sequence[Bucket], exits: Sequence[int], rank: int | None = None) -> Float[Tensor, "exit batch hidden"]:
        """Pooled, normed states of all texts in the buckets, in the texts' own order."""
        order = torch.cat([bucket.order for bucket in buckets])
        states = torch.cat([self._exit_states(bucket, exits, rank) for bucket in buckets], dim=1)
        return states[:, torch.argsort(order)]

    def _exit_states(self, bucket: Bucket, exits: Sequence[int], rank: int | None) -> Float[Tensor, "exit batch hidden"]:
        pooled: dict[int, Tensor] = {}
        rows = torch.arange(len(bucket.last), device=bucket.last.device)

        def keep(depth: int) -> Any:
            # The hook lets the stock forward run as it is and takes just the pooled tokens along.
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                pooled[depth] = hidden[rows, bucket.last]

            return hook

        handles = [self.backbone.layers[depth - 1].register_forward_hook(keep(depth)) for depth in exits]
        handles += _only_pooled(self.backbone.layers[-1], rows, bucket.last)
        try:
            self.backbone(inputs_embeds=self.embedding(bucket.ids, rank), use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return cast("Tensor", self.norm(torch.stack([pooled[depth] for depth in exits])))


def _only_pooled(layer: nn.Module, rows: Tensor, last: Tensor) -> list[Any]:
    """Let the last layer compute what follows its attention for the pooled tokens alone: nobody reads the others.

    The output projection and the MLP get one token per text; adding that to the residual stream broadcasts it, which is right at
    the pooled token and of no consequence elsewhere. Layers with other names inside compute everything.
    """
    attention = getattr(layer, "self_attn", None)
    modules = (getattr(attention, "o_proj", None), getattr(layer, "post_attention_layernorm", None))

    def pick(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (inputs[0][rows, last][:, None],)

    return [module.register_forward_pre_hook(pick) for module in modules if module is not None]


class DenseEmbedding(nn.Module):
    """A plain table with the call of :class:`LowRankEmbedding`; cut in rank, it answers with its truncated SVD."""

    def __init__(self, weight: Float[Tensor, "vocab hidden"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self._factors: LowRankEmbedding | None = None

    def forward(self, ids: Tensor, rank: int | None = None) -> Tensor:
        if rank is None or rank == min(self.weight.shape):
            return nn.functional.embedding(ids, self.weight)
        if self._factors is None or self.training:
            # A cut of a dense table is made for inference; a training step that asks for one pays for the SVD each time.
            self._factors = LowRankEmbedding(*factorise(self.weight, min(self.weight.shape))).requires_grad_(requires_grad=False)
        return cast("Tensor", self._factors(ids, rank))

    def product(self, rank: int | None = None) -> Tensor:
        """The table, or its best approximation of ``rank``."""
        if rank is None or rank == min(self.weight.shape):
            return self.weight.detach()
        u, v = factorise(self.weight.detach(), rank)
        return u @ v
