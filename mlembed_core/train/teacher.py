"""The frozen teacher of a distillation: found, checked against its pin and against the student's tokenizer, and loaded.

A teacher reads the token ids of the training cache, so its tokenizer must give them the same meaning. What it is counts into the
training's fingerprint and stands in the model's manifest.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from mlembed_core.artifacts import hash_of, sha256_file
from mlembed_core.config.model import HubModel, RegisteredModel
from mlembed_core.config.settings import LocalTeacher
from mlembed_core.config.settings import Teacher as TeacherParams
from mlembed_core.errors import ArtifactError, ConfigError
from mlembed_core.hub import fetch
from mlembed_core.model.checkpoint import CHECKPOINT_FACTS, pooling_of
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import load_folder

TOKENIZER_FILE = "tokenizer.json"
# What makes token ids of a text. What is appended to a text (post_processor) and where it is cut is the training cache's matter.
MEANING = ("model", "normalizer", "pre_tokenizer")


@dataclass(frozen=True)
class Teacher:
    """A frozen network, and the hash of what it was loaded from."""

    network: Network
    sha256: str


def load_teacher(
    params: TeacherParams, *, path: str, root: Path, tokenizer_folder: Path, hidden: int, registered: Callable[[str, int], Path]
) -> Teacher:
    """The teacher that ``params`` names, in evaluation mode and without gradients.

    Args:
        path: of ``params`` in the parameter file, for messages.
        root: what a relative path is relative to.
        tokenizer_folder: of the student.
        hidden: size of the student; a teacher is cut to it.
        registered: finds the folder of a registered version by name and number.

    Raises:
        ArtifactError: no or damaged weights.
        ConfigError: the pin does not fit, another tokenizer, a teacher narrower than its student, or the hub has no such commit.
        MachineError: the hub cannot be reached.
        RegistryError: no such version.
    """
    match params:
        case LocalTeacher():
            folder = _local_folder(params, path, root)
        case HubModel():
            folder = fetch(params.repo, params.revision, path=path)
        case RegisteredModel():
            folder = registered(params.name, params.version)
    sha256 = folder_hash(folder)
    if isinstance(params, LocalTeacher) and params.sha256 != sha256:
        found = "is not pinned" if params.sha256 is None else f"{params.sha256} is not the hash of what is in {folder}"
        raise ConfigError(
            f"{path}.sha256: {found}. If this is the teacher that you mean, write sha256: {sha256} there: a result must say what it was "
            "distilled from."
        )
    check_tokenizer(folder / TOKENIZER_FILE, tokenizer_folder / TOKENIZER_FILE, path=path)
    # A checkpoint of ours says how it pools; for others the architecture decides.
    pooling = pooling_of(folder) if (folder / CHECKPOINT_FACTS).is_file() else None
    network = Network(load_folder(folder), pooling=pooling).eval().requires_grad_(requires_grad=False)
    vocabulary = Tokenizer.from_file(str(tokenizer_folder / TOKENIZER_FILE)).get_vocab_size(with_added_tokens=True)
    if network.shape.vocab < vocabulary:
        raise ConfigError(
            f"{path}: its token table has {network.shape.vocab} rows, the tokenizer {vocabulary} tokens; use a teacher trained with it"
        )
    if network.shape.dim < hidden:
        raise ConfigError(
            f"{path}: its hidden size {network.shape.dim} is below the student's {hidden}; use one at least as wide, which is then cut"
        )
    return Teacher(network, sha256)


def folder_hash(folder: Path) -> str:
    """Hex SHA-256 of a checkpoint's configuration and weights.

    Raises:
        ArtifactError: there is no checkpoint in the folder.
    """
    weights = sorted(folder.glob("*.safetensors"))
    if not (folder / "config.json").is_file() or not weights:
        raise ArtifactError(f"there is no teacher in {folder} (config.json and *.safetensors). Put a Hugging Face checkpoint there.")
    return hash_of({path.name: sha256_file(path) for path in [folder / "config.json", *weights]})


def check_tokenizer(teacher: Path, student: Path, *, path: str) -> None:
    """Raises ConfigError unless both files turn a text into the same token ids."""
    if not teacher.is_file():
        raise ConfigError(
            f"{path}: there is no {TOKENIZER_FILE} in {teacher.parent}, so nobody can tell whether it means the same by a token id. "
            "Put the tokenizer that the teacher was trained with there."
        )
    # Through the library, which writes one form of what files of its many versions spell differently.
    mine, other = (json.loads(Tokenizer.from_file(str(file)).to_str()) for file in (student, teacher))
    differing = [key for key in MEANING if mine.get(key) != other.get(key)]
    if _added(mine) != _added(other):
        differing.append("added_tokens")
    if differing:
        raise ConfigError(
            f"{path}: the teacher's tokenizer is not the student's ({', '.join(differing)} differ between {teacher} and {student}): "
            "a token id would mean another word to it. Use a teacher trained with this tokenizer, or set `tokenizer` to the teacher's."
        )


def _added(tokenizer: dict[str, Any]) -> dict[str, int]:
    return {token["content"]: int(token["id"]) for token in tokenizer.get("added_tokens", [])}


def _local_folder(params: LocalTeacher, path: str, root: Path) -> Path:
    folder = (root / params.path).resolve()
    if not folder.is_dir():
        raise ArtifactError(f"{path}.path={params.path}: there is no folder {folder}. Put the teacher's checkpoint there, or name another.")
    return folder
