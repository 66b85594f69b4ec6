"""Stage ``cache``: the tokenised sources joined into the memory-mapped training cache, split into training and validation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlembed_core.artifacts import Workspace, manifest_hash, read_manifest, verify_files, write_manifest, writing
from mlembed_core.config.base import Section
from mlembed_core.config.data import CacheParams, Sources
from mlembed_core.config.load import load
from mlembed_core.data.corpus import DOCUMENTS_FILE, ROWS_FILE, read_corpus_rows, read_documents
from mlembed_core.data.store import CacheWriter
from mlembed_core.data.texts import hash_fraction, hash_key, num_rows
from mlembed_core.errors import ArtifactError, DataError
from mlembed_core.progress import Reporter


class Config(Section):
    """What this stage reads of the parameters."""

    cache: CacheParams = CacheParams()
    sources: Sources


def run(workspace: Workspace) -> None:
    """Write ``data/cache/``.

    Raises:
        ArtifactError: a corpus is missing, damaged, or made with another tokenizer.
        DataError: no row of a source is left for training.
    """
    config = load(workspace.params_file, Config)
    corpora = {name: workspace.corpora / name for name in sorted(config.sources)}
    read_manifest(workspace.tokenizer, made_by="mlembed tokenizer")
    tokenizer = manifest_hash(workspace.tokenizer)
    for name, folder in corpora.items():
        _check_corpus(name, folder, tokenizer)
    total = sum(num_rows(folder / ROWS_FILE) for folder in corpora.values())
    with writing(workspace, workspace.cache) as draft:
        with CacheWriter(draft) as cache, Reporter("training cache", total, "rows") as progress:
            for name, folder in corpora.items():
                cache.begin_source(name, kind=config.sources[name].kind, num_negatives=config.sources[name].num_negatives)
                text_of_document = _add_documents(cache, folder)
                for validation in (False, True):
                    for rows in _rows(folder, validation=validation, fraction=config.cache.validation_fraction):
                        _add_rows(cache, rows, text_of_document, validation=validation)
                        progress.advance(rows.num_rows)
                if not cache.num_train_rows:
                    raise DataError(
                        f"all rows of {folder / ROWS_FILE} are held out for validation, none is left to train on. Give sources.{name} rows "
                        "of the train split, or take it out of configs/params.yaml."
                    )
            cache.finish(tokenizer=tokenizer)
        write_manifest(
            draft,
            stage="cache",
            params={"sources": {name: config.sources[name].kind.value for name in corpora}, **config.cache.model_dump(mode="json")},
            inputs={"tokenizer": workspace.tokenizer, **{f"tokenize@{name}": folder for name, folder in corpora.items()}},
            counts=dict(cache.counts),
        )


def _check_corpus(name: str, folder: Path, tokenizer: str) -> None:
    made_with = read_manifest(folder, made_by=f"mlembed tokenize {name}")["inputs"].get("tokenizer")
    if made_with != tokenizer:
        raise ArtifactError(
            f"{folder} was tokenised with another tokenizer than the one that stands in the workspace now. "
            f"Run `mlembed tokenize {name}` (or `dvc repro tokenize@{name}`) first."
        )
    verify_files(folder)


def _add_documents(cache: CacheWriter, folder: Path) -> NDArray[np.int64]:
    """Text id of each document, by document id."""
    text_of_document = np.empty(num_rows(folder / DOCUMENTS_FILE), dtype=np.int64)
    first = 0
    for batch in read_documents(folder):
        last = first + batch.num_rows
        if not np.array_equal(batch.column("doc_id").to_numpy(zero_copy_only=False), np.arange(first, last)):
            raise ArtifactError(
                f"{folder / DOCUMENTS_FILE}: doc_id does not count up from 0 around row {first}; `mlembed tokenize` makes it again."
            )
        text_of_document[first:last] = cache.add_texts(*_flat(batch.column("tokens")))
        first = last
    return text_of_document


def _rows(folder: Path, *, validation: bool, fraction: float) -> Iterator[pa.RecordBatch]:
    """The rows of one side: as their split says; those without one by the hash of their query, so that equal queries stay together."""
    for batch in read_corpus_rows(folder):
        split = batch.column("split")
        held_out = pc.equal(split, "dev").fill_null(False).to_numpy(zero_copy_only=False)
        unsplit = np.flatnonzero(split.is_null().to_numpy(zero_copy_only=False))
        if len(unsplit):
            tokens, offsets = _flat(batch.column("query").take(pa.array(unsplit)))
            queries = (tokens[start:stop] for start, stop in pairwise(offsets.tolist()))
            held_out = held_out.copy()
            held_out[unsplit] = [hash_fraction(hash_key(query.tobytes())) < fraction for query in queries]
        rows = batch.filter(pa.array(held_out if validation else ~held_out))
        if rows.num_rows:
            yield rows


def _add_rows(cache: CacheWriter, rows: pa.RecordBatch, text_of_document: NDArray[np.int64], *, validation: bool) -> None:
    negatives, offsets = _flat(rows.column("negatives"))
    cache.add_rows(
        validation=validation,
        queries=cache.add_texts(*_flat(rows.column("query"))),
        passages=text_of_document[rows.column("passage").to_numpy(zero_copy_only=False)],
        negatives=text_of_document[negatives],
        num_negatives=np.diff(offsets),
        labels=rows.column("label").to_pylist(),
    )


def _flat(lists: pa.ListArray) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The values of all lists, one after another, and where each list starts in them, and the end."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return lists.flatten().to_numpy(zero_copy_only=False), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
