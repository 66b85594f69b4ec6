"""A small workspace after a demo: two trained settings (stand-in weights), their inputs, scores and a report."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlembed_core.artifacts import Workspace, write_json, write_manifest

PARAMS = """
name: house
seed: 17
settings:
  baseline: {}
  3d: {mrl: auto, mll: auto, mel: {rank: 8, min_rank: 2, sampled: true}}
"""


@pytest.fixture
def workspace(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    workspace = make_workspace(tmp_path / "clone", mlflow_database)
    for setting in ("baseline", "3d"):
        write_model(workspace, setting)
        write_scores(workspace, setting)
    workspace.reports.mkdir()
    (workspace.reports / "index.html").write_text("<html></html>")
    (workspace.reports / "frontier.png").write_bytes(b"\x89PNG")
    monkeypatch.chdir(workspace.root)
    return workspace


def make_workspace(root: Path, database: Path) -> Workspace:
    (root / "configs").mkdir(parents=True)
    (root / "configs" / "params.yaml").write_text(PARAMS)
    shutil.copyfile(database, root / "mlflow.db")
    for name in ("backbone", "cache", "tokenizer"):
        (root / "data" / name).mkdir(parents=True)
        (root / "data" / name / "file").write_text(name)
        write_manifest(root / "data" / name, stage=name, params={})
    return Workspace(root)


def write_model(workspace: Workspace, setting: str, weights: str = "w") -> None:
    folder = workspace.models / setting
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text("{}\n")
    (folder / "config.json").write_text("{}\n")
    (folder / "model.safetensors").write_text(f"{setting} {weights}")
    axes = {"mrl_dims": [8, 16], "mll_layers": [1, 2], "mel_ranks": [2, 4, 8] if setting == "3d" else None}
    write_json(folder / "mlembed.json", {"setting": setting, "shape": {"layers": 2, "dim": 16, "rank": 8, "vocab": 300}, **axes})
    (folder / "loss_curve.csv").write_text(
        "step,source,loss,learning_rate,grad_norm,rank,tokens\n10,code,2.5,0.0001,1.5,8,700\n20,bitext,1.5,0.0002,1.0,,650\n"
    )
    (folder / "validation_curve.csv").write_text("step,source,layers,dim,loss\n20,code,2,16,1.25\n")
    inputs = {name: workspace.root / "data" / name for name in ("backbone", "cache", "tokenizer")}
    write_manifest(folder, stage=f"train@{setting}", params={"seed": 17, "train": {"num_steps": 20}}, inputs=inputs)


def write_scores(workspace: Workspace, setting: str, change: float = 0.0) -> None:
    rows = [
        score("l2-d16-r8", "DocstringToCode", "default", 0.75),
        score("l2-d16-r8", "Bitext", "deu-eng", 0.25 + change),
        score("l2-d16-r8", "Bitext", "fra-eng", 0.5 + change),
        score("l2-d16-r8", "Bitext", "fra-eng", 0.9, main=False),
        score("l1-d8-r2", "DocstringToCode", "default", 0.5),
        score("l1-d8-r2", "Bitext", "deu-eng", 0.125),
    ]
    (workspace.scores / setting).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), workspace.scores / setting / "embedded.parquet")


def score(submodel: str, task: str, subset: str, value: float, *, main: bool = True) -> dict[str, Any]:
    return {"suite": "embedded", "submodel": submodel, "task": task, "subset": subset, "metric": "main", "score": value, "main": main}


@pytest.fixture
def retrain(workspace: Workspace) -> Callable[[str, str], None]:
    """Train a setting again, to other weights."""
    return lambda setting, weights: write_model(workspace, setting, weights)


@pytest.fixture
def rescore(workspace: Workspace) -> Callable[[str, float], None]:
    """Score a setting again; one task of the full model moves by the change."""
    return lambda setting, change: write_scores(workspace, setting, change)
