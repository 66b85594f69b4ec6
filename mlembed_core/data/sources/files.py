"""Files of pairs, a team's own or fetched from the hub: parquet, JSON lines or CSV, read in bounded pieces into the one schema.

A fault of a whole file (a missing column, another type, a damaged page) stops the stage and names the file, the column and the row
group; single rows that no training may see are dropped and counted (:mod:`mlembed_core.data.checks`). However large a file or its row
groups are, a piece holds some tens of megabytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from mlembed_core.config.data import FileParams
from mlembed_core.data.checks import Flags, RowFilter
from mlembed_core.data.rows import SPLITS, keep_by_hash, negative_columns, row_keys, schema, split_codes
from mlembed_core.errors import DataError
from mlembed_core.progress import Reporter

OPTIONAL = ("lang", "label", "split")
COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
PIECE_ROWS = 2048
PIECE_BYTES = 2**26
BLOCK_BYTES = 2**24  # of JSON and CSV, read at a time; no row may be longer
READ_BUFFER_BYTES = 2**20  # of each column
AGAIN = "write or copy it again"


class Piece(NamedTuple):
    """Some rows of a file.

    Attributes:
        table: columns of :func:`mlembed_core.data.rows.schema`.
        where: for messages.
        broken: rows with a text that is no UTF-8 and null here; None: there is none.
    """

    table: pa.Table
    where: str
    broken: Flags | None


@dataclass(frozen=True)
class SourceFile:
    """One file.

    Attributes:
        shown: its path as it may stand in a manifest.
        language: of all its rows that name none, where that is known.
    """

    path: Path
    shown: str
    language: str | None = None


class Reader(NamedTuple):
    """What one form of files needs.

    Attributes:
        columns: column → its Arrow type, from the file's head.
        pieces: (where, table) of the named columns, in order.
    """

    columns: Callable[[Path], Mapping[str, pa.DataType]]
    pieces: Callable[[Path, list[str]], Iterator[tuple[str, pa.Table]]]


def find_local(
    name: str, patterns: Sequence[FileParams], *, root: Path, num_negatives: int, languages: Sequence[str] | None = None
) -> SourceFiles:
    """Resolve paths and globs (``**`` too) against ``root``, the workspace.

    Args:
        languages: of the source as a whole.

    Raises:
        DataError: a pattern matches nothing, a file is of no known form, or lacks a column, or has it in another type.
    """
    found: dict[Path, SourceFile] = {}
    for pattern in patterns:
        paths = pattern.matches(root)
        if not paths:
            raise DataError(
                f"sources.{name}.origin.files: {pattern.path!r} matches no file in {root}. "
                "Paths and globs are relative to the workspace; put the files there or correct the pattern."
            )
        for path in paths:
            shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
            found.setdefault(path, SourceFile(path, shown, only_language(pattern.languages or languages)))
    return SourceFiles.checked(name, [found[path] for path in sorted(found)], num_negatives=num_negatives)


def only_language(languages: Sequence[str] | None) -> str | None:
    return languages[0] if languages is not None and len(languages) == 1 else None


@dataclass(frozen=True)
class SourceFiles:
    """The files of one source, found and their columns checked.

    Attributes:
        name: the source's, for messages.
        num_negatives: columns ``negative_1 … negative_N`` that each file must have.
    """

    name: str
    files: tuple[SourceFile, ...]
    num_negatives: int

    @classmethod
    def checked(cls, name: str, files: Sequence[SourceFile], *, num_negatives: int) -> SourceFiles:
        """Look at each file's head.

        Raises:
            DataError: see :func:`find_local`.
        """
        source = cls(name, tuple(files), num_negatives)
        for file in files:
            source._check_columns(file.path)
        return source

    def label_column(self, passage_is_label: bool) -> str:
        """Where a row's class stands: in a column of its own if all files have one, else the passage may be its name."""
        has_column = all("label" in _reader(file.path).columns(file.path) for file in self.files)
        return "passage" if passage_is_label and not has_column else "label"

    def chosen_tables(
        self, max_rows: int | None, new_filter: Callable[[], RowFilter], *, max_rows_per_file: int | None = None
    ) -> Iterator[pa.Table]:
        """The good rows of all files in bounded pieces.

        Reads the files twice where there is a limit: the hashes first, the chosen rows then.

        Args:
            max_rows: at most so many in all, chosen by the hash of query and passage.
            max_rows_per_file: and so many of each file, chosen first.
            new_filter: makes what the rows pass through, anew for each reading.

        Raises:
            DataError: a piece cannot be read, names an unknown split, or holds a row that a check stops at.
        """
        keep = None if max_rows is max_rows_per_file is None else self._choose(max_rows, max_rows_per_file, new_filter())
        position = 0
        for _, table in self._good_tables(new_filter(), f"reading {self.name}"):
            if keep is not None:
                mask = keep[position : position + table.num_rows]
                position += table.num_rows
                table = table.filter(pa.array(mask))
            if table.num_rows:
                yield table

    def _choose(self, max_rows: int | None, max_rows_per_file: int | None, rows: RowFilter) -> Flags:
        """Which of the good rows stay."""
        keys: list[list[np.ndarray]] = [[] for _ in self.files]
        splits: list[list[np.ndarray]] = [[] for _ in self.files]
        for number, table in self._good_tables(rows, f"choosing rows of {self.name}"):
            keys[number].append(row_keys(table["query"].to_pylist(), table["passage"].to_pylist()))
            splits[number].append(split_codes(table["split"].to_pylist()))
        of_files = [
            (np.concatenate(keys_of, dtype=np.uint64), np.concatenate(splits_of, dtype=np.int8))
            for keys_of, splits_of in zip(keys, splits, strict=True)
            if keys_of
        ]
        if not of_files:
            return np.zeros(0, dtype=np.bool_)
        all_keys, all_splits = (np.concatenate(parts) for parts in zip(*of_files, strict=True))
        keep: Flags = np.concatenate([keep_by_hash(*of_file, max_rows_per_file) for of_file in of_files])
        keep[keep] = keep_by_hash(all_keys[keep], all_splits[keep], max_rows)
        return keep

    def _good_tables(self, rows: RowFilter, description: str) -> Iterator[tuple[int, pa.Table]]:
        """Number of a file, and some of its good rows."""
        with Reporter(description, None, "rows") as progress:
            for number, file in enumerate(self.files):
                for piece in self._pieces(file):
                    yield number, rows.filter(piece.table, where=piece.where, broken=piece.broken)
                    progress.advance(piece.table.num_rows)
        rows.close()

    def _pieces(self, file: SourceFile) -> Iterator[Piece]:
        """One file in the one schema; optional columns that it lacks become nulls."""
        reader = _reader(file.path)
        there = reader.columns(file.path)
        target = schema(self.num_negatives)
        present = [name for name in target.names if name in there]
        for where, table in reader.pieces(file.path, present):
            table, broken = _decoded(table)
            columns = {name: table[name] for name in present}
            absent = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
            for name in OPTIONAL:
                # A CSV file has no nulls, and nobody means "" by an empty cell there.
                columns[name] = pc.if_else(pc.equal(columns[name], ""), absent, columns[name]) if name in columns else absent
            if file.language is not None:
                columns["lang"] = pc.fill_null(columns["lang"], file.language)
            self._check_splits(where, columns["split"])
            yield Piece(pa.table([columns[name] for name in target.names], names=target.names), where, broken)

    def _check_columns(self, path: Path) -> None:
        found = _reader(path).columns(path)
        needed = ["query", "passage", *negative_columns(self.num_negatives)]
        for column in needed:
            if column not in found:
                raise DataError(f"{path} has no column {column!r} (it has: {', '.join(found) or 'none'}). {self._remedy(column, found)}")
        for column in (*needed, *(name for name in OPTIONAL if name in found)):
            if not _is_text(found[column]):
                raise DataError(
                    f"{path}: column {column!r} is of type {found[column]}, it must be text (string). Write the column as strings."
                )

    def _remedy(self, column: str, found: Mapping[str, Any]) -> str:
        if not column.startswith("negative_"):
            return "A source needs `query`, `passage` and its negatives; rename or add the column."
        there = 0
        while f"negative_{there + 1}" in found:
            there += 1
        return (
            f"Set sources.{self.name}.num_negatives to {there}, which is how many this file has, "
            "or add the column (empty cells are allowed)."
        )

    def _check_splits(self, where: str, split: pa.ChunkedArray) -> None:
        for value in sorted(pc.unique(pc.drop_null(split)).to_pylist()):
            if value not in SPLITS:
                raise DataError(
                    f"{where}: column 'split' holds {value!r}; allowed are {', '.join(SPLITS)}, or no value at all "
                    "(validation rows are then held out by hash)."
                )


def _reader(path: Path) -> Reader:
    suffixes = [suffix for suffix in path.suffixes[-2:] if suffix not in COMPRESSED]
    form = suffixes[-1] if suffixes else ""
    if form not in READERS or (form == ".parquet" and path.suffix in COMPRESSED):
        raise DataError(
            f"{path} is of no form that a source can have: allowed are {', '.join(READERS)}, all but parquet also compressed "
            f"({', '.join(COMPRESSED)}). Convert it, or narrow the pattern."
        )
    return READERS[form]


def _parquet_columns(path: Path) -> Mapping[str, pa.DataType]:
    try:
        found: pa.Schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}. It may be truncated; {AGAIN}, then `dvc repro`.") from None
    return {field.name: field.type for field in found}


def _parquet_pieces(path: Path, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    try:
        file = pq.ParquetFile(path, buffer_size=READ_BUFFER_BYTES, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable parquet file: {error}; {AGAIN}, then `dvc repro`.") from None
    with file:
        for group in range(file.num_row_groups):
            where = f"{path}, row group {group} of {file.num_row_groups}"
            metadata = file.metadata.row_group(group)
            batch_rows = max(1, min(PIECE_ROWS, PIECE_BYTES * metadata.num_rows // max(metadata.total_byte_size, 1)))
            batches = file.iter_batches(batch_size=batch_rows, row_groups=[group], columns=columns)
            num_rows = 0
            while (batch := _next(batches, where)) is not None:
                yield where + (f" (from its row {num_rows} on)" if num_rows else ""), pa.Table.from_batches([batch])
                num_rows += batch.num_rows
            if num_rows != metadata.num_rows:
                raise DataError(f"{where} gave {num_rows} rows of the {metadata.num_rows} that its footer tells of; {AGAIN}.")


def _json_columns(path: Path) -> Mapping[str, pa.DataType]:
    """From the first record alone: later ones may leave out what they have not, but not add to it."""
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            head = stream.read(BLOCK_BYTES)
        first = next((line for line in head.split(b"\n") if line.strip()), b"{}")
        record = json.loads(first)
        if not isinstance(record, dict):
            raise TypeError("its first line is no object")
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} is not a file of JSON lines: {error}. Each line must be an object; {AGAIN}.") from None
    return {name: pa.null() if value is None else pa.scalar(value).type for name, value in record.items()}


def _json_pieces(path: Path, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    try:
        if not path.stat().st_size:
            return
        batches = pyarrow.json.open_json(
            str(path),
            read_options=pyarrow.json.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema([(name, pa.string()) for name in columns]), unexpected_field_behavior="ignore"
            ),
        )
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}. Each line must be one object whose columns are text; {AGAIN}.") from None
    yield from _numbered(path, batches)


def _csv_options(path: Path) -> dict[str, Any]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    return {
        "read_options": pyarrow.csv.ReadOptions(use_threads=False, block_size=BLOCK_BYTES),
        "parse_options": pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
    }


def _csv_columns(path: Path) -> Mapping[str, pa.DataType]:
    try:
        with pyarrow.csv.open_csv(str(path), **_csv_options(path), convert_options=pyarrow.csv.ConvertOptions(check_utf8=False)) as file:
            names = file.schema.names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a readable CSV file: {error}. Its first line must name the columns; {AGAIN}.") from None
    return dict.fromkeys(names, pa.string())


def _csv_pieces(path: Path, columns: list[str]) -> Iterator[tuple[str, pa.Table]]:
    convert = pyarrow.csv.ConvertOptions(check_utf8=False, include_columns=columns, column_types=dict.fromkeys(columns, pa.string()))
    try:
        batches = pyarrow.csv.open_csv(str(path), **_csv_options(path), convert_options=convert)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; {AGAIN}.") from None
    yield from _numbered(path, batches)


def _numbered(path: Path, batches: Any) -> Iterator[tuple[str, pa.Table]]:
    """Blocks of text files in pieces, each named by its rows."""
    first = 0
    with batches:
        iterator = iter(batches)
        while (batch := _next(iterator, f"{path}, behind row {first}")) is not None:
            for start in range(0, batch.num_rows, PIECE_ROWS):
                piece = pa.Table.from_batches([batch.slice(start, PIECE_ROWS)])
                yield f"{path}, rows {first} to {first + piece.num_rows - 1}", piece
                first += piece.num_rows


def _next(batches: Iterator[pa.RecordBatch], where: str) -> pa.RecordBatch | None:
    """The next batch, None behind the last one; an error of the library's names the place."""
    try:
        return next(batches, None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"{where} cannot be read: {error}. The file is damaged, or of another form than its name says; {AGAIN}."
        raise DataError(message) from None


READERS: Mapping[str, Reader] = {
    ".parquet": Reader(_parquet_columns, _parquet_pieces),
    ".jsonl": Reader(_json_columns, _json_pieces),
    ".ndjson": Reader(_json_columns, _json_pieces),
    ".csv": Reader(_csv_columns, _csv_pieces),
    ".tsv": Reader(_csv_columns, _csv_pieces),
}


def _decoded(table: pa.Table) -> tuple[pa.Table, Flags | None]:
    """All columns as plain strings; texts that are no UTF-8 become nulls, and their rows are told."""
    columns = {name: _plain(table[name]) for name in table.column_names}
    broken: Flags | None = None
    for name, column in columns.items():
        try:
            column.validate(full=True)
        except pa.ArrowException:
            texts = [_text_or_none(value) for value in column.cast(pa.binary()).to_pylist()]
            columns[name] = pa.chunked_array([pa.array([text for text, _ in texts], pa.string())])
            if not name.startswith("negative_"):
                broken = np.array([bad for _, bad in texts]) | (False if broken is None else broken)
    return pa.table(columns), broken


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
    if pa.types.is_string(column.type):
        return column
    if pa.types.is_null(column.type):
        return column.cast(pa.string())
    # By way of bytes, so that text which is no UTF-8 gets as far as the check for it.
    return pa.chunked_array([chunk.cast(pa.binary()).view(pa.string()) for chunk in column.chunks], pa.string())


def _text_or_none(value: bytes | None) -> tuple[str | None, bool]:
    """The text and whether it is broken."""
    try:
        return (None if value is None else value.decode()), False
    except UnicodeDecodeError:
        return None, True


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind))
