"""Source rows: the one schema that every source is written in, the checks that a row must pass, and reading them back.

A row is a query, its passage (the positive), up to ``num_negatives`` hard negatives, and where known the language, the class and the
split (ML-Embed, arXiv 2605.15081, data section: columns ``query``, ``passage``, ``negative_1 …``). A source is one file,
``rows.parquet``. Checks work on whole Arrow tables, so that a file of ten million rows passes through in constant memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlembed_core.errors import ArtifactError

ROWS_FILE = "rows.parquet"
SPLITS = ("train", "dev", "test")
ROW_GROUP = 10_000


class Row(NamedTuple):
    """One row, as the embedded builders make it. ``negatives`` may be shorter than the source's ``num_negatives``."""

    query: str
    passage: str
    negatives: Sequence[str]
    lang: str | None
    label: str | None
    split: str | None


class Cleaned(NamedTuple):
    """What is left of a table, and how many rows each check took away."""

    table: pa.Table
    dropped: dict[str, int]


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


def clean(table: pa.Table) -> Cleaned:
    """Take away the rows that no training may see, and count them by reason.

    A query or passage that is missing or blank teaches nothing; a query equal to its passage has similarity 1 for free; a passage
    that is also its row's negative is pushed and pulled at once. Blank negatives become nulls, which readers skip.

    Args:
        table: columns of :func:`schema`, any number of rows.

    Returns:
        the good rows in their order, and ``{"dropped_empty_query": n, …}`` with one entry per check.
    """
    negatives = [name for name in table.column_names if name.startswith("negative_")]
    for name in negatives:
        column = table[name]
        table = table.set_column(table.column_names.index(name), name, pc.if_else(_blank(column), pa.scalar(None, pa.string()), column))
    hits_own_negative = pa.chunked_array([pa.array(np.zeros(table.num_rows, dtype=bool))])
    for name in negatives:
        hits_own_negative = pc.or_(hits_own_negative, pc.fill_null(pc.equal(table["passage"], table[name]), False))
    checks = {
        "dropped_empty_query": _blank(table["query"]),
        "dropped_empty_passage": _blank(table["passage"]),
        "dropped_query_equals_passage": pc.fill_null(pc.equal(table["query"], table["passage"]), False),
        "dropped_passage_among_negatives": hits_own_negative,
    }
    dropped: dict[str, int] = {}
    bad = np.zeros(table.num_rows, dtype=bool)
    for reason, found in checks.items():
        first = found.to_numpy(zero_copy_only=False).astype(bool) & ~bad  # a row counts under the first check that it fails
        dropped[reason] = int(first.sum())
        bad |= first
    return Cleaned(table.filter(pa.array(~bad)), dropped)


def _blank(column: Any) -> Any:
    """True where a text is missing or only white space."""
    return pc.fill_null(pc.or_(pc.equal(column, ""), pc.utf8_is_space(column)), True)


def row_keys(queries: Iterable[str], passages: Iterable[str]) -> np.ndarray:
    """What rows are chosen by: 64 bits of SHA-256 of query and passage, so the same row has the same fate in every file and order.

    Returns:
        uint64, one per row.
    """
    digests = [hashlib.sha256(f"{query}\x00{passage}".encode()).digest()[:8] for query, passage in zip(queries, passages, strict=True)]
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def keep_by_hash(keys: np.ndarray, splits: Sequence[str | None], max_rows: int | None) -> np.ndarray:
    """Which rows stay when a source may have at most ``max_rows``: per split those with the lowest keys, in proportion to its size.

    Args:
        keys: uint64, one per row (:func:`row_keys`).
        splits: one per row.

    Returns:
        bool, one per row, with ``min(max_rows, len(keys))`` true.
    """
    keep = np.ones(len(keys), dtype=bool)
    if max_rows is None or len(keys) <= max_rows:
        return keep
    members = {split: np.flatnonzero(np.array([s == split for s in splits], dtype=bool)) for split in (*SPLITS, None)}
    quotas = _shares({split: len(rows) for split, rows in members.items()}, max_rows)
    for split, rows in members.items():
        order = rows[np.argsort(keys[rows], kind="stable")]
        keep[order[quotas[split] :]] = False
    return keep


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
        self._num_waiting = 0
        self.num_rows = dict.fromkeys((*SPLITS, None), 0)
        self.languages: set[str] = set()

    def __enter__(self) -> RowWriter:
        return self

    def write(self, table: pa.Table) -> None:
        """Add clean rows: the columns of :func:`schema`, in that order."""
        for split in pc.value_counts(table["split"]).to_pylist():
            self.num_rows[split["values"]] += split["counts"]
        self.languages |= {lang for lang in pc.unique(table["lang"]).to_pylist() if lang is not None}
        self._waiting.append(pa.table(table.columns, schema=self._schema))
        self._num_waiting += table.num_rows
        while self._num_waiting >= ROW_GROUP:
            self._flush(ROW_GROUP)

    def _flush(self, num_rows: int) -> None:
        joined = pa.concat_tables(self._waiting).combine_chunks()
        self._writer.write_table(joined.slice(0, num_rows), row_group_size=ROW_GROUP)
        rest = joined.slice(num_rows)
        self._waiting, self._num_waiting = ([rest], rest.num_rows) if rest.num_rows else ([], 0)

    def __exit__(self, kind: object, *_: object) -> None:
        if self._num_waiting and kind is None:
            self._flush(self._num_waiting)
        self._writer.close()

    def counts(self) -> dict[str, int]:
        """Rows in all, by split (``rows_unsplit`` where the source names none) and languages, for the manifest."""
        counts = {"rows": sum(self.num_rows.values())} | {f"rows_{split}": self.num_rows[split] for split in SPLITS}
        if self.num_rows[None]:
            counts["rows_unsplit"] = self.num_rows[None]
        return counts | {"languages": len(self.languages)}


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
