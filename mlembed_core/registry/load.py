"""From a reference to an encoder; :mod:`mlembed_core.registry.resolve` finds the folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlembed_core.registry.resolve import resolve

if TYPE_CHECKING:
    from mlembed_core.model.encoder import Encoder


def load(ref: str | Path, *, layers: int | None = None, dim: int | None = None, rank: int | None = None) -> Encoder:
    """Open a model at a submodel.

    Args:
        ref: a checkpoint or export folder (``models/3d``), ``models:/NAME@alias``, ``models:/NAME/VERSION``, or ``ORG/NAME@COMMIT``
            of the hub (a full commit; ``HF_ENDPOINT`` names a mirror, what was fetched once needs no network).
        layers, dim, rank: the submodel; None leaves that axis whole.

    Raises:
        ArtifactError: no checkpoint of ours in the folder, or a damaged one (`mlembed import` takes others in).
        MachineError: the hub cannot be reached, or has no such commit.
        RegistryError: no such model, alias or version, or no MLflow to ask.
        SubmodelError: a cut larger than the model.
    """
    folder = resolve(ref)
    # Torch is loaded only once it is clear that there is something to open.
    from mlembed_core.export.formats import open_encoder

    return open_encoder(folder, layers=layers, dim=dim, rank=rank)
