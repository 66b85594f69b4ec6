"""The checks of rows one by one, with each policy."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from mlembed_core.config.checks import RowChecks
from mlembed_core.data.checks import RowFilter
from mlembed_core.data.rows import schema
from mlembed_core.errors import DataError

Record = dict[str, str | None]
GOOD: Record = {"query": "q", "passage": "p", "negative_1": "n", "negative_2": "m"}


def table_of(*records: Record) -> pa.Table:
    """A table as a foreign file may hold it: nothing promised to be there."""
    fields = [pa.field(field.name, field.type) for field in schema(2)]
    return pa.table({field.name: [{**GOOD, **record}.get(field.name) for record in records] for field in fields}, schema=pa.schema(fields))


def run(*records: Record, labels: list[str] | None = None, **checks: Any) -> tuple[list[Any], dict[str, int]]:
    """The rows that stay, and what was counted (zeros left out)."""
    rows = RowFilter("mine", RowChecks(**{"max_dropped": 1, **checks}), num_negatives=2, labels=labels)
    made = rows.filter(table_of(*records), where="a.parquet, row group 0 of 1")
    rows.close()
    return made.to_pylist(), {name: count for name, count in rows.counts.items() if count}


FAULTS: dict[str, Record] = {
    "broken_unicode": {"query": "caf\ufffd"},
    "empty_query": {"query": " \t"},
    "empty_passage": {"passage": "\u3000"},
    "too_long": {"passage": "long " * 10},
    "query_equals_passage": {"passage": "q"},
    "passage_among_negatives": {"negative_2": "p"},
    "unknown_label": {"label": "maybe"},
    "too_few_negatives": {"negative_1": None},
}
NEVER_KEPT = {"broken_unicode", "empty_query", "empty_passage", "passage_among_negatives"}


@pytest.mark.parametrize("check", FAULTS)
def test_each_fault_is_found_by_its_own_check_and_treated_as_its_policy_says(check: str) -> None:
    other: Record = {"query": "other", "label": "yes"}
    records = ({**GOOD, "label": "yes", **FAULTS[check]}, other)
    limits: dict[str, Any] = {"labels": ["yes", "no"], "max_characters": 20}
    stayed, counts = run(*records, **limits, **{check: "drop"})
    assert [row["query"] for row in stayed] == ["other"]
    assert counts == {f"dropped_{check}": 1}
    with pytest.raises(
        DataError, match=rf"a\.parquet, row group 0 of 1: 1 of 2 rows fail the check {check}.*row 0.*sources\.mine\.checks\.{check}: drop"
    ):
        run(*records, **limits, **{check: "error"})
    if check not in NEVER_KEPT:
        stayed, counts = run(*records, **limits, **{check: "keep"})
        assert [row["query"] for row in stayed] == ["q", "other"]
        assert counts == {f"kept_{check}": 1}


def test_a_row_counts_under_the_first_check_that_it_fails() -> None:
    stayed, counts = run({"query": None, "passage": ""}, {"query": "same", "passage": "same", "negative_1": "same"})
    assert stayed == []
    assert counts == {"dropped_empty_query": 1, "dropped_query_equals_passage": 1}


def test_bad_negatives_are_left_out_of_their_row() -> None:
    stayed, counts = run({"negative_1": "  ", "negative_2": "nul\x00"}, {"query": "r", "negative_1": "x" * 50}, max_characters=40)
    assert [(row["negative_1"], row["negative_2"]) for row in stayed] == [(None, None), (None, "m")]
    assert counts == {"kept_too_few_negatives": 2}


def test_repeats_are_found_within_a_piece_and_across() -> None:
    rows = RowFilter("mine", RowChecks(max_dropped=1), num_negatives=2)
    pieces = [[("a", "1"), ("b", "1"), ("a", "1")], [("b", "1"), ("b", "2"), ("a", "1"), ("b", "2")], [("a", "2")]]
    stayed = []
    for piece in pieces:
        made = rows.filter(table_of(*({"query": query, "passage": passage} for query, passage in piece)), where="here")
        stayed += list(zip(made["query"].to_pylist(), made["passage"].to_pylist(), strict=True))
    assert stayed == [("a", "1"), ("b", "1"), ("b", "2"), ("a", "2")]
    assert rows.counts["dropped_duplicate"] == 4


def test_a_dropped_row_does_not_make_its_repeat_a_duplicate() -> None:
    _, counts = run({"negative_1": "p"}, {})
    assert counts == {"dropped_passage_among_negatives": 1}


def test_too_many_dropped_rows_mean_a_wrong_file() -> None:
    with pytest.raises(
        DataError, match=r"sources\.mine: 2 of 3 rows would be dropped \(dropped_empty_query 2\), more than checks\.max_dropped=0\.5"
    ):
        run({"query": ""}, {"query": None}, {}, max_dropped=0.5)
    assert run({"query": ""}, {}, max_dropped=0.5)[1] == {"dropped_empty_query": 1}


def test_a_table_without_rows_passes() -> None:
    assert run() == ([], {})
