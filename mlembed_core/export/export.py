"""``mlembed export``: one submodel, taken out of a trained model as a small checkpoint of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlembed_core.export.kinds import Format, StoredType
from mlembed_core.export.verify import Probe, Verification


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        weight_bytes: of the weight files; ``computed_bytes`` what the shapes say.
        cosine: the lowest between a golden text's vector before and after the weights were rounded.
    """

    folder: str
    submodel: str
    format: Format
    dtype: StoredType
    weight_bytes: int
    computed_bytes: int
    cosine: float
    verification: Verification

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def summary(self) -> str:
        size = f"{self.weight_bytes / 2**20:.2f} MiB of weights (computed {self.computed_bytes / 2**20:.2f})"
        rounding = "" if self.dtype is StoredType.FP32 else f", lowest cosine to float32 {self.cosine:.5f}"
        return f"{self.submodel}, {self.format}, {self.dtype}: {size}{rounding}\n{self.verification.summary}"


def export(
    source: Path,
    target: Path | None = None,
    *,
    layers: int | None = None,
    dim: int | None = None,
    rank: int | None = None,
    form: Format = Format.COMPAT,
    dtype: StoredType = StoredType.FP32,
    instruction: str | None = None,
) -> Export:
    """Write the submodel of the checkpoint ``source`` to a new folder.

    Args:
        target: None takes ``exports/``, named by what is in it.
        instruction: of queries, written where sentence-transformers finds it.

    Raises:
        ArtifactError: ``source`` is damaged or no checkpoint, ``target`` exists, or rounding to ``dtype`` moves vectors too far.
        SubmodelError: a cut larger than the model.
        VerificationError: what was written does not give the submodel's vectors; nothing is left.
    """
    with Probe() as probe:  # it loads its libraries while this process does
        from mlembed_core.export.slice import take_out

        return take_out(source, target, probe, layers=layers, dim=dim, rank=rank, form=form, dtype=dtype, instruction=instruction)
