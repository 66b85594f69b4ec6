"""Cut a submodel out of a trained model, write it, and let the probe say whether it is the same.

The golden texts are encoded with the submodel in memory before anything is cut; what is written beside the target is read back in a
fresh process and compared, and only then moved into place.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import MANIFEST, manifest_hash, read_manifest, write_manifest
from mlembed_core.config.grid import Shape, Submodel, resolve_submodel
from mlembed_core.errors import ArtifactError
from mlembed_core.export.export import Export
from mlembed_core.export.formats import TORCH_TYPES, computed_bytes, open_encoder, write_folder
from mlembed_core.export.golden import golden_texts, lowest_cosine, write_golden
from mlembed_core.export.kinds import Format, StoredType
from mlembed_core.export.new_folder import check_is_new, new_folder
from mlembed_core.export.verify import Probe, Verification, verify
from mlembed_core.model.checkpoint import read_facts
from mlembed_core.model.encoder import Encoder, weights_hash
from mlembed_core.model.low_rank import LowRankEmbedding, factorise
from mlembed_core.model.network import DenseEmbedding

# Rounding weights to bf16 costs some 1e-4 of cosine; a vector that moves more than this is not the model that was scored.
LOWEST_COSINE = 0.99


def take_out(
    source: Path,
    target: Path | None,
    probe: Probe,
    *,
    layers: int | None,
    dim: int | None,
    rank: int | None,
    form: Format,
    dtype: StoredType,
    instruction: str | None,
) -> Export:
    """What :func:`mlembed_core.export.export.export` promises."""
    submodel = resolve_submodel(Shape(**read_facts(source)["shape"]), layers=layers, dim=dim, rank=rank)
    target = target or default_target(source, submodel, form, dtype)
    check_is_new(target)
    origin = source_facts(source)
    encoder = open_encoder(source, layers=layers, dim=dim, rank=rank)
    texts = golden_texts(instruction)
    exact = encoder.encode_documents(texts)
    cut(encoder, form)
    golden = exact
    if dtype is not StoredType.FP32:
        _round(encoder, dtype)
        golden = encoder.encode_documents(texts)
    cosine = lowest_cosine(exact, golden)
    if cosine < LOWEST_COSINE:
        raise ArtifactError(
            f"stored as {dtype}, {source} gives vectors whose cosine to its own falls to {cosine:.4f} (allowed: {LOWEST_COSINE}). "
            "Export it with --dtype fp32 or bf16."
        )
    facts = {"format": form.value, "dtype": dtype.value, "submodel": asdict(submodel), "instruction": instruction}
    with new_folder(target) as draft:
        details = {"export": facts}
        write_folder(draft, encoder.network, dim=submodel.dim, dtype=dtype, source=source, instruction=instruction, details=details)
        expected = computed_bytes(encoder.network, dtype)
        write_golden(draft, golden, {**facts, "source": origin, "lowest_cosine": round(cosine, 6), "computed_bytes": expected})
        write_manifest(draft, stage="export", params=facts, details={"source": origin})
        verification = verify(draft, probe=probe)
    weights = sum(path.stat().st_size for path in target.glob("*.safetensors"))
    named = Verification(**{**verification.as_dict(), "folder": str(target)})
    return Export(str(target), submodel.name, form, dtype, weights, expected, cosine, named)


def cut(encoder: Encoder, form: Format) -> None:
    """Leave in the encoder's network what its submodel needs, the table in the form that is asked for; it is whole afterwards."""
    submodel, network = encoder.submodel, encoder.network
    network.cut(submodel.layers)
    table = network.embedding
    if form is Format.COMPAT:
        assert isinstance(table, LowRankEmbedding | DenseEmbedding)
        network.embedding = DenseEmbedding(table.product(submodel.rank))
    elif isinstance(table, LowRankEmbedding):
        network.embedding = LowRankEmbedding(table.u[:, : submodel.rank].clone(), table.v[: submodel.rank].clone())
    else:
        assert isinstance(table, DenseEmbedding)
        network.embedding = LowRankEmbedding(*factorise(table.weight.detach(), submodel.rank))
    network.requires_grad_(requires_grad=False)
    encoder.submodel = replace(submodel, rank=network.shape.rank)


def source_facts(source: Path) -> dict[str, Any]:
    """Where an export comes from: the hash of the weights, and of the manifest with all that lies behind it."""
    manifest = read_manifest(source) if (source / MANIFEST).is_file() else None
    return {
        "weights": weights_hash(source),
        "manifest": None if manifest is None else manifest_hash(source),
        "inputs": {} if manifest is None else manifest["inputs"],
    }


def default_target(source: Path, submodel: Submodel, form: Format, dtype: StoredType) -> Path:
    """E.g. ``exports/3d-l1-d64-r64-compat-fp32``, in the current folder."""
    return Path("exports") / f"{source.resolve().name}-{submodel.name}-{form}-{dtype}"


def _round(encoder: Encoder, dtype: StoredType) -> None:
    """Give the weights the values that they will have on disk. Buffers that are computed (rotary frequencies) are not stored."""
    for parameter in encoder.network.parameters():
        parameter.data = parameter.data.to(TORCH_TYPES[dtype]).float()
