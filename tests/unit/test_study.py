"""The driver of the study: what it trains, that it goes on where it was, and its tables. The commands themselves are stand-ins here."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import study
from mlembed_core.artifacts import Workspace
from mlembed_core.errors import ConfigError, MachineError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "configs").mkdir()
    for name in ("presets", "accelerate"):
        (tmp_path / "configs" / name).symlink_to(ROOT / "configs" / name)
    return Workspace(tmp_path)


@pytest.mark.parametrize("preset", study.PRESETS)
def test_four_matched_settings_of_every_preset(workspace: Workspace, preset: str) -> None:
    values = study.parameters(workspace, preset, ["train.num_steps=7"])
    assert list(values["settings"]) == ["baseline", "mrl", "mrl_mll", "3d"]
    assert values["settings"]["3d"]["mel"]["sampled"] is True
    assert values["train"]["num_steps"] == 7
    # Cuts on all three axes, and the whole model.
    cuts = values["evaluation"]["submodels"]
    assert {} in cuts
    assert {axis for cut in cuts if len(cut) == 1 for axis in cut} == {"dim", "rank", "layers"}
    with pytest.raises(ConfigError, match="has no section 'trian'"):
        study.parameters(workspace, preset, ["trian.num_steps=7"])


def test_it_goes_on_where_it_was(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, ...]] = []
    fails = {("train", "mrl")}

    def command(line: list[str], *, cwd: Path, **_: Any) -> Any:
        called.append((cwd.name, *line[3:]))
        if tuple(line[3:]) in fails:
            return SimpleNamespace(returncode=1)
        out = {"source": "sources", "tokenizer": "tokenizer", "cache": "cache"}.get(line[3])
        if out is not None:
            (cwd / "data" / out / "".join(line[4:])).mkdir(parents=True)
        if line[3] in ("evaluate", "control"):
            setting = line[4] if line[3] == "evaluate" else "controls"
            path = cwd / "scores" / setting / f"{study.SUITE}.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"cut": {"average": 0.5 + len(setting) / 100 + int(cwd.name[-1]) / 100}}))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", command)
    run = study.Run(workspace, "minilm", study.parameters(workspace, "minilm"))
    with pytest.raises(MachineError, match="`mlembed train mrl` failed in .*seed-17 with status 1"):
        run.run([17, 18])
    before = list(called)
    assert before[-1] == ("seed-17", "train", "mrl")
    assert ("shared", "cache") in before
    fails.clear()
    called.clear()
    run.run([17, 18])
    assert called[0] == ("seed-17", "train", "mrl")
    assert not set(called[1:]) & set(before)
    called.clear()
    run.run([17, 18])
    assert called == []

    found = run.found([17, 18])
    assert found["3d cut"]["average"] == pytest.approx([0.59, 0.60])
    assert "| cut | 0.655 (0.650 … 0.660) | 0.595 (0.590 … 0.600) |" in study.averages(found, ["baseline", "3d"])
    assert "| cut | -0.060 (-0.060 … -0.060) |" in study.differences(found, ["baseline", "3d"])
    assert run.found([19]) == {}
    # Another number of steps is another study.
    other = study.Run(workspace, "minilm", study.parameters(workspace, "minilm", ["train.num_steps=7"]))
    assert other.folder != run.folder


def test_two_at_a_time_are_one_too_many(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    run = study.Run(workspace, "minilm", study.parameters(workspace, "minilm"))

    def nested(*_: Any, **__: Any) -> Any:
        with pytest.raises(MachineError, match="a study runs in"):
            run.run([17])
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", nested)
    with pytest.raises(MachineError, match="failed in"):
        run.run([17])
