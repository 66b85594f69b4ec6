"""The predicates about an item's out as Dagster's asset checks.

A check that *blocks* fails its run, and a training does not start while one of the data's is failed (``stages.py``).
``matches_dvc`` is different in kind: it says what ``dvc status`` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dagster import AssetCheckSeverity, MetadataValue

from mlembed_core.predicates import PREDICATES, Verdict

MATCHES_DVC = "matches_dvc"


def severity(stage: str, name: str) -> AssetCheckSeverity:
    """A failed check that blocks is an error; the others warn: a loss that rose, an item that is out of date, break nothing."""
    blocks = any(predicate.blocking for predicate in PREDICATES.get(stage, ()) if predicate.name == name)
    return AssetCheckSeverity.ERROR if blocks else AssetCheckSeverity.WARN


def verdict_of_status(reasons: Sequence[str]) -> Verdict:
    """``matches_dvc``: passed when DVC has nothing to say about the item."""
    return Verdict(not reasons, {"dvc_says": MetadataValue.md("\n".join(f"- {reason}" for reason in reasons) or "up to date")})


def metadata(verdict: Verdict) -> dict[str, Any]:
    """A verdict's figures as Dagster shows them."""
    return {name: MetadataValue.json(value) if isinstance(value, list) else value for name, value in verdict.figures.items()}
