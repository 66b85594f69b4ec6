"""Parquet files of text or tokens, read in bounded pieces; repeated texts handled once; stable hashes of texts.

Rows repeat themselves: the negatives of one row are passages of others. So the text columns are read in dictionary form and every
distinct text of a piece is touched once, however many cells hold it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mlembed_core.errors import ArtifactError

BATCH_ROWS = 2048  # bounds memory: 26 text columns of 2 kB are some 100 MB if no text repeats


def num_rows(path: Path) -> int:
    """Rows of a parquet file, from its footer.

    Raises:
        ArtifactError: the file is missing or damaged; the message names it.
    """
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def rows_of_groups(path: Path) -> list[int]:
    """Rows of each row group of a parquet file, from its footer.

    Raises:
        ArtifactError: the file is missing or damaged; the message names it.
    """
    with _opened(path) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def num_row_groups(path: Path) -> int:
    """Row groups of a parquet file."""
    return len(rows_of_groups(path))


def require_columns(path: Path, columns: Sequence[str]) -> None:
    """Refuse a file that lacks some of the columns.

    Raises:
        ArtifactError: it does, or is missing or damaged; the message names it.
    """
    with _opened(path) as file:
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise ArtifactError(
                f"{path} lacks the columns {', '.join(missing)} (it has {', '.join(file.schema_arrow.names)}). "
                "Delete its folder and run `dvc repro`, which makes it again."
            )


def read_group(path: Path, group: int, columns: Sequence[str], *, distinct_texts: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The named columns of one row group, cut where a count of ``BATCH_ROWS`` through the whole file cuts.

    Args:
        distinct_texts: columns to give in dictionary form (see :func:`distinct`).

    Raises:
        ArtifactError: the file is missing or damaged; the message names it.
    """
    first = sum(rows_of_groups(path)[:group])
    with _opened(path, read_dictionary=list(distinct_texts)) as file:
        table = file.read_row_group(group, columns=list(columns)).combine_chunks()
    start = 0
    while start < table.num_rows:
        stop = min(start + BATCH_ROWS - (first + start) % BATCH_ROWS, table.num_rows)
        yield from table.slice(start, stop - start).to_batches()
        start = stop


def read_batches(path: Path, columns: Sequence[str], *, distinct_texts: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The named columns, at most ``BATCH_ROWS`` rows at a time.

    Args:
        distinct_texts: columns to give in dictionary form (see :func:`distinct`).

    Raises:
        ArtifactError: the file is missing or damaged, or lacks a column; the message names it.
    """
    require_columns(path, columns)
    with _opened(path, read_dictionary=list(distinct_texts)) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))


@contextmanager
def _opened(path: Path, *, read_dictionary: list[str] | None = None) -> Iterator[pq.ParquetFile]:
    """A parquet file whose every read error, in the body too, names the file."""
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist. `dvc repro` makes it, `dvc pull` fetches it.")
    try:
        with pq.ParquetFile(path, read_dictionary=read_dictionary) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(
            f"{path} is not a readable parquet file ({error}). It is truncated or damaged: run `dvc checkout {path.parent}`, "
            "or delete its folder and run `dvc repro`."
        ) from error


def distinct(columns: Sequence[pa.Array]) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct texts of several equally long columns, and which of them each cell holds.

    Args:
        columns: string arrays, plain or in dictionary form.

    Returns:
        The texts in order of first appearance (column by column), and their indices of shape (columns, rows), −1 for null.
    """
    cells = pa.chunked_array([column if pa.types.is_dictionary(column.type) else column.dictionary_encode() for column in columns])
    unified = cells.unify_dictionaries()
    index = np.stack([chunk.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) for chunk in unified.chunks])
    # A dictionary may hold texts that no row of this piece uses, in an order that depends on how the file was written.
    used, first = np.unique(index.ravel(), return_index=True)
    used = used[np.argsort(first, kind="stable")]
    used = used[used >= 0]
    dictionary = unified.chunk(0).dictionary
    position = np.full(len(dictionary) + 1, -1, dtype=np.int64)  # the last cell is what −1 points at
    position[used] = np.arange(len(used))
    return dictionary.take(pa.array(used)).to_pylist(), position[index]


def hash_key(content: str | bytes | memoryview) -> bytes:
    """16 bytes that stand for a text (or token ids) in a table of those seen: the same in every process and on every machine."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=16).digest()


def hash_fraction(key: bytes) -> float:
    """A number in [0, 1), uniform over keys: ``hash_fraction(key) < share`` chooses that share of all texts, the same ones for ever."""
    return int.from_bytes(key[:6], "big") / 2**48
