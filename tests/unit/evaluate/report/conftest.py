"""A workspace with made-up scores, in the formats that the stages before the report write. No number here was measured."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlembed_core.artifacts import Workspace, write_manifest
from mlembed_core.config.load import load
from mlembed_core.evaluate.report.summarise import Report
from mlembed_core.stages import report as stage

PARAMS = """\
name: made_up
sources:
  made_up: {kind: retrieval, origin: {type: local, files: [made_up.parquet]}}
settings:
  baseline: {}
  3d: {mrl: auto, mll: auto, mel: {rank: 16, min_rank: 4, sampled: true}}
evaluation:
  num_threads: 1
  submodels: [{}, {dim: 4}, {layers: 1}, {rank: 4}, {layers: 1, dim: 4}]
suites:
  small:
    type: local
    tasks:
      BetaSearch: {type: retrieval, source: made_up}
      AlphaBitext: {type: bitext_mining, source: made_up}
"""
SHAPE = {"layers": 2, "dim": 16, "rank": 16, "vocab": 100}
TASKS = {"BetaSearch": ("Retrieval", "ndcg_at_10", ("default",)), "AlphaBitext": ("BitextMining", "accuracy", ("deu-eng", "fra-eng"))}

# submodel → (bytes, FLOPs per token, bytes per vector)
COSTS = {
    (2, 16, 16): (1000, 200, 64),
    (2, 4, 16): (1000, 200, 16),
    (1, 16, 16): (600, 100, 64),
    (2, 16, 4): (700, 180, 64),
    (1, 4, 16): (600, 100, 16),
}
# setting → submodel → task → main score of each subset. Averages: the mean of BetaSearch and of AlphaBitext's mean.
SCORES: dict[str, dict[tuple[int, int, int], dict[str, list[float]]]] = {
    "baseline": {
        (2, 16, 16): {"BetaSearch": [0.6], "AlphaBitext": [0.5, 0.3]},  # .50
        (2, 4, 16): {"BetaSearch": [0.3], "AlphaBitext": [0.2, 0.2]},  # .25
        (1, 16, 16): {"BetaSearch": [0.4], "AlphaBitext": [0.5, 0.1]},  # .35
        (2, 16, 4): {"BetaSearch": [0.2], "AlphaBitext": [0.2, 0.2]},  # .20
        (1, 4, 16): {"BetaSearch": [0.1], "AlphaBitext": [0.1, 0.1]},  # .10
    },
    "3d": {
        (2, 16, 16): {"BetaSearch": [0.5], "AlphaBitext": [0.4, 0.2]},  # .40
        (2, 4, 16): {"BetaSearch": [0.4], "AlphaBitext": [0.4, 0.2]},  # .35
        (1, 16, 16): {"BetaSearch": [0.5], "AlphaBitext": [0.5, 0.3]},  # .45
        (2, 16, 4): {"BetaSearch": [0.4], "AlphaBitext": [0.2, 0.2]},  # .30
        (1, 4, 16): {"BetaSearch": [0.4], "AlphaBitext": [0.4, 0.4]},  # .40
    },
}
CONTROLS: dict[str, dict[str, list[float | None]]] = {
    "untrained": {"BetaSearch": [0.3], "AlphaBitext": [0.2, 0.2]},  # .25
    "char_tfidf": {"BetaSearch": [0.7], "AlphaBitext": [0.35, 0.35]},  # .525; AlphaBitext above 3d only
    "bm25": {"BetaSearch": [0.55]},  # no average; above 3d only
}


LANGUAGES = {"default": ["eng-Latn"], "deu-eng": ["deu-Latn", "eng-Latn"], "fra-eng": ["fra-Latn", "eng-Latn"]}
# Of the single questions of BetaSearch: around its main score, alike for all, so that differences do not vary; and the language.
SPREAD = ((-0.1, "eng-Latn"), (0.05, "eng-Latn"), (0.05, "rus-Cyrl"), (0.1, "rus-Cyrl"), (-0.1, "eng-Latn"))


@dataclass
class MadeUp:
    """A workspace to be, whose inputs a test may change before they are written."""

    root: Path
    params: str = PARAMS
    settings: dict[str, dict[tuple[int, int, int], dict[str, list[float]]]] = field(default_factory=lambda: dict(SCORES))
    controls: dict[str, dict[str, list[float | None]]] = field(default_factory=lambda: dict(CONTROLS))
    validation: bool = True

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.root)

    def table(self, setting: str, suite: str = "small") -> Path:
        return self.root / "scores" / setting / f"{suite}.parquet"

    def write(self) -> Workspace:
        (self.root / "configs").mkdir(parents=True)
        self.workspace.params_file.write_text(self.params, encoding="utf-8")
        for setting, submodels in self.settings.items():
            rows = [row for sizes, tasks in submodels.items() for row in rows_of(setting, sizes, tasks)]
            write_table(self.table(setting), rows)
            self._write_model(setting)
        rows = []
        for control, tasks in self.controls.items():
            rows += rows_of(control, (2, 16, 16) if control == "untrained" else None, tasks)
        write_table(self.table("controls"), rows)
        return self.workspace

    def _write_model(self, setting: str) -> None:
        folder = self.root / "models" / setting
        folder.mkdir(parents=True)
        trained = {"mrl_dims": [8, 16], "mll_layers": [1, 2], "mel_ranks": [4, 16] if setting == "3d" else None}
        (folder / "mlembed.json").write_text(json.dumps({"setting": setting, "shape": SHAPE, **trained}), encoding="utf-8")
        losses = [f"{step},source_{step % 20 // 10},{4 - step / 20},0.1,1.0,,100" for step in range(0, 50, 10)]
        (folder / "loss_curve.csv").write_text(
            "\n".join(["step,source,loss,learning_rate,grad_norm,rank,tokens", *losses]) + "\n", encoding="utf-8"
        )
        # Two sources and, besides the full model, a cut one that must not count.
        validation = [
            f"{step},source_{source},{layers},{dim},{2 + source + (2 - layers) - step / 40}"
            for step in (0, 40)
            for source in (0, 1)
            for layers, dim in ((1, 16), (2, 8), (2, 16))
        ]
        (folder / "validation_curve.csv").write_text(
            "\n".join(["step,source,layers,dim,loss", *(validation if self.validation else [])]) + "\n", encoding="utf-8"
        )
        write_manifest(folder, stage=f"train@{setting}", params={})


def rows_of(
    setting: str, sizes: tuple[int, int, int] | None, tasks: Mapping[str, list[float]] | Mapping[str, list[float | None]]
) -> list[dict[str, object]]:
    """Main rows, beside each a row of another metric that must not count, and for BetaSearch rows of single questions."""
    layers, dim, rank = sizes or (None, None, None)
    cost = COSTS[sizes] if sizes else (None, None, None)
    rows: list[dict[str, object]] = []
    for task, values in tasks.items():
        task_type, metric, subsets = TASKS[task]
        for subset, value in zip(subsets, values, strict=True):
            row = {
                "setting": setting,
                "suite": "small",
                "submodel": f"l{layers}-d{dim}-r{rank}" if sizes else None,
                "layers": layers,
                "dim": dim,
                "rank": rank,
                "task": task,
                "task_type": task_type,
                "subset": subset,
                "language": "eng-Latn",
                "split": "test",
                "bytes_fp32": cost[0],
                "flops_per_token": cost[1],
                "bytes_per_vector": cost[2],
                "query": None,
                "languages": LANGUAGES[subset],
            }
            rows += [row | {"metric": metric, "score": value, "main": True}, row | {"metric": "other", "score": 0.99, "main": False}]
            if task == "BetaSearch" and value is not None:
                single = row | {"metric": metric, "main": False}
                rows += [
                    single | {"query": f"q{index}", "score": value + spread, "languages": [code]}
                    for index, (spread, code) in enumerate(SPREAD)
                ]
    return rows


def write_table(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = ["layers", "dim", "rank", "bytes_fp32", "flops_per_token", "bytes_per_vector"]
    pd.DataFrame(rows).astype(dict.fromkeys(whole, "Int64") | {"score": "float64"}).to_parquet(path)


@pytest.fixture
def made_up(tmp_path: Path) -> MadeUp:
    """Inputs not yet written."""
    return MadeUp(tmp_path / "clone")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with its report, made once for all tests that only read it."""
    workspace = MadeUp(tmp_path_factory.mktemp("finished") / "clone").write()
    stage.run(workspace)
    return workspace


def compared(workspace: Workspace) -> Report:
    """The numbers alone, without pictures and page."""
    config = load(workspace.params_file, stage.Config)
    return stage.compare(workspace, config, stage.read_curves(workspace, config))


@pytest.fixture(scope="session")
def compare() -> Callable[[Workspace], Report]:
    """Tests cannot import from here, so that they get functions as fixtures."""
    return compared


@pytest.fixture(scope="session", name="rows_of")
def _rows_of() -> Any:
    return rows_of


@pytest.fixture(scope="session", name="write_table")
def _write_table() -> Any:
    return write_table
