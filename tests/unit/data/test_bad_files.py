"""Damaged files, made from good ones by a seeded generator: each ends in an error that names the file, or in rows dropped and counted.

Never a crash without the file's name, and never a silently shorter corpus: what was read and what was dropped add up.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlembed_core.artifacts import Workspace, read_manifest, verify_files
from mlembed_core.errors import DataError, MachineError, MlembedError
from mlembed_core.stages import source

SEED = 20
ROWS = 400
WORDS = ["river", "stone", "Ελλάδα", "भारत", "日本", "naïve", "🙂", "token"]

Columns = dict[str, list[Any]]
Damage = Callable[[Path, Columns, np.random.Generator], None]


def good_columns(rng: np.random.Generator, rows: int = ROWS) -> Columns:
    def texts(role: str) -> list[Any]:
        return [f"{role} {number} {' '.join(rng.choice(WORDS, size=6))}" for number in range(rows)]

    return {"query": texts("q"), "passage": texts("p"), "negative_1": texts("n"), "negative_2": texts("m")}


def parquet(path: Path, columns: Any, **options: Any) -> None:
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path / "bad.parquet", **{"row_group_size": 100, "compression": "zstd", **options})


def lines(path: Path, columns: Columns) -> list[str]:
    return [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in zip(*columns.values(), strict=True)]


def run(root: Path, **params: Any) -> tuple[dict[str, int], int]:
    """Build the source. Returns its counts, and how many of the rows read it accounts for."""
    (root / "configs").mkdir(exist_ok=True)
    mine = {"kind": "retrieval", "origin": {"type": "local", "files": ["bad*"]}, "num_negatives": 2, **params}
    (root / "configs" / "params.yaml").write_text(json.dumps({"sources": {"mine": mine}}))
    workspace = Workspace(root)
    try:
        source.run(workspace, "mine")
    except MlembedError:
        assert not workspace.sources.exists() or not any(workspace.sources.iterdir())
        assert not any((workspace.work / "tmp").iterdir())
        raise
    verify_files(workspace.sources / "mine")
    counts = read_manifest(workspace.sources / "mine")["counts"]
    return counts, counts["rows"] + sum(count for name, count in counts.items() if name.startswith("dropped_"))


# What is wrong with a whole file: an error that names it.


def cut(share: float) -> Damage:
    def damage(path: Path, columns: Columns, rng: np.random.Generator) -> None:
        parquet(path, columns)
        content = (path / "bad.parquet").read_bytes()
        (path / "bad.parquet").write_bytes(content[: int(len(content) * share)])

    return damage


def without(column: str) -> Damage:
    return lambda path, columns, rng: parquet(path, {name: values for name, values in columns.items() if name != column})


def renamed(column: str, to: str) -> Damage:
    return lambda path, columns, rng: parquet(path, {to if name == column else name: values for name, values in columns.items()})


def typed(column: str, values: Any) -> Damage:
    return lambda path, columns, rng: parquet(path, {**columns, column: values})


def text_file(name: str, content: Callable[[Columns], bytes]) -> Damage:
    return lambda path, columns, rng: (path / name).write_bytes(content(columns)) and None


def overwritten(where: Callable[[Path], int], with_bytes: bytes) -> Damage:
    def damage(path: Path, columns: Columns, rng: np.random.Generator) -> None:
        parquet(path, columns, write_page_checksum=True)
        content = bytearray((path / "bad.parquet").read_bytes())
        start = where(path / "bad.parquet")
        content[start : start + len(with_bytes)] = with_bytes
        (path / "bad.parquet").write_bytes(content)

    return damage


def page_of(column: int) -> Callable[[Path], int]:
    return lambda path: pq.ParquetFile(path).metadata.row_group(2).column(column).data_page_offset + 60


def mixed_schemas(path: Path, columns: Columns, rng: np.random.Generator) -> None:
    parquet(path, columns)
    pq.write_table(pa.table({**columns, "passage": list(range(ROWS))}), path / "bad_second.parquet")


def nothing(path: Path, columns: Columns, rng: np.random.Generator) -> None:
    pass


def a_folder(path: Path, columns: Columns, rng: np.random.Generator) -> None:
    (path / "bad.parquet").mkdir()


def dangling(path: Path, columns: Columns, rng: np.random.Generator) -> None:
    (path / "bad.parquet").symlink_to(path / "nowhere.parquet")


def csv_of(columns: Columns, rows: int = ROWS) -> str:
    return "\n".join([",".join(columns), *(",".join(row) for row in list(zip(*columns.values(), strict=True))[:rows])])


NAMES_IT = r"bad\w*\.\w+"
FATAL: dict[str, tuple[Damage, str]] = {
    "truncated to nothing": (cut(0), NAMES_IT + " is not a readable parquet file"),
    "truncated to its first bytes": (cut(0.001), NAMES_IT + " is not a readable parquet file"),
    "truncated by half": (cut(0.5), NAMES_IT + " is not a readable parquet file"),
    "truncated by a little": (cut(0.999), NAMES_IT + " is not a readable parquet file"),
    "a page overwritten": (overwritten(page_of(0), b"\xff" * 80), NAMES_IT + ", row group 2 of 4 cannot be read"),
    "a negative's page overwritten": (overwritten(page_of(3), bytes(80)), NAMES_IT + ", row group 2 of 4 cannot be read"),
    "the magic bytes gone": (overwritten(lambda path: path.stat().st_size - 4, b"PARX"), NAMES_IT + " is not a readable parquet file"),
    "the footer overwritten": (overwritten(lambda path: path.stat().st_size - 200, b"\xff" * 150), NAMES_IT + " is not a readable"),
    "the footer's length wrong": (overwritten(lambda path: path.stat().st_size - 8, b"\xff\xff\xff\x7f"), NAMES_IT + " is not a readable"),
    "no query column": (without("query"), NAMES_IT + r" has no column 'query' \(it has: passage"),
    "no passage column": (without("passage"), NAMES_IT + r" has no column 'passage'"),
    "a negative column missing": (without("negative_2"), r"no column 'negative_2'.*num_negatives to 1"),
    "a column misspelt": (renamed("passage", "pasage"), r"has no column 'passage' \(it has: query, pasage"),
    "a column in capitals": (renamed("query", "Query"), r"has no column 'query' \(it has: Query"),
    "numbers for passages": (typed("passage", list(range(ROWS))), r"column 'passage' is of type int64"),
    "lists for negatives": (typed("negative_1", [["a"]] * ROWS), r"column 'negative_1' is of type list"),
    "bytes for queries": (typed("query", pa.array([b"x"] * ROWS, pa.binary())), r"column 'query' is of type binary"),
    "dates for labels": (typed("label", pa.array([0] * ROWS, pa.date32())), r"column 'label' is of type date32"),
    "an unknown split": (typed("split", ["validation"] * ROWS), r"row group 0 of 4: column 'split' holds 'validation'"),
    "two schemas": (mixed_schemas, r"bad_second\.parquet: column 'passage' is of type int64"),
    "zero rows": (
        lambda path, columns, rng: parquet(path, {name: pa.array([], pa.string()) for name in columns}),
        r"mine has no rows left",
    ),
    "every query null": (typed("query", pa.nulls(ROWS, pa.string())), r"no rows left \(dropped_empty_query 400\)"),
    "nothing but duplicates": (lambda path, columns, rng: parquet(path, one_row_over_and_over(20_000)), r"19,999 of 20,000 rows"),
    "mostly bad rows": (typed("passage", [""] * 300 + ["p"] * 100), r"300 of 400 rows would be dropped \(dropped_empty_passage 300\)"),
    "no file": (nothing, r"'bad\*' matches no file"),
    "a folder": (a_folder, r"'bad\*' matches no file"),
    "a dangling link": (dangling, r"'bad\*' matches no file"),
    "text that calls itself parquet": (text_file("bad.parquet", lambda columns: b"query,passage\na,b\n"), NAMES_IT + " is not a readable"),
    "a spreadsheet": (text_file("bad.xlsx", lambda columns: b"PK"), r"bad\.xlsx is of no form that a source can have"),
    "compressed parquet": (text_file("bad.parquet.gz", lambda columns: b""), r"bad\.parquet\.gz is of no form"),
    "JSON cut off": (text_file("bad.jsonl", lambda c: "\n".join(lines(Path(), c)).encode()[:-20]), r"bad\.jsonl.* cannot be read"),
    "JSON with a number for text": (
        text_file("bad.jsonl", lambda c: "\n".join([*lines(Path(), c), '{"query": 5, "passage": "p"}']).encode()),
        r"bad\.jsonl.* cannot be read",
    ),
    "JSON with a lone surrogate": (
        text_file("bad.jsonl", lambda c: "\n".join([*lines(Path(), c), '{"query": "\\ud800", "passage": "p"}']).encode()),
        r"bad\.jsonl.* cannot be read",
    ),
    "a JSON array": (
        text_file("bad.jsonl", lambda c: ("[" + ",".join(lines(Path(), c)) + "]").encode()),
        r"bad\.jsonl is not a file of JSON",
    ),
    "an empty JSON file": (text_file("bad.jsonl", lambda c: b""), r"bad\.jsonl has no column 'query'"),
    "CSV with a cell too many": (
        text_file("bad.csv", lambda c: (csv_of(c) + "\na,b,c,d,e").encode()),
        r"bad\.csv.* Expected 4 columns, got 5",
    ),
    "CSV with an open quote": (text_file("bad.csv", lambda c: (csv_of(c) + '\n"a,b,c,d').encode()), r"bad\.csv"),
    "an empty CSV file": (text_file("bad.csv", lambda c: b""), r"bad\.csv is not a readable CSV file"),
    "CSV with semicolons": (text_file("bad.csv", lambda c: csv_of(c).replace(",", ";").encode()), r"bad\.csv has no column 'query'"),
    "a broken archive": (text_file("bad.csv.gz", lambda c: gzip.compress(csv_of(c).encode())[:-300]), r"bad\.csv\.gz.* "),
    "no archive at all": (text_file("bad.jsonl.gz", lambda c: lines(Path(), c)[0].encode()), r"bad\.jsonl\.gz is not a file of JSON lines"),
}


def one_row_over_and_over(times: int) -> pa.Table:
    zeros = np.zeros(times, dtype=np.int8)
    texts = {"query": "x", "passage": "y", "negative_1": "z", "negative_2": "z"}
    return pa.table({name: pa.DictionaryArray.from_arrays(zeros, pa.array([text])) for name, text in texts.items()})


@pytest.mark.parametrize("name", FATAL)
def test_a_file_that_cannot_be_used_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    damage, message = FATAL[name]
    rng = np.random.default_rng(SEED)
    damage(tmp_path, good_columns(rng), rng)
    with pytest.raises(DataError, match=message):
        run(tmp_path)


@pytest.mark.slow
def test_a_million_duplicates(tmp_path: Path) -> None:
    parquet(tmp_path, one_row_over_and_over(1_000_000), row_group_size=250_000)
    with pytest.raises(DataError, match=r"999,999 of 1,000,000 rows would be dropped \(dropped_duplicate 999,999\)"):
        run(tmp_path)
    assert run(tmp_path, checks={"max_dropped": 1})[0]["dropped_duplicate"] == 999_999


# What is wrong with some rows: they are dropped and counted, the others stay.


def some(rng: np.random.Generator, values: list[Any], bad: Callable[[str], Any], count: int = 37) -> list[Any]:
    chosen = set(rng.choice(len(values), size=count, replace=False).tolist())
    return [bad(value) if number in chosen else value for number, value in enumerate(values)]


def copied(column: str, of: str) -> Damage:
    def damage(path: Path, columns: Columns, rng: np.random.Generator) -> None:
        chosen = set(rng.choice(ROWS, size=37, replace=False).tolist())
        parquet(path, {**columns, column: [columns[of if number in chosen else column][number] for number in range(ROWS)]})

    return damage


def spoiled(column: str, bad: Callable[[str], Any]) -> Damage:
    return lambda path, columns, rng: parquet(path, {**columns, column: some(rng, columns[column], bad)})


def not_utf8(column: str, kind: pa.DataType) -> Damage:
    def damage(path: Path, columns: Columns, rng: np.random.Generator) -> None:
        texts = [text.encode() for text in columns[column]]
        stored = some(rng, texts, lambda text: text[:-4] + b"\xed\xa0\x80\xff")  # a surrogate as bytes, and a byte that never is
        binary = pa.large_binary() if kind == pa.large_string() else pa.binary()
        parquet(path, {**columns, column: pa.array(stored, binary).view(kind)})

    return damage


def csv_not_utf8(path: Path, columns: Columns, rng: np.random.Generator) -> None:
    rows = [",".join(row).encode() for row in zip(*columns.values(), strict=True)]
    (path / "bad.csv").write_bytes(b"\n".join([",".join(columns).encode(), *some(rng, rows, lambda row: b"\xff" + row)]))


def repeated(path: Path, columns: Columns, rng: np.random.Generator) -> None:
    order = rng.permutation([*range(ROWS), *rng.choice(ROWS, size=37, replace=False)])
    parquet(path, {name: [values[number] for number in order] for name, values in columns.items()})


COUNTED: dict[str, tuple[Damage, str]] = {
    "null queries": (spoiled("query", lambda text: None), "dropped_empty_query"),
    "blank queries": (spoiled("query", lambda text: " \t\u3000\n"), "dropped_empty_query"),
    "null passages": (spoiled("passage", lambda text: None), "dropped_empty_passage"),
    "empty passages": (spoiled("passage", lambda text: ""), "dropped_empty_passage"),
    "NUL in queries": (spoiled("query", lambda text: text + "\x00"), "dropped_broken_unicode"),
    "lost characters": (spoiled("passage", lambda text: text + "\ufffd"), "dropped_broken_unicode"),
    "queries that are no UTF-8": (not_utf8("query", pa.string()), "dropped_broken_unicode"),
    "large passages that are no UTF-8": (not_utf8("passage", pa.large_string()), "dropped_broken_unicode"),
    "CSV that is no UTF-8": (csv_not_utf8, "dropped_broken_unicode"),
    "negatives that are no UTF-8": (not_utf8("negative_1", pa.string()), "kept_too_few_negatives"),
    "huge strings": (spoiled("passage", lambda text: text.ljust(200_001)), "dropped_too_long"),
    "query equal to passage": (copied("passage", "query"), "dropped_query_equals_passage"),
    "passage among negatives": (copied("negative_2", "passage"), "dropped_passage_among_negatives"),
    "blank negatives": (spoiled("negative_1", lambda text: " "), "kept_too_few_negatives"),
    "rows twice": (repeated, "dropped_duplicate"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_bad_rows_are_counted_and_the_others_stay(tmp_path: Path, name: str) -> None:
    damage, count = COUNTED[name]
    rng = np.random.default_rng(SEED)
    damage(tmp_path, good_columns(rng), rng)
    counts, accounted = run(tmp_path)
    assert counts[count] == 37
    assert accounted == (ROWS + 37 if count == "dropped_duplicate" else ROWS)
    assert counts["rows"] == (ROWS if count in ("dropped_duplicate", "kept_too_few_negatives") else ROWS - 37)


def test_an_unknown_label_stops_or_is_counted(tmp_path: Path) -> None:
    columns = good_columns(np.random.default_rng(SEED))
    parquet(tmp_path, {**columns, "label": ["yes", "no", "yes", "maybe"] * (ROWS // 4)})
    with pytest.raises(DataError, match=r"bad\.parquet, row group 0 of 4: 25 of 100 rows fail the check unknown_label.*label 'maybe'"):
        run(tmp_path, labels=["yes", "no"])
    counts, accounted = run(tmp_path, labels=["yes", "no"], checks={"unknown_label": "drop"})
    assert (counts["dropped_unknown_label"], accounted) == (100, ROWS)


def test_of_a_classification_source_the_passage_may_be_the_label(tmp_path: Path) -> None:
    columns = good_columns(np.random.default_rng(SEED))
    parquet(tmp_path, {**columns, "passage": ["positive", "negative"] * (ROWS // 2), "negative_1": ["negative", "positive"] * (ROWS // 2)})
    assert run(tmp_path, kind="classification", num_negatives=1, labels=["positive", "negative"])[0]["rows"] == ROWS
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(DataError, match="unknown_label.*passage 'negative'"):
        run(tmp_path, kind="classification", num_negatives=1, labels=["positive", "neutral"])


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root may read everything; somebody else may not."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    parquet(tmp_path, good_columns(np.random.default_rng(SEED)))
    (tmp_path / "configs").mkdir()
    for folder in (tmp_path, tmp_path / "configs", *(part for part in tmp_path.parents if part.name.startswith("pytest"))):
        folder.chmod(0o777)
    (tmp_path / "bad.parquet").chmod(0)
    with as_nobody(), pytest.raises(DataError, match=r"bad\.parquet is not a readable parquet file.*Permission denied"):
        run(tmp_path)


def test_a_full_disk_is_reported_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet(tmp_path, good_columns(np.random.default_rng(SEED)))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pq.ParquetWriter, "write_table", full)
    with pytest.raises(MachineError, match=r"no space left on the disk.*Earlier results are untouched"):
        run(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    parquet(folder, good_columns(np.random.default_rng(SEED), 60), row_group_size=20, write_page_checksum=True)
    return (folder / "bad.parquet").read_bytes()


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**9), st.integers(1, 255), st.integers(1, 8))
def test_flipped_bytes_never_crash_or_shorten_a_corpus(tmp_path: Path, whole: bytes, place: int, flip: int, length: int) -> None:
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    start = place % (len(whole) - length)
    content = bytearray(whole)
    for offset in range(start, start + length):
        content[offset] ^= flip
    (tmp_path / "bad.parquet").write_bytes(content)
    try:
        _, accounted = run(tmp_path)
    except DataError as error:
        message = str(error)
    else:
        assert accounted == 60
        return
    assert "bad.parquet" in message or "sources.mine" in message
