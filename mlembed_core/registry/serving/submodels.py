"""Every submodel of one loaded model, without a copy of its weights.

Shapes: ``text`` number of texts, ``hidden`` D, ``dim`` ≤ D.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import chain
from typing import Any

from jaxtyping import Float32
from numpy.typing import NDArray

from mlembed_core.config.grid import Shape, Submodel, resolve_submodel
from mlembed_core.model.encoder import Encoder, unit_vectors


class Submodels:
    """An encoder, and views of it at smaller depths that run no layer too many.

    A view has modules of its own but the same tensors, so that all of them together take the memory of one.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._whole = encoder
        self._views: dict[int, Encoder] = {encoder.network.num_layers: encoder}

    @property
    def limits(self) -> Shape:
        """The largest cut that is served: what the encoder was opened at."""
        sub = self._whole.submodel
        return Shape(layers=sub.layers, dim=sub.dim, rank=sub.rank, vocab=self._whole.shape.vocab)

    @property
    def max_length(self) -> int:
        return self._whole.max_length

    def resolve(self, *, layers: int | None = None, dim: int | None = None, rank: int | None = None) -> Submodel:
        """A cut; raises SubmodelError where it exceeds the limits."""
        return resolve_submodel(self.limits, layers=layers, dim=dim, rank=rank)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids as the model sees them, EOS last."""
        return self._whole.token_ids(texts)

    def states(self, ids: Sequence[Sequence[int]], *, layers: int, rank: int) -> Float32[NDArray[Any], "text hidden"]:
        """Pooled states of texts at one depth and rank; :func:`unit_vectors` makes vectors of any dim of them."""
        states: NDArray[Any] = self._view(layers).exit_states_of_ids(ids, rank=rank, layers=[layers])[0]
        return states

    def encode(self, texts: Sequence[str], submodel: Submodel) -> Float32[NDArray[Any], "text dim"]:
        """Unit vectors of texts that stand behind their prompts already."""
        return unit_vectors(self.states(self.token_ids(texts), layers=submodel.layers, rank=submodel.rank), submodel.dim)

    def _view(self, layers: int) -> Encoder:
        if layers not in self._views:
            network = self._whole.network
            shared = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
            view = copy.copy(self._whole)
            view.network = copy.deepcopy(network, shared)
            view.network.cut(layers)
            self._views[layers] = view
        return self._views[layers]
