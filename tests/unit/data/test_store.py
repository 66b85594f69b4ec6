"""The training cache: what was written is read back, and a cache that does not fit is refused with the reason."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlembed_core.artifacts import manifest_hash, write_manifest
from mlembed_core.config.data import Kind
from mlembed_core.data.store import FILES, CacheWriter, TrainingCache
from mlembed_core.errors import ArtifactError


def add_texts(writer: CacheWriter, texts: list[list[int]]) -> np.ndarray:
    return writer.add_texts(np.array([*chain(*texts)], dtype=np.uint32), np.cumsum([0, *map(len, texts)]))


def add_rows(writer: CacheWriter, *, validation: bool, rows: list[tuple[int, int, list[int], str | None]]) -> None:
    writer.add_rows(
        validation=validation,
        queries=np.array([row[0] for row in rows]),
        passages=np.array([row[1] for row in rows]),
        negatives=np.array([*chain(*(row[2] for row in rows))], dtype=np.int64),
        num_negatives=np.array([len(row[2]) for row in rows]),
        labels=[row[3] for row in rows],
    )


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    write_manifest(folder, stage="tokenizer", params={})
    return folder


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Path) -> Path:
    """Two sources. The second repeats texts of the first, and itself."""
    folder = tmp_path / "cache"
    folder.mkdir()
    with CacheWriter(folder) as writer:
        writer.begin_source("first", kind=Kind.RETRIEVAL, num_negatives=3)
        assert add_texts(writer, [[5, 6, 0], [7, 0], [0], [5, 6, 0]]).tolist() == [0, 1, 2, 0]
        add_rows(writer, validation=False, rows=[(0, 1, [2, 0], None), (1, 2, [], None)])
        assert add_texts(writer, [[8, 0], [7, 0]]).tolist() == [3, 1]
        add_rows(writer, validation=True, rows=[(3, 0, [1], None)])
        writer.begin_source("second", kind=Kind.CLUSTERING, num_negatives=0)
        assert add_texts(writer, [[7, 0], [4_000_000_000, 0]]).tolist() == [4, 5]
        add_rows(writer, validation=False, rows=[(4, 5, [], "b"), (5, 4, [], "a"), (4, 4, [], "b"), (5, 5, [], None)])
        writer.finish(tokenizer=manifest_hash(tokenizer))
    return folder


def test_what_was_written_is_read_back(folder: Path, tokenizer: Path) -> None:
    cache = TrainingCache.open(folder, tokenizer=tokenizer)
    first, second = cache.sources
    assert (first.name, first.kind, first.train, first.validation, first.num_negatives) == (
        "first",
        Kind.RETRIEVAL,
        range(2),
        range(2, 3),
        3,
    )
    assert (second.train, second.validation, second.labels) == (range(3, 7), range(7, 7), ("b", "a"))
    rows = np.arange(7)
    assert cache.query_ids(rows).tolist() == [0, 1, 3, 4, 5, 4, 5]
    assert cache.passage_ids(rows).tolist() == [1, 2, 0, 5, 4, 4, 5]
    assert [cache.negative_ids(row).tolist() for row in rows] == [[2, 0], [], [1], [], [], [], []]
    assert cache.labels(rows).tolist() == [-1, -1, -1, 0, 1, 0, -1]
    assert cache.labels(rows).dtype == np.int32
    assert [cache.tokens(text).tolist() for text in range(cache.num_texts)] == [[5, 6, 0], [7, 0], [0], [8, 0], [7, 0], [4_000_000_000, 0]]
    assert cache.lengths(np.arange(6)).tolist() == [3, 2, 1, 2, 2, 2]


def test_tokens_are_a_view_that_cannot_be_changed(folder: Path) -> None:
    tokens = TrainingCache.open(folder).tokens(0)
    assert tokens.dtype == np.uint32
    assert tokens.base is not None
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_a_source_without_negatives_can_stand_alone(tmp_path: Path) -> None:
    with CacheWriter(tmp_path) as writer:
        writer.begin_source("only", kind=Kind.RETRIEVAL, num_negatives=0)
        add_texts(writer, [[1, 0]])
        add_rows(writer, validation=False, rows=[(0, 0, [], None)])
        writer.finish(tokenizer="t")
    assert (tmp_path / "negatives.bin").stat().st_size == 0
    assert TrainingCache.open(tmp_path).negative_ids(0).tolist() == []


def test_training_rows_cannot_follow_validation_rows(tmp_path: Path) -> None:
    with CacheWriter(tmp_path) as writer:
        writer.begin_source("only", kind=Kind.RETRIEVAL, num_negatives=0)
        add_texts(writer, [[1, 0]])
        add_rows(writer, validation=True, rows=[(0, 0, [], None)])
        with pytest.raises(ValueError, match="training rows of only after its validation rows"):
            add_rows(writer, validation=False, rows=[(0, 0, [], None)])


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a file on a full disk")
def test_a_full_disk_is_reported_as_such(tmp_path: Path) -> None:
    (tmp_path / "tokens.bin").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught, CacheWriter(tmp_path) as writer:
        writer.begin_source("only", kind=Kind.RETRIEVAL, num_negatives=0)
        add_texts(writer, [[1, 0]])
        writer.finish(tokenizer="t")
    assert caught.value.errno == errno.ENOSPC


def test_opening_costs_no_memory(tmp_path: Path) -> None:
    # 64 GiB of nothing: reading them would fail, mapping them does not.
    with CacheWriter(tmp_path) as writer:
        writer.begin_source("only", kind=Kind.RETRIEVAL, num_negatives=0)
        add_texts(writer, [[1, 0]])
        add_rows(writer, validation=False, rows=[(0, 0, [], None)])
        writer.finish(tokenizer="t")
    with (tmp_path / "tokens.bin").open("r+b") as file:
        file.truncate(2**36)
    with (tmp_path / "offsets.bin").open("r+b") as file:
        file.seek(8)
        file.write((2**34).to_bytes(8, "little"))
    edit(tmp_path, lambda header: header["files"].update({"tokens.bin": 2**36}))
    cache = TrainingCache.open(tmp_path)
    assert cache.tokens(0).nbytes == 2**36
    assert cache.tokens(0)[:3].tolist() == [1, 0, 0]


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    header = json.loads((folder / "header.json").read_text())
    change(header)
    (folder / "header.json").write_text(json.dumps(header))


def test_another_tokenizer_is_refused(folder: Path, tokenizer: Path) -> None:
    (tokenizer / "tokenizer.json").write_text("[]")
    write_manifest(tokenizer, stage="tokenizer", params={})
    with pytest.raises(ArtifactError, match=r"cache was made with another tokenizer.*dvc repro cache"):
        TrainingCache.open(folder, tokenizer=tokenizer)
    assert TrainingCache.open(folder).num_texts == 6


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_by_name(folder: Path, name: str) -> None:
    size = (folder / name).stat().st_size
    with (folder / name).open("r+b") as file:
        file.truncate(size - 4)
    with pytest.raises(ArtifactError, match=rf"{name} has {size - 4} bytes, its header says {size}.*mlembed cache"):
        TrainingCache.open(folder)


def test_files_that_contradict_each_other_are_refused(folder: Path) -> None:
    edit(folder, lambda header: header["sources"].pop())
    with pytest.raises(ArtifactError, match=r"do not belong together.*mlembed cache"):
        TrainingCache.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: header.update(version=99), r"version 99, this code reads 1"),
        (lambda header: header.update(format="something"), r"header\.json is no header of a training cache"),
        (lambda header: header.pop("files"), r"header\.json lacks files"),
    ],
)
def test_another_header_is_refused(folder: Path, change: Callable[[dict[str, Any]], Any], message: str) -> None:
    edit(folder, change)
    with pytest.raises(ArtifactError, match=message + r".*mlembed cache"):
        TrainingCache.open(folder)


def test_a_missing_cache_or_file_is_named(folder: Path) -> None:
    (folder / "labels.bin").unlink()
    with pytest.raises(ArtifactError, match=r"labels\.bin is missing"):
        TrainingCache.open(folder)
    (folder / "header.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"header\.json is not valid JSON"):
        TrainingCache.open(folder)
    shutil.rmtree(folder)
    with pytest.raises(ArtifactError, match=r"no training cache in .*`mlembed cache`"):
        TrainingCache.open(folder)
