"""What a person wants to see of an item on its page in Dagster, read from the outs: counts, curves, scores, hashes, links.

The same for an item that Dagster ran and for one that was run outside and imported.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from dagster import MetadataValue, TableRecord

from assets import charts
from assets.graph import LockedItem
from mlembed_core.artifacts import MANIFEST, Workspace, manifest_hash, read_json

Facts = dict[str, Any]
MLFLOW_UI = "MLEMBED_MLFLOW_UI"  # where people open MLflow; `make ui` sets it
DEFAULT_MLFLOW_UI = "http://127.0.0.1:5000"
SMOOTHING_POINTS = 5
DIGITS = 4  # of losses and scores; the files have them all


def facts_of(workspace: Workspace, stage: str, item: str, locked: LockedItem) -> Facts:
    """Metadata for Dagster.

    Args:
        stage: e.g. ``train``.
        item: e.g. ``train@3d``.
        locked: what ``dvc.lock`` holds of it.
    """
    out = workspace.root / locked.out
    manifest = read_json(out / MANIFEST) if (out / MANIFEST).is_file() else None
    # The page keeps this order: first what a person looks for, last what identifies the bytes.
    facts: Facts = _MORE[stage](workspace, item, out) if stage in _MORE else {}
    if manifest is not None:
        facts |= {_NAMES.get(name, name): count for name, count in manifest["counts"].items()}
    facts |= {"bytes": locked.size, "out": MetadataValue.path(locked.out), "md5": locked.md5}
    if manifest is not None:
        facts["manifest"] = MetadataValue.json({key: value for key, value in manifest.items() if key != "files"})
    return facts


_NAMES = {"rows": "dagster/row_count"}  # the name under which the UI shows a table's rows


def _source(_workspace: Workspace, _item: str, out: Path) -> Facts:
    details = read_json(out / MANIFEST)["details"]
    return {"licences": ", ".join(details["licences"]) or "unknown", "kind": details["kind"]}


def _train(workspace: Workspace, item: str, out: Path) -> Facts:
    curve = pd.read_csv(out / "loss_curve.csv")
    smooth = curve["loss"].rolling(SMOOTHING_POINTS, min_periods=1).mean()
    facts: Facts = {
        "loss": round(float(smooth.iloc[-1]), DIGITS),
        "loss_curve": charts.loss_curve(curve["step"].tolist(), curve["loss"].tolist(), smooth.tolist()),
    }
    measured = workspace.measured(item)
    run = read_json(measured) if measured.is_file() else {}
    if run.get("output_hash") == manifest_hash(out):  # of these bytes, not of a training before or after
        facts |= {"seconds": run["seconds"], "tokens_per_second": run["tokens_per_second"]}
        if run["run_id"] is not None:
            facts["mlflow"] = mlflow_run(run["experiment_id"], run["run_id"])
    return facts


def _scores(_workspace: Workspace, _item: str, out: Path) -> Facts:
    summary: Mapping[str, Mapping[str, float]] = read_json(out.with_suffix(".json"))
    tasks = sorted({task for scores in summary.values() for task in scores}, key=lambda task: (task != "average", task))
    records = [TableRecord({"system": name, **{task: scores.get(task, "–") for task in tasks}}) for name, scores in summary.items()]
    averages = [scores["average"] for scores in summary.values() if "average" in scores]
    facts: Facts = {"scores": MetadataValue.table(records)}
    if averages:
        facts["best_average"] = round(max(averages), DIGITS)
    table = pd.read_parquet(out, columns=["submodel", "bytes_fp32"]).dropna().drop_duplicates("submodel")
    sizes = dict(zip(table["submodel"], table["bytes_fp32"], strict=True))
    points = {name: (sizes[name] / 1e6, scores["average"]) for name, scores in summary.items() if name in sizes and "average" in scores}
    if points:
        facts["frontier"] = charts.frontier(points)
    return facts


def _report(_workspace: Workspace, _item: str, out: Path) -> Facts:
    facts: Facts = {name: charts.picture_file(out / f"{name}.png", name) for name in ("frontier", "retention", "loss")}
    facts["page"] = MetadataValue.path(str(out / "index.html"))
    return facts


def _card(_workspace: Workspace, _item: str, out: Path) -> Facts:
    return {"picture": charts.picture_file(out / "card.png", "data card"), "page": MetadataValue.path(str(out / "index.html"))}


_MORE: Mapping[str, Callable[[Workspace, str, Path], Facts]] = {
    "source": _source,
    "card": _card,
    "train": _train,
    "evaluate": _scores,
    "control": _scores,
    "report": _report,
}


def mlflow_run(experiment_id: str, run_id: str) -> Any:
    """A link to a run's page."""
    return MetadataValue.url(f"{_mlflow_ui()}/#/experiments/{experiment_id}/runs/{run_id}")


def mlflow_version(name: str, version: str) -> Any:
    """A link to a model version's page."""
    return MetadataValue.url(f"{_mlflow_ui()}/#/models/{name}/versions/{version}")


def _mlflow_ui() -> str:
    return os.environ.get(MLFLOW_UI, DEFAULT_MLFLOW_UI).rstrip("/")
