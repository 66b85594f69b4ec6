"""Submodels: points (layers, dim, rank) of the 3D grid, their names and their check against a model's shape."""

from __future__ import annotations

from dataclasses import dataclass

from mlembed_core.errors import SubmodelError


@dataclass(frozen=True, order=True)
class Submodel:
    """A cut of a model: the first ``layers`` layers, the first ``dim`` output dimensions, the first ``rank`` columns of U."""

    layers: int
    dim: int
    rank: int

    @property
    def name(self) -> str:
        """E.g. ``l4-d64-r128``."""
        return f"l{self.layers}-d{self.dim}-r{self.rank}"


@dataclass(frozen=True)
class Shape:
    """The full size of a model along the three axes, and the vocabulary."""

    layers: int
    dim: int
    rank: int
    vocab: int

    @property
    def full(self) -> Submodel:
        return Submodel(self.layers, self.dim, self.rank)


def resolve_submodel(shape: Shape, *, layers: int | None = None, dim: int | None = None, rank: int | None = None) -> Submodel:
    """A cut of a model of this shape; None leaves an axis whole.

    Raises:
        SubmodelError: a cut larger than the model; silently serving the full model instead would look like success.
    """
    sizes = {}
    for axis, wanted in (("layers", layers), ("dim", dim), ("rank", rank)):
        full = getattr(shape, axis)
        if wanted is not None and not 1 <= wanted <= full:
            raise SubmodelError(f"{axis}={wanted} is out of range: this model has {axis} 1 … {full}")
        sizes[axis] = full if wanted is None else wanted
    return Submodel(**sizes)
