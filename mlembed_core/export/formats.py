"""The two forms of an export, and how they are opened again.

compat: a stock transformers model with its table multiplied out, loaded by transformers and sentence-transformers as it is.
factorised: the low-rank table is kept, which is what makes the folder and the memory small (``export/factorised.py``).
Both are sentence-transformers folders that end in vectors of unit length at the cut dim.

Shapes: ``hidden`` D, ``dim`` ≤ D.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from mlembed_core.artifacts import read_json, write_json
from mlembed_core.config.base import Precision
from mlembed_core.config.grid import Shape, resolve_submodel
from mlembed_core.config.model import Pooling
from mlembed_core.export import factorised
from mlembed_core.export.factorised import FactorisedConfig, FactorisedModel
from mlembed_core.export.kinds import StoredType
from mlembed_core.model.checkpoint import (
    CHECKPOINT_FACTS,
    FORMAT_VERSION,
    TOKENIZER_FILES,
    read_facts,
    write_config,
    write_sentence_transformers,
)
from mlembed_core.model.encoder import Encoder
from mlembed_core.model.low_rank import LowRankEmbedding
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import load_folder
from mlembed_core.prompts import query_prompt

MODELLING_FILE = "modeling_mlembed.py"
CUT_FOLDER = "2_Dense"  # the module that shortens the vector, between pooling and unit length
MAX_SHARD_SIZE = "5GB"
# What a safetensors file has beside its numbers: a line of its header per tensor.
HEADER_BYTES_PER_TENSOR = 110


TORCH_TYPES = {StoredType.FP32: torch.float32, StoredType.BF16: torch.bfloat16, StoredType.FP16: torch.float16}


def register() -> None:
    """Make transformers (and so sentence-transformers) load factorised folders in this process without trusting code in them."""
    from transformers import AutoConfig, AutoModel

    AutoConfig.register(FactorisedConfig.model_type, FactorisedConfig, exist_ok=True)
    AutoModel.register(FactorisedConfig, FactorisedModel, exist_ok=True)


def is_factorised(folder: Path) -> bool:
    """Whether the checkpoint in ``folder`` is in the factorised form."""
    path = folder / "config.json"
    return path.is_file() and read_json(path).get("model_type") == FactorisedConfig.model_type


def open_encoder(
    folder: Path,
    *,
    layers: int | None = None,
    dim: int | None = None,
    rank: int | None = None,
    precision: Precision = Precision.FP32,
) -> Encoder:
    """Open any checkpoint of this project at a submodel: a trained one, or an export of either form.

    Raises:
        ArtifactError: a file is missing, damaged or of another format version.
        SubmodelError: a cut larger than the model.
    """
    if not is_factorised(folder):
        return Encoder.from_folder(folder, layers=layers, dim=dim, rank=rank, precision=precision)
    facts = read_facts(folder)
    submodel = resolve_submodel(Shape(**facts["shape"]), layers=layers, dim=dim, rank=rank)
    register()
    model = cast("Any", load_folder(folder))
    table, backbone = model.get_input_embeddings(), model.backbone
    # The network takes a table over; this one has no rows, only the scale.
    placeholder = nn.Embedding(1, table.v.shape[1])
    placeholder.embed_scale = table.scale
    backbone.set_input_embeddings(placeholder)
    network = Network(backbone, pooling=Pooling(facts["pooling"]))
    network.embedding = LowRankEmbedding(table.u.detach(), table.v.detach())
    network.cut(submodel.layers)
    return Encoder.around(network, folder, submodel=submodel, precision=precision)


def write_folder(
    out: Path, network: Network, *, dim: int, dtype: StoredType, source: Path, instruction: str | None, details: dict[str, Any]
) -> None:
    """Write a cut network into the existing folder ``out``; its table decides the form.

    Args:
        network: cut in depth and rank already, its weights rounded to ``dtype`` but held in float32.
        dim: the length of the vectors.
        source: the checkpoint that it was cut from, whose tokenizer it keeps.
        instruction: put in front of queries by sentence-transformers (``prompt_name="query"``, ``encode_query``); None: no prompt.
        details: merged into ``mlembed.json``.
    """
    facts = read_facts(source)
    weights = {name: value.to(TORCH_TYPES[dtype]).contiguous() for name, value in _state_dict(network).items()}
    save_torch_state_dict(weights, out, max_shard_size=MAX_SHARD_SIZE, safe_serialization=True)
    _write_config(out, network, dtype)
    for name in TOKENIZER_FILES:
        shutil.copyfile(source / name, out / name)
    hidden = network.shape.dim
    write_sentence_transformers(out, hidden=hidden, max_length=facts["max_length"], pooling=network.pooling)
    if dim < hidden:
        _insert_cut(out, hidden=hidden, dim=dim)
    path = out / "config_sentence_transformers.json"
    write_json(path, read_json(path) | {"prompts": {"query": query_prompt(instruction), "document": ""}})
    shape = network.shape
    write_json(
        out / CHECKPOINT_FACTS,
        {
            "format_version": FORMAT_VERSION,
            "shape": {"layers": shape.layers, "dim": dim, "rank": shape.rank, "vocab": shape.vocab},
            "max_length": facts["max_length"],
            "pooling": network.pooling.value,
            "setting": facts.get("setting"),
            "mrl_dims": _up_to(facts["mrl_dims"], dim),
            "mll_layers": _up_to(facts["mll_layers"], shape.layers),
            "mel_ranks": _up_to(facts["mel_ranks"], shape.rank) if isinstance(network.embedding, LowRankEmbedding) else None,
            **details,
        },
    )


def computed_bytes(network: Network, dtype: StoredType) -> int:
    """Size of the weight file that :func:`write_folder` makes, from the shapes alone."""
    weights = _state_dict(network)
    return sum(value.numel() for value in weights.values()) * TORCH_TYPES[dtype].itemsize + len(weights) * HEADER_BYTES_PER_TENSOR


def _up_to(trained: list[int] | None, limit: int) -> list[int] | None:
    """What was trained and is still there; the cut itself closes the list, as the full size does before."""
    return None if trained is None else sorted({size for size in trained if size < limit} | {limit})


def _state_dict(network: Network) -> dict[str, Tensor]:
    if not isinstance(network.embedding, LowRankEmbedding):
        return network.stock_state_dict()
    weights = {f"backbone.{name}": value for name, value in network.stock_state_dict(table=False).items()}
    table = f"backbone.{network.table_name}".removesuffix("weight")
    return weights | {f"{table}u": network.embedding.u.detach(), f"{table}v": network.embedding.v.detach()}


def _write_config(out: Path, network: Network, dtype: StoredType) -> None:
    write_config(out, network)
    stock = read_json(out / "config.json")
    name = str(TORCH_TYPES[dtype]).removeprefix("torch.")
    stock |= {"dtype": name, "torch_dtype": name, "num_hidden_layers": network.num_layers}
    if stock.get("layer_types"):
        stock["layer_types"] = stock["layer_types"][: network.num_layers]
    if not isinstance(network.embedding, LowRankEmbedding):
        write_json(out / "config.json", stock)
        return
    # The inner model follows the outer one's type.
    backbone = {key: value for key, value in stock.items() if key not in {"dtype", "torch_dtype"}}
    module = MODELLING_FILE.removesuffix(".py")
    write_json(
        out / "config.json",
        {
            "model_type": FactorisedConfig.model_type,
            "architectures": [FactorisedModel.__name__],
            "auto_map": {"AutoConfig": f"{module}.{FactorisedConfig.__name__}", "AutoModel": f"{module}.{FactorisedModel.__name__}"},
            "dtype": name,
            "torch_dtype": name,
            "rank": network.embedding.rank,
            "embedding_scale": network.embedding_scale,
            "backbone": backbone,
        },
    )
    shutil.copyfile(factorised.__file__, out / MODELLING_FILE)


def _insert_cut(out: Path, *, hidden: int, dim: int) -> None:
    """Let sentence-transformers keep the first ``dim`` entries, before it normalises.

    Its own ``truncate_dim`` cuts after the last module, so that vectors would not have unit length. The matrix is written in float32
    whatever the model's type: a product with zeros and a one changes nothing.
    """
    (out / CUT_FOLDER).mkdir()
    write_json(
        out / CUT_FOLDER / "config.json",
        {"in_features": hidden, "out_features": dim, "bias": False, "activation_function": "torch.nn.modules.linear.Identity"},
    )
    save_file({"linear.weight": torch.eye(dim, hidden)}, out / CUT_FOLDER / "model.safetensors", metadata={"format": "pt"})
    modules = read_json(out / "modules.json")
    modules.insert(2, {"path": CUT_FOLDER, "type": "sentence_transformers.models.Dense"})
    (out / "2_Normalize").rename(out / "3_Normalize")
    modules[3]["path"] = "3_Normalize"
    write_json(out / "modules.json", [module | {"idx": index, "name": str(index)} for index, module in enumerate(modules)])
