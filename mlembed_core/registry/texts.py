"""Texts of a person's own file, and vectors written beside them.

Text files: ``.txt`` (a text per line), ``.jsonl`` (a string or an object per line), ``.parquet`` (a column). Vectors: ``.npy``
(float32, int8 or packed bits, one row per text, never a pickle) or ``.parquet`` (columns ``text`` and ``vector``).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mlembed_core.errors import DataError

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
VECTOR_SUFFIXES = (".npy", ".parquet")
DEFAULT_COLUMN = "text"


def read_texts(path: Path, *, column: str | None = None) -> list[str]:
    """All texts of a file, in its order; an empty line of a ``.txt`` is an empty text, so that row i stays line i.

    Args:
        column: the key or column that holds the text; None takes ``text``, or the only text column of a parquet file.

    Raises:
        DataError: the file is missing, empty, damaged or of an unknown kind, or lacks the column; the message names file and line.
    """
    if path.suffix not in TEXT_SUFFIXES:
        raise DataError(f"{path}: texts are read from {', '.join(TEXT_SUFFIXES)} files, not {path.suffix or 'a file without suffix'}")
    try:
        if path.suffix == ".parquet":
            texts = _read_parquet(path, column)
        else:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            lines = lines[:-1] if lines[-1] == "" else lines  # what follows the last line's end is no line
            texts = [line.removesuffix("\r") for line in lines] if path.suffix == ".txt" else _read_jsonl(path, lines, column)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); convert it first, e.g. `iconv -f latin1 -t utf-8`") from None
    if not texts:
        raise DataError(f"{path} holds no texts")
    return texts


def _read_jsonl(path: Path, lines: Sequence[str], column: str | None) -> list[str]:
    key = column or DEFAULT_COLUMN
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}); each line is a string or an object"
            ) from None
        text = value.get(key) if isinstance(value, dict) else value
        if not isinstance(text, str):
            found = f"keys {', '.join(map(str, value)) or 'none'}" if isinstance(value, dict) else type(value).__name__
            raise DataError(f"{path}, line {number}: no text under {key!r} (found: {found}); name its key with --column")
        texts.append(text)
    return texts


def _read_parquet(path: Path, column: str | None) -> list[str]:
    try:
        schema = pq.read_schema(path)
        texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
        chosen = column or (DEFAULT_COLUMN if DEFAULT_COLUMN in texts or len(texts) != 1 else texts[0])
        if chosen not in texts:
            raise DataError(f"{path} has no text column {chosen!r} (there are: {', '.join(texts) or 'none'}); name one with --column")
        values = pq.read_table(path, columns=[chosen]).column(chosen).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path} is damaged or no parquet file: {error}") from None
    for number, value in enumerate(values):
        if value is None:
            raise DataError(f"{path}, row {number}: column {chosen!r} is null; drop such rows first")
    return [str(value) for value in values]


def check_vector_file(path: Path) -> None:
    """Refuse a target that could not be written, before any work is done.

    Raises:
        DataError: an unknown suffix, or no such folder.
    """
    if path.suffix not in VECTOR_SUFFIXES:
        raise DataError(f"{path}: vectors are written as {' or '.join(VECTOR_SUFFIXES)}, not {path.suffix or 'a file without suffix'}")
    if not path.parent.is_dir():
        raise DataError(f"{path}: the folder {path.parent} does not exist; make it first")


def write_vectors(
    path: Path, texts: Sequence[str], blocks: Iterable[NDArray[Any]], *, dim: int, kind: type[np.generic] = np.float32
) -> None:
    """Write vectors block by block, so that memory does not grow with the file; ``path`` appears only when it is whole.

    Args:
        texts: one per row over all blocks.
        blocks: arrays (rows, dim) of type ``kind`` that follow each other.
    """
    with _whole(path) as draft:
        if path.suffix == ".npy":
            array = np.lib.format.open_memmap(draft, mode="w+", dtype=kind, shape=(len(texts), dim))
            done = 0
            for block in blocks:
                array[done : done + len(block)] = block
                done += len(block)
            array.flush()
        else:
            column = pa.list_(pa.from_numpy_dtype(kind), dim)
            done = 0
            with pq.ParquetWriter(draft, pa.schema([("text", pa.string()), ("vector", column)]), compression="zstd") as writer:
                for block in blocks:
                    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(block).reshape(-1)), type=column)
                    writer.write_batch(
                        pa.record_batch([pa.array(texts[done : done + len(block)], pa.string()), vectors], schema=writer.schema)
                    )
                    done += len(block)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    draft = path.with_name(f".{path.name}.partial")
    try:
        yield draft
        draft.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)
