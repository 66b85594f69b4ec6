"""Progress of long work on the terminal: rate and time left, plain lines where nobody watches.

On a terminal a bar; elsewhere (a log file, a pipe, DVC's or Dagster's capture) one line every few seconds, so that logs stay readable.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")
PLAIN_INTERVAL_S = 5.0


class Reporter:
    """Shows how far a task is.

    Args:
        start: units that were done before, by an earlier run; they count as done but not into the rate.
        shown: false keeps quiet: of several processes one speaks.
    """

    def __init__(self, description: str, total: int | None, unit: str, *, start: int = 0, shown: bool = True) -> None:
        self._description = description
        self._total = total
        self._unit = unit
        self._start = self._done = self._shown = start
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._console = Console(stderr=True)
        self._quiet = not shown

    def __enter__(self) -> Reporter:
        if self._console.is_terminal and not self._quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bar.start()
            self._id = self._bar.add_task(self._description, total=self._total, completed=self._start, note="")
        return self

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count ``amount`` units as done; ``note`` is shown beside the bar (a loss, a rate)."""
        self._done += amount
        if self._bar is not None:
            self._bar.update(self._id, advance=amount, note=note or self._rate())
        elif time.monotonic() - self._last_line >= PLAIN_INTERVAL_S:
            self._last_line = time.monotonic()
            self._line(note)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._done != self._shown and time.monotonic() - self._started >= PLAIN_INTERVAL_S:
            self._line("")

    def _rate(self) -> str:
        return f"{(self._done - self._start) / max(time.monotonic() - self._started, 1e-9):,.1f} {self._unit}/s"

    def _line(self, note: str) -> None:
        self._shown = self._done
        if self._quiet:
            return
        elapsed = time.monotonic() - self._started
        left = ""
        if self._total and self._done > self._start:
            left = f", {elapsed / (self._done - self._start) * (self._total - self._done):.0f} s left"
        of = f"/{self._total:,}" if self._total else ""
        print(f"{self._description}: {self._done:,}{of} {self._unit} ({self._rate()}{left}) {note}".rstrip(), file=sys.stderr, flush=True)


def track(items: Iterable[T], *, description: str, total: int | None = None, unit: str = "items") -> Iterator[T]:
    """Iterate over ``items`` while showing how many are done."""
    with Reporter(description, total, unit) as reporter:
        for item in items:
            yield item
            reporter.advance()
