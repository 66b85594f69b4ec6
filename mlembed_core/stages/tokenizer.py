"""Stage ``tokenizer``: trained on the sources, or taken from a folder or the hub; in each case one that appends EOS itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from tokenizers import Tokenizer

from mlembed_core.artifacts import Workspace, read_json, read_manifest, verify_files, write_manifest, writing
from mlembed_core.config.base import Section
from mlembed_core.config.data import HubTokenizer, LocalTokenizer, Sources, TokenizerParams, TrainedTokenizer
from mlembed_core.config.load import load
from mlembed_core.data.key_table import KeyTable
from mlembed_core.data.rows import ROWS_FILE
from mlembed_core.data.texts import distinct, hash_key, num_rows, read_batches
from mlembed_core.data.tokenize import CONFIG_FILE, EOS, PAD, TOKENIZER_FILE, append_eos, read_tokenizer, save_tokenizer, train_tokenizer
from mlembed_core.errors import ArtifactError, DataError
from mlembed_core.hub import fetch
from mlembed_core.progress import Reporter

SPECIAL_TOKENS_FILE = "special_tokens_map.json"  # older folders keep here what newer ones have in tokenizer_config.json
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Config(Section):
    """What this stage reads of the parameters."""

    sources: Sources
    tokenizer: TokenizerParams


@dataclass(frozen=True)
class Result:
    """A tokenizer, what its special tokens are for, and what it was made from."""

    tokenizer: Tokenizer
    special_tokens: Mapping[str, str]
    inputs: Mapping[str, Path]
    counts: Mapping[str, int]


def run(workspace: Workspace) -> None:
    """Write ``data/tokenizer/``.

    Raises:
        ArtifactError: a source's out or the local tokenizer is missing or damaged.
        DataError: the sources hold no text to train on.
        ConfigError: the hub has no such repository or commit.
        MachineError: the hub cannot be reached.
    """
    config = load(workspace.params_file, Config)
    match config.tokenizer:
        case TrainedTokenizer():
            result = _trained(workspace, config.tokenizer, sorted(config.sources))
        case LocalTokenizer():
            result = take(_local_folder(workspace, config.tokenizer))
        case HubTokenizer():
            result = take(_hub_folder(config.tokenizer))
    with writing(workspace, workspace.tokenizer) as draft:
        save_tokenizer(result.tokenizer, draft, special_tokens=result.special_tokens, max_length=config.tokenizer.max_length)
        write_manifest(
            draft,
            stage="tokenizer",
            params=config.tokenizer.model_dump(mode="json"),
            inputs=result.inputs,
            counts={"vocabulary": result.tokenizer.get_vocab_size(), **result.counts},
            details={"special_tokens": dict(result.special_tokens)},
        )


def _trained(workspace: Workspace, params: TrainedTokenizer, names: list[str]) -> Result:
    folders = {name: workspace.sources / name for name in names}
    for name, folder in folders.items():
        read_manifest(folder, made_by=f"mlembed source {name}")
        verify_files(folder)
    texts = _TrainingTexts({name: folder / ROWS_FILE for name, folder in folders.items()})
    tokenizer = train_tokenizer(texts, vocab_size=params.vocab_size)
    if not texts.num_texts:
        raise DataError(f"the sources {', '.join(names)} have no training rows, so there is no text to train a tokenizer on")
    return Result(
        tokenizer,
        special_tokens={"eos_token": EOS, "pad_token": PAD},
        inputs={f"source@{name}": folder for name, folder in folders.items()},
        counts={"texts": texts.num_texts, "characters": texts.num_characters},
    )


class _TrainingTexts:
    """The distinct queries and passages of the train split, each once over all sources, in lists.

    Rows that name no split all take part: nothing is measured on those that the cache will hold out but the loss. Negatives are
    left out, being passages of other rows. What an instruction adds to a query is left out too.
    """

    def __init__(self, files: Mapping[str, Path]) -> None:
        self._files = files
        self.num_texts = 0
        self.num_characters = 0

    def __iter__(self) -> Iterator[list[str]]:
        seen = KeyTable()
        total = sum(num_rows(path) for path in self._files.values())
        with Reporter("read text for the tokenizer", total, "rows") as progress:
            for path in self._files.values():
                for batch in read_batches(path, ("query", "passage", "split"), distinct_texts=("query", "passage")):
                    rows = batch.filter(pc.fill_null(pc.equal(batch.column("split"), "train"), True))
                    texts, _ = distinct([rows.column("query"), rows.column("passage")])
                    known = len(seen)
                    numbers = seen.numbers(b"".join(map(hash_key, texts)))
                    fresh = [texts[position] for position in np.flatnonzero(numbers >= known)]
                    self.num_texts += len(fresh)
                    self.num_characters += sum(map(len, fresh))
                    yield fresh
                    progress.advance(batch.num_rows)


def take(folder: Path) -> Result:
    """The tokenizer of a folder in Hugging Face form, made to append EOS itself.

    Raises:
        ArtifactError: it is missing or damaged, or nothing says which token ends a text.
    """
    tokenizer = read_tokenizer(folder / TOKENIZER_FILE)
    special_tokens = _special_tokens(folder)
    eos = special_tokens.get("eos_token") or special_tokens.get("sep_token")
    if eos is None:
        raise ArtifactError(
            f"the tokenizer in {folder} names no eos_token (nor a sep_token) in {CONFIG_FILE} or {SPECIAL_TOKENS_FILE}. Every text has to "
            'end in one, which the model pools: add "eos_token" to a copy of the folder, and name that as tokenizer.path.'
        )
    # Padding is never seen by a pooled token, so that EOS will do where a tokenizer has no padding of its own.
    roles = {"eos_token": eos, "pad_token": special_tokens.get("pad_token") or eos}
    return Result(append_eos(tokenizer, eos), special_tokens={**special_tokens, **roles}, inputs={}, counts={})


def _special_tokens(folder: Path) -> dict[str, str]:
    """Role → token, from the files that have them; a token may be spelt out or stand in a mapping with its properties."""
    found: dict[str, Any] = {}
    for name in (SPECIAL_TOKENS_FILE, CONFIG_FILE):
        if (folder / name).is_file():
            found |= {role: value for role, value in read_json(folder / name).items() if role in ROLES and value}
    return {role: value["content"] if isinstance(value, dict) else value for role, value in sorted(found.items())}


def _local_folder(workspace: Workspace, params: LocalTokenizer) -> Path:
    folder = (workspace.root / params.path).resolve()
    if not (folder / TOKENIZER_FILE).is_file():
        raise ArtifactError(
            f"tokenizer.path={params.path}: there is no tokenizer in {folder} (no {TOKENIZER_FILE}). Put a Hugging Face tokenizer folder "
            "there, or choose another tokenizer in configs/params.yaml (type: trained needs no files)."
        )
    return folder


def _hub_folder(params: HubTokenizer) -> Path:
    folder = fetch(
        params.repo, params.revision, path="tokenizer.repo", files=(TOKENIZER_FILE, CONFIG_FILE), optional=(SPECIAL_TOKENS_FILE,)
    )
    if not (folder / TOKENIZER_FILE).is_file():
        raise ArtifactError(
            f"the hub repository {params.repo} at {params.revision} has no {TOKENIZER_FILE}, the one form that this project reads. "
            "Convert its tokenizer with transformers (save_pretrained writes one) and name the folder as tokenizer: {type: local, path: …}."
        )
    return folder
