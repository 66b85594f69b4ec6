"""Search: exact order, kept vectors, and corpora from files and sources."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from mlembed_core.artifacts import Workspace
from mlembed_core.config.grid import Submodel
from mlembed_core.errors import ArtifactError, DataError
from mlembed_core.registry import search as engine
from mlembed_core.registry.search import Corpus, corpus_of_file, corpus_of_sources, corpus_vectors, search


class BagOfWords:
    """Counts words into hashed places; counts its calls too."""

    def __init__(self, dim: int = 64) -> None:
        self.submodel = Submodel(layers=1, dim=dim, rank=1)
        self.encoded: list[str] = []
        self.instructions: list[str | None] = []

    def encode_documents(self, texts: Sequence[str]) -> NDArray[Any]:
        self.encoded += texts
        vectors = np.zeros((len(texts), self.submodel.dim), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                vectors[row, zlib.crc32(word.encode()) % self.submodel.dim] += 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)

    def encode_queries(self, texts: Sequence[str], *, instruction: str | None = None) -> NDArray[Any]:
        self.instructions.append(instruction)
        return self.encode_documents(texts)


CORPUS = Corpus(["a red house", "the blue sea", "a red sea", "the blue sea"], ["f:1", "f:2", "f:3", "f:4"])


def test_the_nearest_come_first_and_ties_in_order() -> None:
    hits = search(BagOfWords(), "blue sea", CORPUS, top=3)
    assert [hit.place for hit in hits] == ["f:2", "f:4", "f:3"]
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert hits[0].score == pytest.approx(2 / np.sqrt(6))
    assert len(search(BagOfWords(), "sea", CORPUS, top=100)) == 4


def test_the_instruction_goes_to_the_query() -> None:
    encoder = BagOfWords()
    search(encoder, "sea", CORPUS, top=1, instruction="find water")
    assert encoder.instructions == ["find water"]


def test_vectors_are_kept_for_weights_submodel_and_texts(tmp_path: Path) -> None:
    def encoded(weights: str, dim: int, corpus: Corpus) -> int:
        encoder = BagOfWords(dim)
        vectors = corpus_vectors(encoder, corpus, weights_hash=weights, folder=tmp_path)
        np.testing.assert_array_equal(vectors, BagOfWords(dim).encode_documents(corpus.texts))
        return len(encoder.encoded)

    assert encoded("w1", 64, CORPUS) == 4
    assert encoded("w1", 64, CORPUS) == 0
    assert encoded("w2", 64, CORPUS) == 4
    assert encoded("w1", 32, CORPUS) == 4
    # Moved borders between texts are other texts.
    assert encoded("w1", 64, Corpus(["a redhouse", *CORPUS.texts[1:]], CORPUS.places)) == 4
    assert encoded("w1", 64, Corpus(["a red", "housethe blue sea", *CORPUS.texts[2:]], CORPUS.places)) == 4


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY half", b"\x80\x04pickle"])
def test_a_damaged_store_is_made_again(tmp_path: Path, content: bytes) -> None:
    corpus_vectors(BagOfWords(), CORPUS, weights_hash="w", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    vectors = corpus_vectors(BagOfWords(), CORPUS, weights_hash="w", folder=tmp_path)
    assert vectors.shape == (4, 64)
    assert np.load(path, allow_pickle=False).shape == (4, 64)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    corpus_vectors(BagOfWords(), CORPUS, weights_hash="w", folder=tmp_path)
    (path,) = tmp_path.iterdir()

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    np.save(path, np.array([Trap()], dtype=object), allow_pickle=True)
    corpus_vectors(BagOfWords(), CORPUS, weights_hash="w", folder=tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_old_vectors_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "KEPT_CORPORA", 2)
    for weights in ("w1", "w2", "w3"):
        corpus_vectors(BagOfWords(), CORPUS, weights_hash=weights, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_is_searched_without_its_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("one\n  \n\nfour\n")
    assert corpus_of_file(path) == Corpus(["one", "four"], ["notes.txt:1", "notes.txt:4"])
    path.write_text(" \n\n")
    with pytest.raises(DataError, match="only blank texts"):
        corpus_of_file(path)


def write_source(workspace: Workspace, name: str, rows: list[tuple[str, str | None, str | None]]) -> None:
    (workspace.sources / name).mkdir(parents=True)
    passages, langs, splits = (list(column) for column in zip(*rows, strict=True))
    table = pa.table({"query": passages, "passage": passages, "lang": pa.array(langs, pa.string()), "split": pa.array(splits, pa.string())})
    pq.write_table(table, workspace.sources / name / "rows.parquet")


def test_the_sources_give_each_passage_once(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    write_source(
        workspace, "bitext", [("Haus", "deu", "train"), ("maison", "fra", "test"), ("dev only", None, "dev"), ("Haus", "nld", "test")]
    )
    write_source(workspace, "own", [("unsplit", None, None), ("maison", None, "train"), ("  ", None, "train")])
    assert corpus_of_sources(workspace) == Corpus(["Haus", "maison", "unsplit"], ["bitext (deu)", "bitext (fra)", "own"])


def test_no_or_damaged_sources_are_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    with pytest.raises(ArtifactError, match="dvc repro source"):
        corpus_of_sources(workspace)
    write_source(workspace, "own", [("x", None, None)])
    (workspace.sources / "own" / "rows.parquet").write_bytes(b"half")
    with pytest.raises(ArtifactError, match=r"own/rows\.parquet is damaged .*source@own"):
        corpus_of_sources(workspace)
