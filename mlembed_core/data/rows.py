"""Source rows: the one schema that every source is written in, the choice among them, writing them and reading them back.

A row is a query, its passage (the positive), up to ``num_negatives`` hard negatives, and where known the language, the class and the
split (ML-Embed, arXiv 2605.15081, data section: columns ``query``, ``passage``, ``negative_1 …``). A source is one file,
``rows.parquet``, written and read in pieces of bounded size. What a row has to be is checked in :mod:`mlembed_core.data.checks`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mlembed_core.errors import ArtifactError

ROWS_FILE = "rows.parquet"
SPLITS = ("train", "dev", "test")
ROW_GROUP = 10_000  # rows at most
ROW_GROUP_BYTES = 2**27  # of text at most (but for a row alone), since a row may be 26 long texts


class Row(NamedTuple):
    """One row, as the embedded builders make it. ``negatives`` may be shorter than the source's ``num_negatives``."""

    query: str
    passage: str
    negatives: Sequence[str]
    lang: str | None
    label: str | None
    split: str | None


def negative_columns(num_negatives: int) -> list[str]:
    """``negative_1 … negative_N``."""
    return [f"negative_{k}" for k in range(1, num_negatives + 1)]


def schema(num_negatives: int) -> pa.Schema:
    """The columns of ``rows.parquet``, all text: query and passage always filled, the others where known."""
    required = [pa.field("query", pa.string(), nullable=False), pa.field("passage", pa.string(), nullable=False)]
    optional = [pa.field(name, pa.string()) for name in (*negative_columns(num_negatives), "lang", "label", "split")]
    return pa.schema(required + optional)


def to_table(rows: Sequence[Row], num_negatives: int) -> pa.Table:
    """Rows as a table of :func:`schema`; missing negatives become nulls."""
    columns: dict[str, list[str | None]] = {
        "query": [row.query for row in rows],
        "passage": [row.passage for row in rows],
    }
    for k, name in enumerate(negative_columns(num_negatives)):
        columns[name] = [row.negatives[k] if k < len(row.negatives) else None for row in rows]
    columns |= {"lang": [row.lang for row in rows], "label": [row.label for row in rows], "split": [row.split for row in rows]}
    return pa.table(columns, schema=schema(num_negatives))


def row_keys(queries: Iterable[str], passages: Iterable[str]) -> np.ndarray:
    """What rows are chosen by: 64 bits of SHA-256 of query and passage, so the same row has the same fate in every file and order.

    Returns:
        uint64, one per row.
    """
    digests = [hashlib.sha256(f"{query}\x00{passage}".encode()).digest()[:8] for query, passage in zip(queries, passages, strict=True)]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def keep_by_hash(keys: np.ndarray, splits: Sequence[str | None] | NDArray[np.int8], max_rows: int | None) -> np.ndarray:
    """Which rows stay when a source may have at most ``max_rows``: per split those with the lowest keys, in proportion to its size.

    Args:
        keys: uint64, one per row (:func:`row_keys`).
        splits: one per row, by name or by code (:func:`split_codes`).

    Returns:
        bool, one per row, with ``min(max_rows, len(keys))`` true.
    """
    keep = np.ones(len(keys), dtype=bool)
    if max_rows is None or len(keys) <= max_rows:
        return keep
    codes = splits if isinstance(splits, np.ndarray) else split_codes(splits)
    members = {split: np.flatnonzero(codes == code) for code, split in enumerate((*SPLITS, None))}
    quotas = _shares({split: len(rows) for split, rows in members.items()}, max_rows)
    for split, rows in members.items():
        order = rows[np.argsort(keys[rows], kind="stable")]
        keep[order[quotas[split] :]] = False
    return keep


def split_codes(splits: Sequence[str | None]) -> NDArray[np.int8]:
    """A byte per row: its split's place in ``SPLITS``, one more where there is none."""
    code = {split: number for number, split in enumerate((*SPLITS, None))}
    return np.fromiter((code[split] for split in splits), dtype=np.int8, count=len(splits))


def _shares(sizes: dict[str | None, int], total: int) -> dict[str | None, int]:
    """``total`` dealt out in proportion to ``sizes``; what rounding leaves goes to the largest remainders."""
    everything = sum(sizes.values())
    shares = {name: size * total // everything for name, size in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: (-(sizes[name] * total % everything), str(name)))
    for name in by_remainder[: total - sum(shares.values())]:
        shares[name] += 1
    return shares


class RowWriter:
    """Writes ``rows.parquet`` piece by piece, in row groups of one size whatever the pieces' sizes: equal rows give equal bytes."""

    def __init__(self, folder: Path, num_negatives: int) -> None:
        self._schema = schema(num_negatives)
        self._writer = pq.ParquetWriter(folder / ROWS_FILE, self._schema, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._num_waiting = self._num_bytes = 0
        self.num_rows = dict.fromkeys((*SPLITS, None), 0)
        self.languages: set[str] = set()

    def __enter__(self) -> RowWriter:
        return self

    def write(self, table: pa.Table) -> None:
        """Add clean rows: the columns of :func:`schema`, in that order."""
        for split in pc.value_counts(table["split"]).to_pylist():
            self.num_rows[split["values"]] += split["counts"]
        self.languages |= {lang for lang in pc.unique(table["lang"]).to_pylist() if lang is not None}
        table = pa.table(table.columns, schema=self._schema)
        ends = self._num_bytes + np.cumsum(_row_bytes(table))
        while table.num_rows:
            fit = min(int(np.searchsorted(ends, ROW_GROUP_BYTES, side="right")), ROW_GROUP - self._num_waiting, table.num_rows)
            if fit == 0 and not self._num_waiting:
                fit = 1  # a row above the limit is a group of its own
            if fit:
                self._waiting.append(table.slice(0, fit))
                self._num_waiting += fit
                self._num_bytes = int(ends[fit - 1])
            table, ends = table.slice(fit), ends[fit:]
            if table.num_rows or self._num_waiting == ROW_GROUP:
                ends = ends - self._num_bytes
                self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.concat_tables(self._waiting).combine_chunks(), row_group_size=ROW_GROUP)
        self._waiting, self._num_waiting, self._num_bytes = [], 0, 0

    def __exit__(self, kind: object, *_: object) -> None:
        if self._num_waiting and kind is None:
            self._flush()
        self._writer.close()

    def counts(self) -> dict[str, int]:
        """Rows in all, by split (``rows_unsplit`` where the source names none) and languages, for the manifest."""
        counts = {"rows": sum(self.num_rows.values())} | {f"rows_{split}": self.num_rows[split] for split in SPLITS}
        if self.num_rows[None]:
            counts["rows_unsplit"] = self.num_rows[None]
        return counts | {"languages": len(self.languages)}


def _row_bytes(table: pa.Table) -> NDArray[np.int64]:
    """Bytes of text of each row."""
    sizes = np.zeros(table.num_rows, dtype=np.int64)
    for column in table.columns:
        sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy().astype(np.int64)
    return sizes


def read_rows(folder: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a source that the stage ``source`` wrote.

    Args:
        folder: ``data/sources/NAME``.
        columns: which to read; all when None.

    Raises:
        ArtifactError: the file is missing, truncated or damaged, or lacks a column; the message names it and what makes it.
    """
    path = folder / ROWS_FILE
    remedy = f"`mlembed source {folder.name}` (or `dvc repro source@{folder.name}`) makes it"
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist. {remedy}.")
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in columns or () if name not in file.schema_arrow.names]
            if missing:
                raise ArtifactError(f"{path} has no column {missing[0]!r} (it has: {', '.join(file.schema_arrow.names)}). {remedy}.")
            return file.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is damaged or truncated ({error}). Delete its folder; {remedy} again.") from None
