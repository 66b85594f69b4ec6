"""Halves of one passage: the text that continues another belongs to it. Passages are docstrings, code and the language reference."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from mlembed_core.data.sources.embedded import python_files, topics
from mlembed_core.data.sources.embedded.base import Built, Pair, split_of
from mlembed_core.data.sources.embedded.neighbours import with_negatives

MIN_PROSE = 160  # characters, both halves together
MIN_CODE_LINES = 6
PROSE_BREAK = re.compile(r"(?<=[.!?:])\s+|\n")
CODE_BREAK = re.compile(r"\n")


def build(num_negatives: int, max_rows: int | None) -> Built:
    """First half → second half."""
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(_from_reference(), _from_python()))
    return with_negatives((pair for pair in in_turn if pair is not None), python_files.parts(), num_negatives, max_rows)


def _from_reference() -> Iterator[Pair]:
    for section in topics.read_sections():
        for text in topics.pieces(section):
            halves = halve(text, PROSE_BREAK, MIN_PROSE)
            if halves:
                yield Pair(*halves, split_of(f"topic/{section.title}"))


def _from_python() -> Iterator[Pair]:
    """Of each documented thing its docstring where that is long enough, else its code: no two rows are about the same."""
    for item in itertools.chain.from_iterable(python_files.documented()):
        halves = halve(" ".join((item.summary, *item.body)), PROSE_BREAK, MIN_PROSE)
        if halves is None and item.code.count("\n") + 1 >= MIN_CODE_LINES:
            halves = halve(item.code, CODE_BREAK, MIN_PROSE)
        if halves:
            yield Pair(*halves, item.split)


def halve(text: str, break_at: re.Pattern[str], least: int) -> tuple[str, str] | None:
    """Cut at the break nearest the middle; None where the text is shorter than ``least`` or a half would be less than a quarter."""
    if len(text) < least:
        return None
    places = [found for found in break_at.finditer(text) if len(text) <= 4 * found.start() and 4 * found.end() <= 3 * len(text)]
    if not places:
        return None
    middle = min(places, key=lambda found: (abs(found.start() + found.end() - len(text)), found.start()))
    return text[: middle.start()], text[middle.end() :]
