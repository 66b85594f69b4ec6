"""Where stock transformers models keep what the network reads, hooks and replaces.

One table of forms instead of a class per architecture: a decoder of the Qwen, Llama and Gemma form, ModernBERT, and BERT with its
descendants. What a module computes stays its own business; only names of submodules are known here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from mlembed_core.errors import SubmodelError


@dataclass(frozen=True)
class Form:
    """Names of a model's parts.

    Attributes:
        layers: the list of layers.
        norm: the final norm, through which every exit passes; None where each layer ends in its own.
    """

    layers: str
    norm: str | None


FORMS = (
    Form("layers", "norm"),  # Qwen, Llama, Gemma, Mistral, OLMo …
    Form("layers", "final_norm"),  # ModernBERT
    Form("encoder.layer", None),  # BERT, RoBERTa, XLM-R
)


@dataclass(frozen=True)
class Tail:
    """Names in a layer from which on every token is on its own, so that a layer whose other tokens nobody reads can go on with some.

    Attributes:
        norm: takes the layer's input for the attention, which needs all tokens; None where the attention has the residual inside.
        output: takes the attention's output.
    """

    norm: str | None
    output: str


DECODER = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
# By the names inside a layer, which tell its order.
TAILS = {
    DECODER: Tail("input_layernorm", "self_attn.o_proj"),
    DECODER | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}: Tail("input_layernorm", "self_attn.o_proj"),
    frozenset({"attn_norm", "attn", "mlp_norm", "mlp"}): Tail("attn_norm", "attn.Wo"),
    frozenset({"attention", "intermediate", "output"}): Tail(None, "attention.output"),
}


def form_of(backbone: nn.Module) -> Form:
    """The form of ``backbone``.

    Raises:
        SubmodelError: none of those known.
    """
    for form in FORMS:
        if all(_has(backbone, name) for name in (form.layers, form.norm) if name is not None):
            return form
    known = ", ".join(f"`{form.layers}`" + (f" and `{form.norm}`" if form.norm else "") for form in FORMS)
    raise SubmodelError(
        f"{type(backbone).__name__} has none of the forms whose exits are known ({known}). Use a text decoder of the Qwen, Llama or "
        "Gemma form, ModernBERT, or an encoder of the BERT form."
    )


def is_causal(backbone: nn.Module) -> bool:
    """Whether no token sees what comes after it; the stock attention modules say so themselves."""
    return all(module.is_causal for module in backbone.modules() if hasattr(module, "is_causal"))


def embedding_scale(table: nn.Module) -> float:
    """What the token embedding multiplies its rows by (Gemma: √hidden, rounded as the stock buffer is), 1 where it does not."""
    scale = getattr(table, "embed_scale", None)
    return 1.0 if scale is None else float(scale)


def first_position(backbone: nn.Module) -> int:
    """The position id of a text's first token: 0, but one past the padding id for RoBERTa's and XLM-R's learned positions."""
    padding = getattr(getattr(backbone, "embeddings", None), "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def name_of_table(backbone: nn.Module) -> str:
    """The state dict's name of the token table."""
    table = cast("Any", backbone).get_input_embeddings()
    return next(f"{name}.weight" for name, module in backbone.named_modules() if module is table)


def set_submodule(parent: nn.Module, name: str, module: nn.Module) -> None:
    """``parent.<name> = module`` for a dotted name."""
    *path, last = name.split(".")
    setattr(parent.get_submodule(".".join(path)), last, module)


def tail_of(layer: nn.Module) -> Tail | None:
    """Where tokens become independent in ``layer``; None where its order is not known."""
    return TAILS.get(frozenset(name for name, _ in layer.named_children()))


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
