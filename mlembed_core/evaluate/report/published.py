"""Scores that others have published, beside which ours can stand: only where they are of the same benchmark."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mlembed_core.evaluate.report.summarise import Published, PublishedBenchmark, SuiteSummary

FILE = Path(__file__).parent / "published.json"


@cache
def published() -> Published:
    """All of them, with their source."""
    return Published.model_validate_json(FILE.read_text(encoding="utf-8"))


def published_on(suite: SuiteSummary) -> PublishedBenchmark | None:
    """Those on the suite's benchmark, by mteb's name. Local tasks have none: a mean over other tasks compares with nothing."""
    return next((found for found in published().benchmarks if found.benchmark == suite.benchmark), None)
