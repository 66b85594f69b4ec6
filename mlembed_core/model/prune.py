"""A smaller decoder out of a larger one: widths by what its activations say on real text, depth by keeping the first layers.

ML-Embed makes its 80M, 160M and 330M models so from the 0.6B (arXiv 2605.15081; the method: Minitron, arXiv 2407.14679). The residual
stream keeps the dimensions whose activations are largest, the same ones in every layer; each layer's MLP keeps its own largest
neurons. Heads stay as they are. Norms divide by the root mean square over D, so their weights grow by √(D / kept): dimensions that were
zero can go without any change. What comes out is a stock model of the same class.

Shapes: ``hidden`` D, ``mlp`` the inner width.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mlembed_core.config.model import PruneParams
from mlembed_core.errors import ConfigError
from mlembed_core.model.architecture import embedding_scale, form_of
from mlembed_core.model.pack import Bucket

FROM_HIDDEN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
TO_HIDDEN = ("self_attn.o_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


def prune(model: nn.Module, params: PruneParams, buckets: Iterable[Bucket]) -> nn.Module:
    """A model of the sizes in ``params``; those that are None, or the model's own, change nothing.

    Args:
        model: a stock decoder of the Qwen or Llama form; left as it is.
        buckets: calibration texts (:func:`mlembed_core.model.pack.pack`).

    Raises:
        ConfigError: a size larger than the model's, another form, or nothing to calibrate on.
    """
    _check(model, cast("Any", model).config, params)
    return prune_by(model, params, *activation_norms(model, buckets))


def prune_by(
    model: nn.Module, params: PruneParams, hidden_norms: Float[Tensor, "hidden"], mlp_norms: list[Float[Tensor, "mlp"]]
) -> nn.Module:
    """As :func:`prune`, keeping the dimensions and neurons whose numbers are largest, whatever these are."""
    config = cast("Any", model).config
    layers = params.num_hidden_layers or config.num_hidden_layers
    kept = _largest(hidden_norms, params.hidden_size or config.hidden_size)
    pruned_config = copy.deepcopy(config)
    pruned_config.hidden_size = len(kept)
    pruned_config.intermediate_size = params.intermediate_size or config.intermediate_size
    pruned_config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        pruned_config.layer_types = config.layer_types[:layers]
    pruned = type(model)(pruned_config).to(next(model.parameters()).dtype)
    weights = dict(model.state_dict())
    neurons = [_largest(norms, pruned_config.intermediate_size) for norms in mlp_norms[:layers]]
    pruned.load_state_dict(
        {name: _cut(name, weights[name], kept, neurons, config.hidden_size).contiguous() for name in pruned.state_dict()}
    )
    return pruned


@torch.no_grad()
def activation_norms(model: nn.Module, buckets: Iterable[Bucket]) -> tuple[Float[Tensor, "hidden"], list[Float[Tensor, "mlp"]]]:
    """Root mean squares over the tokens of all texts: of the normed residual stream, summed over all layers, and of each MLP's neurons.

    The residual stream is read behind each layer's norms, that is as its users see it: without that, the last layers, where it is
    largest, would decide alone.

    Raises:
        ConfigError: no texts.
    """
    config = cast("Any", model).config
    hidden = torch.zeros(config.hidden_size, dtype=torch.float64)
    mlps = [torch.zeros(config.intermediate_size, dtype=torch.float64) for _ in range(config.num_hidden_layers)]
    tokens = 0
    training = model.training
    model.eval()
    try:
        for bucket in buckets:
            columns = torch.arange(bucket.ids.shape[1])
            mask = columns[None] <= bucket.last[:, None]
            tokens += int(mask.sum())
            with _listening(model, mask, hidden, mlps):
                model(input_ids=bucket.ids, use_cache=False)
    finally:
        model.train(training)
    if not tokens:
        raise ConfigError("backbone.prune: there are no texts to calibrate on; the training cache is empty")
    return (hidden / tokens).sqrt(), [(sums / tokens).sqrt() for sums in mlps]


@contextmanager
def _listening(model: nn.Module, mask: Tensor, hidden: Tensor, mlps: list[Tensor]) -> Iterator[None]:
    """While the model runs, hooks add up the squares at the tokens of ``mask``."""

    def add(sums: Tensor) -> Any:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sums.add_(inputs[0][mask].double().square().sum(dim=0))

        return hook

    handles = []
    for layer, sums in zip(_layers(model), mlps, strict=True):
        handles += [layer.get_submodule(name).register_forward_pre_hook(add(hidden)) for name in ("self_attn.q_proj", "mlp.gate_proj")]
        handles.append(layer.get_submodule("mlp.down_proj").register_forward_pre_hook(add(sums)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cut(name: str, weight: Tensor, hidden: Int[Tensor, "kept"], neurons: list[Int[Tensor, "kept_neurons"]], full: int) -> Tensor:
    """The part of a weight that stays, by its name in the state dict."""
    parts = name.split(".")
    growth = math.sqrt(full / len(hidden))
    if "layers" not in parts:  # the table (vocab, hidden) and the final norm (hidden)
        return weight[:, hidden] if weight.ndim == 2 else growth * weight[hidden]
    layer = int(parts[parts.index("layers") + 1])
    module = ".".join(parts[parts.index("layers") + 2 : -1])
    if module in NORMS:
        return growth * weight[hidden]
    if module in FROM_HIDDEN and weight.ndim == 2:
        weight = weight[:, hidden]
    if module in TO_HIDDEN:
        weight = weight[hidden]
    if module in {"mlp.gate_proj", "mlp.up_proj"}:
        return weight[neurons[layer]]
    if module == "mlp.down_proj" and weight.ndim == 2:
        return weight[:, neurons[layer]]
    return weight  # biases of heads, norms of queries and keys


def _largest(norms: Tensor, size: int) -> Int[Tensor, "size"]:
    """Positions of the ``size`` largest, in their own order; of equal ones the first."""
    return torch.sort(torch.sort(norms, descending=True, stable=True).indices[:size]).values


def _layers(model: nn.Module) -> nn.ModuleList:
    return cast("nn.ModuleList", model.get_submodule(form_of(model).layers))


def _check(model: nn.Module, config: Any, params: PruneParams) -> None:
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers"):
        wanted = getattr(params, key)
        if wanted is not None and wanted > getattr(config, key):
            raise ConfigError(f"backbone.prune.{key}={wanted} exceeds the model's {getattr(config, key)}; pruning only makes smaller")
    known = {name.split(".")[0] for name in (*FROM_HIDDEN, *TO_HIDDEN, *NORMS)}
    children = {name for name, _ in _layers(model)[0].named_children()}
    if form_of(model).layers != "layers" or children != known or embedding_scale(cast("Any", model).get_input_embeddings()) != 1:
        raise ConfigError(
            f"backbone.prune is made for decoders of the Qwen and Llama form, not for {type(model).__name__}; leave it out (null)"
        )
