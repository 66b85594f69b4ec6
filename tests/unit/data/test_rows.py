"""The schema of source rows, the choice by hash, and what a reader hears of a damaged file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlembed_core.data.rows import ROWS_FILE, Row, RowWriter, keep_by_hash, read_rows, row_keys, schema, to_table
from mlembed_core.errors import ArtifactError


def row(query: str | None = "q", passage: str | None = "p", negatives: tuple[str, ...] = ("n",), split: str | None = "train") -> Row:
    return Row(query, passage, negatives, "fra", None, split)  # type: ignore[arg-type]


def test_columns_are_the_recipes() -> None:
    assert schema(2).names == ["query", "passage", "negative_1", "negative_2", "lang", "label", "split"]
    assert not schema(2).field("query").nullable
    assert schema(2).field("negative_2").nullable


def test_choice_keeps_the_splits_proportions_and_exactly_as_many_rows_as_asked() -> None:
    splits = ["train"] * 800 + ["dev"] * 100 + ["test"] * 100
    keys = row_keys(map(str, range(1000)), map(str, range(1000)))
    kept = np.array(splits)[keep_by_hash(keys, splits, 55)]
    assert len(kept) == 55
    assert {split: int((kept == split).sum()) for split in ("train", "dev", "test")} in (
        {"train": 44, "dev": 6, "test": 5},
        {"train": 44, "dev": 5, "test": 6},
    )


def test_choice_depends_on_the_row_and_not_on_its_place() -> None:
    queries = [f"query {i}" for i in range(200)]
    splits: list[str | None] = [None] * 200
    chosen = {queries[i] for i in np.flatnonzero(keep_by_hash(row_keys(queries, queries), splits, 50))}
    turned = queries[::-1]
    assert {turned[i] for i in np.flatnonzero(keep_by_hash(row_keys(turned, turned), splits, 50))} == chosen


def test_a_smaller_choice_is_part_of_a_larger_one() -> None:
    keys, splits = row_keys(map(str, range(300)), map(str, range(300))), ["train"] * 300
    small, large = keep_by_hash(keys, splits, 40), keep_by_hash(keys, splits, 90)
    assert (small <= large).all()


def test_no_limit_keeps_all() -> None:
    assert keep_by_hash(row_keys("ab", "cd"), ["train", None], None).all()


def written_in_pieces(table: pa.Table, piece: int, folder: Path) -> Path:
    folder.mkdir()
    with RowWriter(folder, 1) as writer:
        for start in range(0, table.num_rows, piece):
            writer.write(table.slice(start, piece))
    return folder


def test_bytes_do_not_depend_on_the_size_of_the_pieces(tmp_path: Path) -> None:
    table = to_table([row(query=f"q{i}") for i in range(25_000)], 1)
    contents = []
    for piece in (25_000, 7_000, 999):
        folder = written_in_pieces(table, piece, tmp_path / str(piece))
        contents.append((folder / ROWS_FILE).read_bytes())
        assert pq.ParquetFile(folder / ROWS_FILE).num_row_groups == 3
    assert contents[0] == contents[1] == contents[2]


def test_groups_of_long_texts_hold_fewer_rows_whatever_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlembed_core.data.rows.ROW_GROUP_BYTES", 1000)
    lengths = [10] * 30 + [400] * 5 + [5000] + [10] * 40  # one row alone is above the limit
    table = to_table([row(query="x" * length, passage=f"p{i:02}") for i, length in enumerate(lengths)], 1)
    contents = []
    for piece in (76, 7, 1):
        folder = written_in_pieces(table, piece, tmp_path / str(piece))
        contents.append((folder / ROWS_FILE).read_bytes())
    metadata = pq.ParquetFile(folder / ROWS_FILE).metadata
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [30, 2, 2, 1, 1, 40]
    assert read_rows(folder).equals(table.cast(read_rows(folder).schema))
    assert contents[0] == contents[1] == contents[2]


def test_counts_and_round_trip(tmp_path: Path) -> None:
    rows = [row(), row(query="r", split="test"), row(query="s", split=None)]
    with RowWriter(tmp_path, 1) as writer:
        writer.write(to_table(rows, 1))
    assert writer.counts() == {"rows": 3, "rows_train": 1, "rows_dev": 0, "rows_test": 1, "rows_unsplit": 1, "languages": 1}
    assert read_rows(tmp_path).schema.equals(schema(1))
    assert read_rows(tmp_path, ["split", "query"]).to_pydict() == {"split": ["train", "test", None], "query": ["q", "r", "s"]}


def test_reading_says_what_is_wrong_and_what_makes_it(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ArtifactError, match=r"rows\.parquet does not exist.*mlembed source mine"):
        read_rows(folder)
    with RowWriter(folder, 1) as writer:
        writer.write(to_table([row()], 1))
    with pytest.raises(ArtifactError, match="has no column 'negative_2'"):
        read_rows(folder, ["negative_2"])
    whole = (folder / ROWS_FILE).read_bytes()
    (folder / ROWS_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"rows\.parquet is damaged or truncated"):
        read_rows(folder)
