"""What a row must be, checked while rows stream by: each check stops the stage, or drops and counts, as the source's policies say.

A query or passage that is missing or blank teaches nothing; a query equal to its passage has similarity 1 for free; a passage that is
also its row's negative is pushed and pulled at once. Negatives that are blank, too long or broken are left out of their row. Checks
work on whole Arrow columns; what repeats is found by 16 bytes per row (:mod:`mlembed_core.data.key_table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlembed_core.config.checks import Check, Policy, RowChecks
from mlembed_core.data.key_table import KeyTable
from mlembed_core.data.texts import hash_key
from mlembed_core.errors import DataError

REPLACEMENT = "\ufffd"  # what decoders put where bytes made no sense
NUL = "\x00"
SHOWN_CHARACTERS = 60  # of a text in a message
REMEDIES = {
    Check.BROKEN_UNICODE: "Write the file again in UTF-8",
    Check.UNKNOWN_LABEL: "Add the label to `labels`, or correct the file",
    Check.TOO_FEW_NEGATIVES: "Mine some (`mlembed mine`), or lower num_negatives",
}

Flags = NDArray[np.bool_]


class RowFilter:
    """Lets the good rows of one source through, piece by piece, and counts the others.

    Args:
        name: the source's, for messages.
        checks: a policy per check; a check that was never asked for (labels, negatives) finds nothing.
        num_negatives: what each row should have.
        labels: the classes that there are; None: any.
        label_column: which column holds a row's class.
        folder: for what has to be remembered of the rows; None: in memory.

    Attributes:
        counts: ``dropped_CHECK`` and ``kept_CHECK``, as the policies are.
    """

    def __init__(
        self,
        name: str,
        checks: RowChecks,
        *,
        num_negatives: int,
        labels: Sequence[str] | None = None,
        label_column: str = "label",
        folder: Path | None = None,
    ) -> None:
        self._name = name
        self._checks = checks
        self._num_negatives = num_negatives
        self._labels = None if labels is None else pa.array(labels, pa.string())
        self._label_column = label_column
        self._seen = KeyTable(folder)
        self._num_rows = 0
        self.counts = {
            f"{'dropped' if policy is Policy.DROP else 'kept'}_{check}": 0
            for check in Check
            if (policy := checks.policy(check)) is not Policy.ERROR
        }

    def filter(self, table: pa.Table, *, where: str, broken: Flags | None = None) -> pa.Table:
        """The rows of ``table`` that stay, in their order, their negatives cleaned.

        Args:
            table: columns of :func:`mlembed_core.data.rows.schema`.
            where: which part of which file this is, for messages.
            broken: rows whose query or passage could not be decoded (they are null here).

        Raises:
            DataError: a row fails a check whose policy is to stop.
        """
        self._num_rows += table.num_rows
        table = self._without_bad_negatives(table)
        bad: Flags = np.zeros(table.num_rows, dtype=np.bool_)
        for check in Check:
            found = _flags(self._fails(check, table, bad))
            if check is Check.BROKEN_UNICODE and broken is not None:
                found = found | broken
            found = found & ~bad  # a row counts under the first check that it fails
            count = int(found.sum())
            policy = self._checks.policy(check)
            if count and policy is Policy.ERROR:
                self._stop(check, table, found, where)
            if policy is not Policy.ERROR:
                self.counts[f"{'dropped' if policy is Policy.DROP else 'kept'}_{check}"] += count
            if policy is not Policy.KEEP:
                bad |= found
        return table.filter(pa.array(~bad))

    def close(self) -> None:
        """Called after the last row.

        Raises:
            DataError: a larger share of the rows was dropped than the source allows.
        """
        dropped = {name: count for name, count in self.counts.items() if name.startswith("dropped_") and count}
        total = sum(dropped.values())
        if total > self._checks.max_dropped * self._num_rows and total < self._num_rows:
            counted = ", ".join(f"{name} {count:,}" for name, count in sorted(dropped.items(), key=lambda item: -item[1]))
            raise DataError(
                f"sources.{self._name}: {total:,} of {self._num_rows:,} rows would be dropped ({counted}), more than "
                f"checks.max_dropped={self._checks.max_dropped}. Look at the files; if they are meant to be so, raise it."
            )

    def _without_bad_negatives(self, table: pa.Table) -> pa.Table:
        nothing = pa.scalar(None, pa.string())
        for position, name in enumerate(table.column_names):
            if name.startswith("negative_"):
                column = table[name]
                useless = pc.or_(pc.or_(_blank(column), _broken(column)), self._too_long(column))
                if pc.any(pc.and_(useless, pc.is_valid(column))).as_py():
                    table = table.set_column(position, name, pc.if_else(useless, nothing, column))
        return table

    def _fails(self, check: Check, table: pa.Table, bad: Flags) -> Any:
        query, passage = table["query"], table["passage"]
        match check:
            case Check.BROKEN_UNICODE:
                return pc.or_(_broken(query), _broken(passage))
            case Check.EMPTY_QUERY:
                return _blank(query)
            case Check.EMPTY_PASSAGE:
                return _blank(passage)
            case Check.TOO_LONG:
                return pc.or_(self._too_long(query), self._too_long(passage))
            case Check.QUERY_EQUALS_PASSAGE:
                return pc.equal(query, passage)
            case Check.PASSAGE_AMONG_NEGATIVES:
                return _any([pc.equal(passage, table[name]) for name in _negatives(table)], table.num_rows)
            case Check.UNKNOWN_LABEL:
                return self._unknown_label(table)
            case Check.TOO_FEW_NEGATIVES:
                there = [_flags(pc.is_valid(table[name])) for name in _negatives(table)]
                return np.sum(there, axis=0, dtype=np.int64) < self._num_negatives if there else None
            case Check.DUPLICATE:
                return self._repeated(table, bad)

    def _too_long(self, column: Any) -> Any:
        return pc.fill_null(pc.greater(pc.utf8_length(column), self._checks.max_characters), False)

    def _unknown_label(self, table: pa.Table) -> Any:
        if self._labels is None:
            return None
        return pc.invert(pc.is_in(table[self._label_column], self._labels))

    def _repeated(self, table: pa.Table, bad: Flags) -> Flags:
        """Good rows whose query and passage an earlier good row had."""
        good = np.flatnonzero(~bad)
        chosen = table.select(["query", "passage"]).take(pa.array(good))
        pairs = zip(chosen["query"].to_pylist(), chosen["passage"].to_pylist(), strict=True)
        first = len(self._seen)
        numbers = self._seen.numbers(b"".join(hash_key(f"{query}\x00{passage}") for query, passage in pairs))
        # A row is the first of its kind if its number is new and above all before it.
        highest = np.maximum.accumulate(np.concatenate([[first - 1], numbers]))[:-1]
        repeated: Flags = np.zeros(len(bad), dtype=np.bool_)
        repeated[good] = numbers <= highest
        return repeated

    def _stop(self, check: Check, table: pa.Table, found: Flags, where: str) -> None:
        row = int(np.flatnonzero(found)[0])
        query, passage = (_shown(table[name][row].as_py()) for name in ("query", "passage"))
        label = f", {self._label_column} {_shown(table[self._label_column][row].as_py())}" if check is Check.UNKNOWN_LABEL else ""
        raise DataError(
            f"{where}: {int(found.sum()):,} of {table.num_rows:,} rows fail the check {check}; the first of them is row {row} of these "
            f"(query {query}, passage {passage}{label}). {REMEDIES.get(check, 'Mend the file')}, or set "
            f"sources.{self._name}.checks.{check}: drop, which counts such rows and goes on."
        )


def _negatives(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name.startswith("negative_")]


def _blank(column: Any) -> Any:
    """True where a text is missing or only white space."""
    return pc.fill_null(pc.or_(pc.equal(column, ""), pc.utf8_is_space(column)), True)


def _broken(column: Any) -> Any:
    return pc.fill_null(pc.or_(pc.match_substring(column, REPLACEMENT), pc.match_substring(column, NUL)), False)


def _any(flags: Sequence[Any], num_rows: int) -> Flags:
    return np.any([_flags(flag) for flag in flags], axis=0) if flags else np.zeros(num_rows, dtype=np.bool_)


def _flags(found: Any) -> Any:
    """Arrow's three values as two: unknown is false. None stands for no row."""
    if found is None:
        return np.False_
    if isinstance(found, np.ndarray):
        return found
    flags: Flags = pc.fill_null(found, False).to_numpy(zero_copy_only=False).astype(np.bool_)
    return flags


def _shown(text: str | None) -> str:
    if text is None:
        return "null"
    return repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…")
