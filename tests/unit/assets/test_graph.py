"""What is read of DVC's files and answers."""

import json
import shutil
import subprocess

import pytest

from assets import graph
from mlembed_core.artifacts import Workspace
from mlembed_core.errors import ArtifactError, MachineError

LOCK = """
schema: '2.0'
stages:
  cache:
    cmd: mlembed cache
    outs:
    - {path: data/cache, hash: md5, md5: 12345678901234567890123456789012.dir, size: 77, nfiles: 3}
  evaluate@3d-eng:
    cmd: mlembed evaluate 3d eng
    outs:
    - {path: scores/3d/eng.json, hash: md5, md5: 00000000000000000000000000000000, size: 5}
    - {path: scores/3d/eng.parquet, hash: md5, md5: 12345678901234567890123456789012, size: 9}
"""


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "dvc.lock").write_text(LOCK)
    return Workspace(tmp_path)


def test_the_lock_gives_each_items_main_out(workspace):
    lock = graph.read_lock(workspace)
    assert (lock["cache"].md5, lock["cache"].size, lock["cache"].out) == ("12345678901234567890123456789012.dir", 77, "data/cache")
    # Digits alone are no number, and the metrics file, which sorts first, is not the table.
    assert (lock["evaluate@3d-eng"].md5, lock["evaluate@3d-eng"].out) == ("12345678901234567890123456789012", "scores/3d/eng.parquet")


def test_another_record_has_another_entry(workspace):
    before = graph.read_lock(workspace)
    path = workspace.root / "dvc.lock"
    path.write_text(LOCK.replace("mlembed cache", "mlembed cache --faster"))
    after = graph.read_lock(workspace)
    assert before["cache"].entry != after["cache"].entry
    assert before["evaluate@3d-eng"] == after["evaluate@3d-eng"]


def test_nothing_was_run_yet(tmp_path):
    assert graph.read_lock(Workspace(tmp_path)) == {}


@pytest.mark.parametrize("text", ["stages: [", "- a list", "stages: {cache: {outs: [{path: x}]}}"])
def test_a_damaged_lock_is_named(workspace, text):
    (workspace.root / "dvc.lock").write_text(text)
    with pytest.raises(ArtifactError, match=r"dvc\.lock.*git checkout"):
        graph.read_lock(workspace)


def test_status_is_a_list_of_reasons(workspace, monkeypatch):
    answer = {
        "train@3d": [
            {"changed deps": {"data/cache": "modified", "configs/params.yaml": {"train": "modified", "seed": "new"}}},
            {"changed outs": {"models/3d": "deleted"}},
            "changed command",
        ]
    }

    def run(command, **_):
        return subprocess.CompletedProcess(command, 0, stdout=json.dumps(answer), stderr="")

    monkeypatch.setattr(graph.subprocess, "run", run)
    assert graph.status(workspace, ["train@3d"]) == {
        "train@3d": [
            "changed deps: data/cache (modified)",
            "changed deps: configs/params.yaml train (modified)",
            "changed deps: configs/params.yaml seed (new)",
            "changed outs: models/3d (deleted)",
            "changed command",
        ]
    }


def test_a_refusal_of_dvcs_is_passed_on(tmp_path):
    with pytest.raises(MachineError, match=r"dvc status.*not inside of a DVC repository"):
        graph.status(Workspace(tmp_path))


def test_a_missing_dvc_is_told(monkeypatch):
    monkeypatch.setattr(graph.shutil, "which", lambda *_, **__: None)
    with pytest.raises(MachineError, match=r"dvc is not on PATH.*make setup"):
        graph.dvc_executable()
    assert shutil.which is graph.shutil.which


def test_the_code_version_follows_the_stages_code_alone(tmp_path):
    (tmp_path / "mlembed_core").mkdir()
    code, other = tmp_path / "mlembed_core" / "a.py", tmp_path / "data.txt"
    code.write_text("1")
    other.write_text("1")
    stage = {"cmd": "mlembed cache", "deps": ["mlembed_core/a.py", "data.txt"]}
    first = graph.code_version(Workspace(tmp_path), stage)
    other.write_text("2")
    assert graph.code_version(Workspace(tmp_path), stage) == first
    code.write_text("2")
    assert graph.code_version(Workspace(tmp_path), stage) != first
    assert graph.code_version(Workspace(tmp_path), {**stage, "cmd": "mlembed cache -v"}) != graph.code_version(Workspace(tmp_path), stage)
