"""The study of pruning: both ways of choosing get the same commands, random draws follow the seed, and its table. Commands are fake."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks import pruning
from benchmarks.study import SUITE, parameters
from mlembed_core.artifacts import Workspace, read_json, verify_files, write_manifest
from mlembed_core.config.model import PruneParams
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.network import Network
from tests.tiny import tiny_qwen3, tokenizer_folder

ROOT = Path(__file__).parents[2]
AVERAGES = {"activation": 0.5, "random": 0.4}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "configs").mkdir()
    for name in ("presets", "accelerate"):
        (tmp_path / "configs" / name).symlink_to(ROOT / "configs" / name)
    workspace, model = Workspace(tmp_path), tmp_path / "models" / "baseline"
    model.mkdir(parents=True)
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    write_checkpoint(model, Network(tiny_qwen3(seed=1, vocab_size=258)), tokenizer_folder=tokenizer, details={"setting": None})
    write_manifest(model, stage="train@baseline", params={})
    values = parameters(workspace, pruning.PRESET, pruning.CHANGES)
    run = pruning.PruningRun(workspace, values, model, PruneParams(hidden_size=8, intermediate_size=4))
    called: list[tuple[str, ...]] = []

    def command(line: list[str], *, cwd: Path, **_: Any) -> Any:
        called.append((f"{cwd.parent.name}/{cwd.name}", *line[3:]))
        if line[3] == "tokenizer":
            (cwd / "data" / "tokenizer").symlink_to(tokenizer)
        elif line[3] in ("source", "cache"):
            (cwd / "data" / ("sources" if line[3] == "source" else "cache")).mkdir(exist_ok=True)
        elif line[3] == "evaluate":
            assert line[4] != pruning.PRUNED or (cwd / "models" / line[4] / "config.json").exists() == (cwd.name == "random")
            path = cwd / "scores" / line[4] / f"{SUITE}.json"
            path.parent.mkdir(parents=True)
            score = AVERAGES[cwd.name] - (0.3 if line[4] == pruning.PRUNED else 0)
            path.write_text(json.dumps({"l2-d8-r8": {"average": score, "Task": score}}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", command)
    return SimpleNamespace(study=run, called=called)


def table_of(folder: Path) -> Any:
    return load_file(folder / "random" / "data" / "backbone" / "model.safetensors")


def test_only_the_choice_differs(run: Any) -> None:
    run.study.run([17, 18])
    per_method = [[call[1:] for call in run.called if call[0] == f"seed-17/{method}"] for method in pruning.METHODS]
    assert per_method[0] == [("backbone",), *per_method[1]]
    assert [call[0] for call in per_method[1]] == ["evaluate", "train", "evaluate"]
    backbone = Workspace(run.study.seed_folder(17) / "random").backbone
    verify_files(backbone)
    assert read_json(backbone / "config.json")["hidden_size"] == 8
    assert read_json(backbone / "config.json")["intermediate_size"] == 4
    first, second = (table_of(run.study.seed_folder(seed)) for seed in (17, 18))
    assert any(not np.array_equal(first[name], second[name]) for name in first)  # another seed, other dimensions
    run.called.clear()
    run.study.run([17, 18])
    assert run.called == []

    text = pruning.table(list(run.study.scores([17, 18, 19])))  # of which the last one is not finished
    assert "| activation | trained | 0.500 (0.500 … 0.500) | 0.500 |" in text
    assert "| random | as pruned | 0.100 (0.100 … 0.100) | 0.100 |" in text
    assert "activation − random, trained, by seed: +0.100, +0.100" in text
