"""The form of a checkpoint folder: plain transformers, plain sentence-transformers, and ours beside it.

``config.json`` and ``model.safetensors`` are a stock model with its table multiplied out, so that any library loads it.
``factors.safetensors`` has U and V where the table is factorised, and ``mlembed.json`` says what was trained. Module and pooling
names are written in the form that sentence-transformers 5 and 6 both read.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from mlembed_core.artifacts import read_json, read_manifest, write_json
from mlembed_core.config.model import Pooling
from mlembed_core.errors import ArtifactError
from mlembed_core.model.low_rank import LowRankEmbedding
from mlembed_core.model.network import Network

WEIGHTS = "model.safetensors"
FACTORS = "factors.safetensors"
CHECKPOINT_FACTS = "mlembed.json"
FORMAT_VERSION = 2  # 2: pooling is one of the config's words
# What sentence-transformers calls each pooling.
POOLING_MODES = {Pooling.LAST: "lasttoken", Pooling.MEAN: "mean_tokens", Pooling.CLS: "cls_token"}
OTHER_POOLING_MODES = ("max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class TokenizerFacts:
    """What a model has to know of a tokenizer."""

    vocab_size: int
    eos_id: int
    max_length: int


def tokenizer_facts(folder: Path) -> TokenizerFacts:
    """Size, EOS id and length limit of the tokenizer in ``folder``.

    Raises:
        ArtifactError: no tokenizer there.
    """
    from tokenizers import Tokenizer

    read_manifest(folder, made_by="mlembed tokenizer")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # An empty text is just the EOS: the post-processor appends it to everything.
    return TokenizerFacts(
        vocab_size=tokenizer.get_vocab_size(with_added_tokens=True),
        eos_id=int(tokenizer.encode("").ids[-1]),
        max_length=int(read_json(folder / "tokenizer_config.json")["model_max_length"]),
    )


def write_checkpoint(out: Path, network: Network, *, tokenizer_folder: Path, details: Mapping[str, Any]) -> None:
    """Write ``network`` and its tokenizer into the existing folder ``out``.

    Args:
        details: merged into ``mlembed.json``: the setting's name and the axes it trained (``mrl_dims``, ``mll_layers``, ``mel_ranks``).
    """
    facts = tokenizer_facts(tokenizer_folder)
    save_file(network.stock_state_dict(), out / WEIGHTS, metadata={"format": "pt"})
    embedding = network.embedding
    if isinstance(embedding, LowRankEmbedding):
        save_file(
            {"u": embedding.u.detach().contiguous(), "v": embedding.v.detach().contiguous()}, out / FACTORS, metadata={"format": "pt"}
        )
    write_config(out, network)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer_folder / name, out / name)
    write_sentence_transformers(out, hidden=network.shape.dim, max_length=facts.max_length, pooling=network.pooling)
    shape = network.shape
    write_json(
        out / CHECKPOINT_FACTS,
        {
            "format_version": FORMAT_VERSION,
            "shape": {"layers": shape.layers, "dim": shape.dim, "rank": shape.rank, "vocab": shape.vocab},
            "max_length": facts.max_length,
            "pooling": network.pooling.value,
            "mrl_dims": None,
            "mll_layers": None,
            "mel_ranks": None,
            **details,
        },
    )


def read_facts(folder: Path) -> dict[str, Any]:
    """``mlembed.json`` of a checkpoint folder that this project wrote.

    Raises:
        ArtifactError: there is none, or it is of another format version.
    """
    path = folder / CHECKPOINT_FACTS
    if not path.is_file():
        raise ArtifactError(
            f"{folder} is no checkpoint of this project (no {CHECKPOINT_FACTS}). Give a folder like models/3d; `dvc repro` makes it, "
            "`dvc pull` fetches it."
        )
    facts: dict[str, Any] = read_json(path)
    if facts.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {facts.get('format_version')!r}, this code reads {FORMAT_VERSION}. Make it again (`dvc repro`)."
        )
    return facts


def pooling_of(folder: Path) -> Pooling:
    """How the checkpoint in ``folder`` pools.

    Raises:
        ArtifactError: no checkpoint of this project.
    """
    return Pooling(read_facts(folder)["pooling"])


def write_config(out: Path, network: Network) -> None:
    """``config.json`` of the stock model, in a spelling that transformers 4 and 5 both read."""
    config = json.loads(network.config.to_json_string(use_diff=False))
    config["architectures"] = [type(network.backbone).__name__]
    config["vocab_size"] = network.shape.vocab
    config["dtype"] = config["torch_dtype"] = "float32"
    # transformers 4 reads rope_theta at the top level; without it, it takes a default and gives wrong vectors in silence.
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
    for key in ("_name_or_path", "name_or_path"):
        config.pop(key, None)
    write_json(out / "config.json", config)


def write_sentence_transformers(out: Path, *, hidden: int, max_length: int, pooling: Pooling) -> None:
    """The files that make ``out`` a sentence-transformers folder: the backbone, pooling, unit length."""
    modules = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
    write_json(
        out / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}
            for index, (path, name) in enumerate(modules)
        ],
    )
    write_json(out / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    write_json(
        out / "config_sentence_transformers.json",
        {"prompts": {"query": "", "document": ""}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
    )
    modes = (*POOLING_MODES.values(), *OTHER_POOLING_MODES)
    (out / "1_Pooling").mkdir()
    write_json(
        out / "1_Pooling" / "config.json",
        {
            "word_embedding_dimension": hidden,
            **{f"pooling_mode_{mode}": mode == POOLING_MODES[pooling] for mode in modes},
            "include_prompt": True,
        },
    )
    (out / "2_Normalize").mkdir()
    write_json(out / "2_Normalize" / "config.json", {})


def num_parameters(network: Network) -> int:
    """Trained parameters: under MEL the factors count, the table that they replace does not."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
