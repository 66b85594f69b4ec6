"""What a submodel costs: bytes of weights, FLOPs of a token, bytes of a vector. All from its shape, none measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from mlembed_core.config.grid import Shape, Submodel

BYTES_FP32 = 4


class CountsParameters(Protocol):
    """What :func:`submodel_costs` needs of :class:`mlembed_core.model.encoder.Encoder`."""

    shape: Shape

    def num_parameters(self, submodel: Submodel) -> dict[str, int]: ...


@dataclass(frozen=True)
class Costs:
    """Of a physically cut model.

    Attributes:
        bytes_fp32: all weights, four bytes each.
        flops_per_token: of a forward pass, two per weight that a token is multiplied with: those of the layers, and V where the
            table is factorised. Looking a row up is free; attention between tokens, which grows with the text's length, is left out.
        bytes_per_vector: of the output in float32.
    """

    bytes_fp32: int
    flops_per_token: int
    bytes_per_vector: int


def submodel_costs(encoder: CountsParameters, submodel: Submodel) -> Costs:
    """Costs of ``submodel`` of the model behind ``encoder``."""
    counts = encoder.num_parameters(submodel)
    # The table is factorised exactly where that has fewer parameters than the dense one.
    hidden = encoder.shape.dim
    factorised = counts["table"] < encoder.shape.vocab * hidden
    projection = submodel.rank * hidden if factorised else 0
    return Costs(
        bytes_fp32=BYTES_FP32 * sum(counts.values()),
        flops_per_token=2 * (counts["layers"] + projection),
        bytes_per_vector=BYTES_FP32 * submodel.dim,
    )
