"""Predicates about an item's out: what must be true before the next stage, or a promotion, may build on it.

Dagster shows them as asset checks, and the gate asks them again of what is to be promoted. Figures are numbers, texts and lists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from safetensors import safe_open

from mlembed_core.artifacts import MANIFEST, read_json

ROWS = "rows.parquet"


@dataclass(frozen=True)
class Verdict:
    """An answer, and the figures that it rests on."""

    passed: bool
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Predicate:
    """A named question about the out of one item.

    Attributes:
        blocking: a no fails the run, and keeps trainings from starting.
    """

    name: str
    description: str
    ask: Callable[[Path], Verdict]
    blocking: bool = True


def training_rows(counts: Mapping[str, int]) -> int:
    """By a manifest's counts: the rows of the split ``train`` and those without a split, most of which the cache trains on, too."""
    return counts["rows_train"] + counts.get("rows_unsplit", 0) if "rows_train" in counts else counts.get("rows", 0)


def rows_are_present(out: Path) -> Verdict:
    rows = training_rows(read_json(out / MANIFEST)["counts"])
    return Verdict(rows > 0, {"rows": rows})


def test_rows_do_not_leak(out: Path) -> Verdict:
    """No text of a test row stands in a row that is trained on, case and spacing aside. Passages that are class names may."""
    columns = ["query", "passage"] if read_json(out / MANIFEST)["details"]["kind"] == "retrieval" else ["query"]
    available = pq.read_schema(out / ROWS).names
    if "split" not in available:
        return Verdict(passed=True, figures={"test_texts": 0})
    rows = pd.read_parquet(out / ROWS, columns=[*columns, "split"]).fillna({"split": "train"})
    texts = {split: {_plain(text) for name in columns for text in rows.loc[rows["split"] == split, name]} for split in ("train", "test")}
    leaked = sorted(texts["test"] & texts["train"])
    return Verdict(not leaked, {"test_texts": len(texts["test"]), "leaked": len(leaked), "examples": leaked[:5]})


def declared_languages_are_present(out: Path) -> Verdict:
    """Every language that the manifest names has rows, and no row has another."""
    declared = set(read_json(out / MANIFEST)["details"].get("languages") or [])
    found: set[str] = set()
    if "lang" in pq.read_schema(out / ROWS).names:
        found = set(pd.read_parquet(out / ROWS, columns=["lang"])["lang"].dropna().unique())
    missing, undeclared = sorted(declared - found), sorted(found - declared)
    figures = {"languages": len(found), "missing": missing, "undeclared": undeclared}
    return Verdict(not missing and not undeclared, figures)


def document_ids_are_unique(out: Path) -> Verdict:
    ids = pq.read_table(out / "documents.parquet", columns=["doc_id"])["doc_id"].to_numpy()
    repeated = len(ids) - len(np.unique(ids))
    return Verdict(repeated == 0, {"documents": len(ids), "repeated": repeated})


def loss_fell(out: Path) -> Verdict:
    """The loss on the held-out rows, the same each time, is lower at the end than when it was first taken. A training that looked at
    them less than twice is judged by its training loss, each source against itself, since sources are not alike.
    """
    path = out / "validation_curve.csv"
    validation = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["step", "loss"])
    by_step = validation.groupby("step")["loss"].mean()
    if len(by_step) > 1:
        change = float(by_step.iloc[-1] - by_step.iloc[0])
        return Verdict(change < 0, {"mean_change": change, "held_out": True})
    curve = pd.read_csv(out / "loss_curve.csv")
    of_source = curve.groupby("source")["loss"]
    changes = (of_source.last() - of_source.first())[of_source.count() > 1]
    if changes.empty:
        changes = pd.Series([curve["loss"].iloc[-1] - curve["loss"].iloc[0]])
    return Verdict(bool(changes.mean() < 0), {"mean_change": float(changes.mean()), "held_out": False})


def vectors_are_finite(out: Path) -> Verdict:
    """Every number of every weight is finite, tensor by tensor, so that memory holds one at a time."""
    broken, tensors = [], 0
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as weights:
            for name in weights.keys():  # noqa: SIM118  # no mapping: it has keys() alone
                tensors += 1
                if not np.isfinite(weights.get_tensor(name)).all():
                    broken.append(f"{path.name}: {name}")
    return Verdict(tensors > 0 and not broken, {"tensors": tensors, "not_finite": broken})


def scores_are_finite(out: Path) -> Verdict:
    """Every task's main score of every submodel is a number. A null is left out: it says that a system cannot do a task."""
    table = pd.read_parquet(out, columns=["main", "score"])
    main = table.loc[table["main"], "score"].dropna()
    return Verdict(bool(len(main)) and bool(np.isfinite(main).all()), {"main_scores": len(main)})


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


PREDICATES: Mapping[str, Sequence[Predicate]] = {
    "source": (
        Predicate("rows_are_present", "There are rows to train on.", rows_are_present),
        Predicate("test_rows_do_not_leak", "No text of the test split stands in a training row.", test_rows_do_not_leak),
        Predicate("declared_languages_are_present", "The rows' languages are those of the manifest.", declared_languages_are_present),
    ),
    "tokenize": (
        Predicate("rows_are_present", "There are tokenised rows to train on.", rows_are_present),
        Predicate("document_ids_are_unique", "Every document id stands once.", document_ids_are_unique),
    ),
    "cache": (Predicate("rows_are_present", "The training cache has training rows.", rows_are_present),),
    "backbone": (Predicate("vectors_are_finite", "Every weight is a finite number.", vectors_are_finite),),
    "train": (
        Predicate("loss_fell", "The loss at the end is below the loss at the start.", loss_fell, blocking=False),
        Predicate("vectors_are_finite", "Every weight is a finite number.", vectors_are_finite),
    ),
    "evaluate": (Predicate("scores_are_finite", "Every main score is a finite number.", scores_are_finite),),
    "control": (Predicate("scores_are_finite", "Every main score is a finite number.", scores_are_finite),),
}
