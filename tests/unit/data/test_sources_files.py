"""Files of pairs in their forms: what stops the stage and what it says, what is dropped and counted, and the choice of rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlembed_core.config.checks import RowChecks
from mlembed_core.config.data import FileParams
from mlembed_core.data.checks import RowFilter
from mlembed_core.data.rows import schema
from mlembed_core.data.sources.files import SourceFiles, find_local
from mlembed_core.errors import DataError

GOOD = {"query": ["q1", "q2", "q3"], "passage": ["p1", "p2", "p3"], "negative_1": ["n1", None, "n3"]}


def write(path: Path, columns: dict[str, Any], *, row_group_size: int = 2) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


def find(root: Path, *patterns: str | FileParams, num_negatives: int = 1, languages: list[str] | None = None) -> SourceFiles:
    found = [FileParams(path=pattern) if isinstance(pattern, str) else pattern for pattern in patterns or ("*.parquet",)]
    return find_local("mine", found, root=root, num_negatives=num_negatives, languages=languages)


def read(files: SourceFiles, max_rows: int | None = None, **checks: Any) -> tuple[pa.Table, dict[str, int]]:
    """The rows, and what was counted (zeros left out)."""
    filters: list[RowFilter] = []

    def new_filter() -> RowFilter:
        filters.append(RowFilter("mine", RowChecks(**{"max_dropped": 1, **checks}), num_negatives=files.num_negatives))
        return filters[-1]

    relaxed = pa.schema([pa.field(field.name, field.type) for field in schema(files.num_negatives)])
    table = pa.concat_tables([relaxed.empty_table(), *files.chosen_tables(max_rows, new_filter)])
    return table, {name: count for name, count in filters[-1].counts.items() if count}


def test_files_are_joined_in_the_order_of_their_names_into_the_one_schema(tmp_path: Path) -> None:
    write(tmp_path / "b.parquet", {**GOOD, "query": ["q4", "q5", "q6"], "lang": ["fra"] * 3, "unknown": [1, 2, 3]})
    write(tmp_path / "a.parquet", GOOD)
    table, dropped = read(find(tmp_path))
    assert table.schema.names == schema(1).names
    assert table["query"].to_pylist() == ["q1", "q2", "q3", "q4", "q5", "q6"]
    assert table["lang"].to_pylist() == [None] * 3 + ["fra"] * 3
    assert table["split"].to_pylist() == [None] * 6
    assert dropped == {"kept_too_few_negatives": 2}


def test_globs_reach_into_folders_and_count_no_file_twice(tmp_path: Path) -> None:
    write(tmp_path / "pairs" / "deep" / "a.parquet", GOOD)
    files = find(tmp_path, "pairs/**/*.parquet", "pairs/deep/a.parquet")
    assert [file.shown for file in files.files] == ["pairs/deep/a.parquet"]


def test_text_may_be_stored_in_other_ways(tmp_path: Path) -> None:
    columns = {
        "query": pa.array(["q1", "q2"], pa.large_string()),
        "passage": pa.array(["p1", "p2"]).dictionary_encode(),
        "negative_1": pa.nulls(2),
    }
    write(tmp_path / "a.parquet", columns)
    table, _ = read(find(tmp_path))
    assert table["passage"].to_pylist() == ["p1", "p2"]
    assert table.schema.field("query").type == pa.string()


def test_bad_rows_are_dropped_and_counted_over_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"query": ["", "same", "q"], "passage": ["p", "same", "p"], "negative_1": ["n", "n", "p"]})
    write(tmp_path / "b.parquet", {"query": [None, "good"], "passage": ["p", "p"], "negative_1": ["n", "n"]})
    table, dropped = read(find(tmp_path))
    assert table["query"].to_pylist() == ["good"]
    assert dropped == {"dropped_empty_query": 2, "dropped_query_equals_passage": 1, "dropped_passage_among_negatives": 1}


def test_max_rows_chooses_by_hash_whatever_file_a_row_is_in(tmp_path: Path) -> None:
    queries = [f"q{i}" for i in range(100)]
    columns = {"query": queries, "passage": [f"p{i}" for i in range(100)], "negative_1": ["n"] * 100}
    write(tmp_path / "one" / "all.parquet", columns)
    for half in (0, 1):
        part = {name: values[half * 50 : half * 50 + 50] for name, values in columns.items()}
        write(tmp_path / "two" / f"{1 - half}.parquet", part)
    whole, dropped = read(find(tmp_path / "one"), 30)
    halves, _ = read(find(tmp_path / "two"), 30)
    assert whole.num_rows == 30
    assert set(whole["query"].to_pylist()) == set(halves["query"].to_pylist())
    assert dropped == {}


def test_a_bad_row_is_counted_once_though_the_files_are_read_twice(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**GOOD, "query": ["", "q2", "q3"]})
    table, dropped = read(find(tmp_path), 1)
    assert table.num_rows == 1
    assert dropped["dropped_empty_query"] == 1


@pytest.mark.parametrize("column", ["query", "passage"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, column: str) -> None:
    write(tmp_path / "a.parquet", {name: values for name, values in GOOD.items() if name != column})
    with pytest.raises(DataError, match=rf"a\.parquet has no column '{column}' \(it has: .*negative_1\)\. .*rename or add the column"):
        find(tmp_path)


def test_too_few_negatives_come_with_the_number_to_write(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", GOOD)
    with pytest.raises(DataError, match=r"no column 'negative_2'.*Set sources\.mine\.num_negatives to 1"):
        find(tmp_path, num_negatives=24)


def test_a_column_of_another_type_is_named_with_its_type(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**GOOD, "passage": [1, 2, 3]})
    with pytest.raises(DataError, match=r"a\.parquet: column 'passage' is of type int64, it must be text"):
        find(tmp_path)


def test_an_unknown_split_is_named_with_its_row_group(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {**GOOD, "split": ["train", None, "validation"]})
    with pytest.raises(DataError, match=r"a\.parquet, row group 1 of 2: column 'split' holds 'validation'; allowed are train, dev, test"):
        read(find(tmp_path))


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sources\.mine\.origin\.files: 'nowhere/\*\.parquet' matches no file .*relative to the workspace"):
        find(tmp_path, "nowhere/*.parquet")


@pytest.mark.parametrize("cut", [0, 5, 200])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path / "a.parquet", GOOD)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError, match=r"a\.parquet is not a readable parquet file.*truncated"):
        find(tmp_path)


def test_a_damaged_page_is_named_with_its_row_group(tmp_path: Path) -> None:
    texts = [f"some text that is long enough to be compressed {i}" for i in range(400)]
    path = write(tmp_path / "a.parquet", {"query": texts, "passage": texts[::-1], "negative_1": texts}, row_group_size=100)
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 600] = b"\xff" * 600
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet, row group 2 of 4 cannot be read"):
        read(find(tmp_path))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_text_that_is_not_utf8_is_counted_or_stops(tmp_path: Path, kind: pa.DataType) -> None:
    broken = pa.array([b"caf\xe9", b"q2", b"q3"], pa.binary()).view(pa.string())
    if kind == pa.large_string():
        broken = pa.array([b"caf\xe9", b"q2", b"q3"], pa.large_binary()).view(kind)
    write(tmp_path / "a.parquet", {**GOOD, "query": broken})
    table, dropped = read(find(tmp_path))
    assert table["query"].to_pylist() == ["q2", "q3"]
    assert dropped["dropped_broken_unicode"] == 1
    with pytest.raises(DataError, match=r"a\.parquet, row group 0 of 2: 1 of 2 rows fail the check broken_unicode.*UTF-8"):
        read(find(tmp_path), broken_unicode="error")


def test_json_lines_and_csv_give_the_rows_of_parquet(tmp_path: Path) -> None:
    columns = {**GOOD, "passage": ["p1", 'say "p2",\nthen go', "日本"], "lang": ["eng", None, "jpn"]}
    write(tmp_path / "a.parquet", columns)
    records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    quoted = [["" if value is None else '"' + value.replace('"', '""') + '"' for value in record.values()] for record in records]
    (tmp_path / "a.csv").write_text("\n".join(",".join(row) for row in [list(columns), *quoted]))
    (tmp_path / "a.tsv").write_text("\n".join("\t".join(row) for row in [list(columns), *quoted]))
    expected, _ = read(find(tmp_path))
    for pattern in ("a.jsonl", "b.jsonl.gz", "a.csv", "a.tsv"):
        table, _ = read(find(tmp_path, pattern))
        assert table.to_pylist() == expected.to_pylist(), pattern


def test_rows_that_name_no_language_have_that_of_their_file(tmp_path: Path) -> None:
    write(tmp_path / "pt.parquet", {**GOOD, "lang": ["glg", None, None]})
    write(tmp_path / "en.parquet", GOOD)
    write(tmp_path / "pair.parquet", GOOD)
    of_files = [FileParams(path="pt.parquet", languages=["por"]), FileParams(path="pair.parquet", languages=["eng", "por"])]
    table, _ = read(find(tmp_path, *of_files, "*.parquet", languages=["eng"]), duplicate="keep")
    assert table["lang"].to_pylist() == ["eng"] * 3 + [None] * 3 + ["glg", "por", "por"]


def test_a_group_of_many_rows_comes_in_pieces(tmp_path: Path) -> None:
    numbers = range(9000)
    columns = {"query": [f"q{n}" for n in numbers], "passage": [f"p{n}" for n in numbers], "negative_1": ["n"] * 9000}
    write(tmp_path / "a.parquet", columns, row_group_size=9000)
    pieces = list(find(tmp_path).chosen_tables(None, lambda: RowFilter("mine", RowChecks(), num_negatives=1)))
    assert len(pieces) == 5
    assert pa.concat_tables(pieces)["query"].to_pylist() == columns["query"]


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"a\.xlsx is of no form that a source can have: allowed are \.parquet, \.jsonl"):
        find(tmp_path, "a.xlsx")
