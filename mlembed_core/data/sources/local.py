"""A team's own pairs: parquet files with the columns of the recipe, checked and brought into the one schema.

Files are read a row group at a time, so that their size never matters. A fault of a whole file (a missing column, another type, a
damaged page) stops the stage and names the file, the column and the row group; single rows that no training may see are dropped and
counted (:func:`mlembed_core.data.rows.clean`).
"""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlembed_core.data.rows import SPLITS, clean, keep_by_hash, negative_columns, row_keys, schema
from mlembed_core.errors import DataError
from mlembed_core.progress import track

OPTIONAL = ("lang", "label", "split")


@dataclass(frozen=True)
class LocalFiles:
    """The files of one source, found and their columns checked.

    Attributes:
        name: the source's, for messages.
        paths: in the order of their names.
        num_negatives: columns ``negative_1 … negative_N`` that each file must have.
    """

    name: str
    paths: tuple[Path, ...]
    num_negatives: int

    @classmethod
    def find(cls, name: str, patterns: Sequence[str], *, root: Path, num_negatives: int) -> LocalFiles:
        """Resolve paths and globs (``**`` too) against ``root``, the workspace.

        Raises:
            DataError: a pattern matches nothing, a file is no parquet file, or lacks a column, or has it in another type.
        """
        paths: set[Path] = set()
        for pattern in patterns:
            # Not Path.glob, which refuses absolute patterns and ".."; a team's files may lie beside the workspace.
            found = [root / match for match in glob.glob(pattern, root_dir=root, recursive=True)]  # noqa: PTH207
            if not any(path.is_file() for path in found):
                raise DataError(
                    f"sources.{name}.origin.files: {pattern!r} matches no file in {root}. "
                    "Paths and globs are relative to the workspace; put the parquet files there or correct the pattern."
                )
            paths |= {path for path in found if path.is_file()}
        files = cls(name, tuple(sorted(paths)), num_negatives)
        for path in files.paths:
            files._check_columns(path)
        return files

    def clean_tables(self, dropped: dict[str, int]) -> Iterator[pa.Table]:
        """The good rows of all files, a row group at a time, in the columns and types of the one schema.

        Args:
            dropped: gets the counts of dropped rows by reason added to it.

        Raises:
            DataError: a row group cannot be read, is not UTF-8, or names an unknown split.
        """
        for path in self.paths:
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    cleaned = clean(self._read_group(path, file, group))
                    for reason, count in cleaned.dropped.items():
                        dropped[reason] = dropped.get(reason, 0) + count
                    if cleaned.table.num_rows:
                        yield cleaned.table

    def chosen_tables(self, max_rows: int | None, dropped: dict[str, int]) -> Iterator[pa.Table]:
        """As :meth:`clean_tables`, but at most ``max_rows`` rows in all, chosen by the hash of query and passage.

        Reads the files twice where there is a limit: the hashes first, the chosen rows then.
        """
        keep = None if max_rows is None else self._choose(max_rows)
        position = 0
        for table in track(self.clean_tables(dropped), description=f"reading {self.name}", unit="row groups"):
            if keep is not None:
                mask = keep[position : position + table.num_rows]
                position += table.num_rows
                table = table.filter(pa.array(mask))
            yield table

    def _choose(self, max_rows: int) -> np.ndarray:
        keys: list[np.ndarray] = [np.empty(0, dtype=np.uint64)]
        splits: list[str | None] = []
        for table in track(self.clean_tables({}), description=f"choosing rows of {self.name}", unit="row groups"):
            keys.append(row_keys(table["query"].to_pylist(), table["passage"].to_pylist()))
            splits += table["split"].to_pylist()
        return keep_by_hash(np.concatenate(keys), splits, max_rows)

    def _check_columns(self, path: Path) -> None:
        try:
            found: pa.Schema = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path} is not a readable parquet file: {error}. It may be truncated; write or copy it again, then `dvc repro`."
            ) from None
        needed = ["query", "passage", *negative_columns(self.num_negatives)]
        for column in needed:
            if column not in found.names:
                raise DataError(
                    f"{path} has no column {column!r} (it has: {', '.join(found.names) or 'none'}). {self._remedy(column, found)}"
                )
        for column in (*needed, *(name for name in OPTIONAL if name in found.names)):
            if not _is_text(found.field(column).type):
                raise DataError(
                    f"{path}: column {column!r} is of type {found.field(column).type}, it must be text (string). "
                    "Write the column as strings."
                )

    def _remedy(self, column: str, found: pa.Schema) -> str:
        if not column.startswith("negative_"):
            return "A source needs `query`, `passage` and its negatives; rename or add the column."
        there = 0
        while f"negative_{there + 1}" in found.names:
            there += 1
        return (
            f"Set sources.{self.name}.num_negatives to {there}, which is how many this file has, "
            "or add the column (empty cells are allowed)."
        )

    def _read_group(self, path: Path, file: pq.ParquetFile, group: int) -> pa.Table:
        """One row group in the one schema; optional columns that the file lacks become nulls."""
        target = schema(self.num_negatives)
        present = [name for name in target.names if name in file.schema_arrow.names]
        where = f"{path}, row group {group} of {file.num_row_groups}"
        try:
            table = file.read_row_group(group, columns=present)
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{where} cannot be read: {error}. The file is damaged or not UTF-8; write or copy it again.") from None
        columns = [
            pc.cast(table[name], pa.string()) if name in present else pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
            for name in target.names
        ]
        relaxed = pa.table(columns, names=target.names)
        self._check_splits(where, relaxed["split"])
        return relaxed

    def _check_splits(self, where: str, split: pa.ChunkedArray) -> None:
        for value in sorted(pc.unique(pc.drop_null(split)).to_pylist()):
            if value not in SPLITS:
                raise DataError(
                    f"{where}: column 'split' holds {value!r}; allowed are {', '.join(SPLITS)}, or no value at all "
                    "(validation rows are then held out by hash)."
                )


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind))
