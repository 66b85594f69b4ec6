"""Texts in, vectors out: the forms of a person's files, and what is said of a bad one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlembed_core.errors import DataError
from mlembed_core.registry.texts import check_vector_file, read_texts, write_vectors

TEXTS = ["eins", "", "zwei drei"]


def test_lines_are_texts_and_an_empty_line_is_one_too(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffeins\r\n\nzwei\u2028drei".encode())
    assert read_texts(path) == ["eins", "", "zwei\u2028drei"]
    path.write_text("eins\n")
    assert read_texts(path) == ["eins"]


def test_json_lines_are_strings_or_objects(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('"eins"\n{"text": "zwei", "id": 2}\n')
    assert read_texts(path) == ["eins", "zwei"]
    path.write_text('{"body": "eins"}\n')
    assert read_texts(path, column="body") == ["eins"]


def test_a_parquet_column_is_named_or_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "body": TEXTS}), path)
    assert read_texts(path) == TEXTS
    pq.write_table(pa.table({"text": TEXTS, "body": ["x"] * 3}), path)
    assert read_texts(path) == TEXTS
    assert read_texts(path, column="body") == ["x"] * 3


def test_bad_files_say_what_and_where(tmp_path: Path) -> None:
    def message(name: str, content: bytes, column: str | None = None) -> str:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as caught:
            read_texts(tmp_path / name, column=column)
        return str(caught.value)

    assert "not .csv" in message("a.csv", b"x")
    assert "holds no texts" in message("a.txt", b"")
    assert "is not UTF-8" in message("a.txt", b"caf\xe9")
    assert "line 2: not JSON" in message("a.jsonl", b'"x"\n{\n')
    assert "line 1: no text under 'text' (found: keys body)" in message("a.jsonl", b'{"body": "x"}')
    assert "line 1: no text under 'text' (found: int)" in message("a.jsonl", b"3")
    assert "damaged or no parquet" in message("a.parquet", b"PAR1")
    with pytest.raises(DataError, match=r"b\.txt cannot be read: No such file"):
        read_texts(tmp_path / "b.txt")


def test_bad_columns_say_which_there_are(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": ["x"], "b": ["y"], "n": [1]}), path)
    with pytest.raises(DataError, match=r"no text column 'text' \(there are: a, b\)"):
        read_texts(path)
    with pytest.raises(DataError, match=r"no text column 'n'"):
        read_texts(path, column="n")
    pq.write_table(pa.table({"a": ["x", None]}), path)
    with pytest.raises(DataError, match="row 1: column 'a' is null"):
        read_texts(path)


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_vectors_are_written_block_by_block(tmp_path: Path, suffix: str) -> None:
    vectors = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / f"v{suffix}"
    write_vectors(path, TEXTS, iter([vectors[:2], vectors[2:]]), dim=4)
    if suffix == ".npy":
        read = np.load(path, allow_pickle=False)
        assert read.dtype == np.float32
    else:
        table = pq.read_table(path)
        assert table["text"].to_pylist() == TEXTS
        read = np.array(table["vector"].to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(read, vectors)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_a_broken_writing_leaves_the_earlier_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v{suffix}"
    path.write_bytes(b"earlier")

    def blocks() -> object:
        yield np.zeros((1, 4), np.float32)
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        write_vectors(path, TEXTS, blocks(), dim=4)  # type: ignore[arg-type]
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_target_that_cannot_be_is_refused_beforehand(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"written as \.npy or \.parquet, not \.csv"):
        check_vector_file(tmp_path / "a.csv")
    with pytest.raises(DataError, match="make it first"):
        check_vector_file(tmp_path / "nowhere" / "a.npy")
