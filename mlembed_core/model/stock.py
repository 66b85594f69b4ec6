"""Folders that others wrote: sentence-transformers models made of a transformer, pooling and a normalisation, and plain checkpoints.

What such a folder says (pooling, length limit, prompts) is taken over; what an encoder here cannot do (other modules, weighted
pooling, lower-casing) is refused, since the vectors would be others than the model's own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import read_json
from mlembed_core.config.base import Precision
from mlembed_core.config.model import Pooling
from mlembed_core.errors import ArtifactError
from mlembed_core.model.architecture import first_position
from mlembed_core.model.checkpoint import CHECKPOINT_FACTS, POOLING_MODES
from mlembed_core.model.encoder import Encoder, TrainedAxes
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import load_folder

MODULES = ("Transformer", "Pooling", "Normalize")
MAX_LENGTH = 8192  # tokens of a text where no file of the folder sets a limit
UNLIMITED = 10**9  # tokenizers write an absurd number where they know of no limit


@dataclass(frozen=True)
class Opened:
    """A model to score.

    Attributes:
        prompts: what the model itself puts before texts, by mteb's keys; empty for most.
    """

    encoder: Encoder
    prompts: dict[str, str]


def open_any(folder: Path, *, precision: Precision = Precision.FP32) -> Opened:
    """The model in a folder, whoever wrote it.

    Raises:
        ArtifactError: no model there, one with parts that are unknown here, or a damaged one.
        SubmodelError: an architecture of no known form.
    """
    if (folder / CHECKPOINT_FACTS).is_file():
        return Opened(Encoder.from_folder(folder, precision=precision), {})
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ArtifactError(
                f"{folder} has no {name}: no checkpoint that can be opened here. Give a folder with config.json, *.safetensors and "
                "tokenizer.json (a fast tokenizer; `AutoTokenizer.from_pretrained(…).save_pretrained(…)` writes one)."
            )
    from tokenizers import Tokenizer

    pooling = _pooling(folder)
    network = Network(load_folder(folder), pooling=pooling)
    encoder = Encoder(
        network.requires_grad_(requires_grad=False),
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        max_length=_max_length(folder, network),
        axes=TrainedAxes(None, None, None),
        precision=precision,
    )
    return Opened(encoder, _prompts(folder))


def _optional(path: Path) -> Any:
    return read_json(path) if path.is_file() else {}


def _pooling(folder: Path) -> Pooling | None:
    """The pooling that the folder's modules name; None, the architecture's usual one, for a plain checkpoint.

    Raises:
        ArtifactError: modules or a pooling that are unknown here.
    """
    modules = _optional(folder / "modules.json")
    if not modules:
        return None
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in modules]
    if kinds[:2] != list(MODULES[:2]) or kinds[2:] not in ([], [MODULES[2]]):
        raise ArtifactError(
            f"{folder / 'modules.json'} names the modules {', '.join(kinds)}; what can be opened here is {', '.join(MODULES[:2])} and, "
            f"if any, {MODULES[2]}. Score this model with mteb and sentence-transformers themselves."
        )
    if _optional(folder / "sentence_bert_config.json").get("do_lower_case"):
        raise ArtifactError(f"{folder / 'sentence_bert_config.json'}: do_lower_case is not known here; let the tokenizer do it")
    path = folder / modules[1]["path"] / "config.json"
    wanted = read_json(path)
    modes = wanted.get("pooling_mode") or [
        key.removeprefix("pooling_mode_") for key, on in wanted.items() if key.startswith("pooling_mode_") and on is True
    ]
    known = {name: pooling for pooling, name in POOLING_MODES.items()} | {"mean": Pooling.MEAN, "cls": Pooling.CLS}
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in known or wanted.get("include_prompt", True) is not True:
        raise ArtifactError(f"{path} wants pooling {json.dumps(wanted)}; one of {', '.join(known)} over all tokens can be opened here")
    return known[modes[0]]


def _max_length(folder: Path, network: Network) -> int:
    """Tokens of one text: what the folder says, never more than there are positions."""
    named = [
        _optional(folder / "sentence_bert_config.json").get("max_seq_length"),
        _optional(folder / "tokenizer_config.json").get("model_max_length"),
    ]
    wanted = next((int(limit) for limit in named if limit is not None and limit < UNLIMITED), MAX_LENGTH)
    positions = getattr(network.config, "max_position_embeddings", None)
    return wanted if positions is None else min(wanted, positions - first_position(network.backbone))


def _prompts(folder: Path) -> dict[str, str]:
    prompts = _optional(folder / "config_sentence_transformers.json").get("prompts") or {}
    return {key: prompt for key, prompt in prompts.items() if prompt}
