"""Merged checkpoints with two processes (gloo, through the project's own launcher): all of them end with the weights of the main one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mlembed_core.artifacts import Workspace
from mlembed_core.config.train import MergeMethod
from mlembed_core.train import resume
from mlembed_core.train.launch import LAUNCHER, launch
from mlembed_core.train.merge import merge
from tests.distributed.worker import write_cache

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("profile", ["cpu_2proc", "cpu_2proc_fsdp2"])
@pytest.mark.parametrize("better", [True, False])
def test_every_process_gets_the_merged_weights_or_keeps_its_own(profile, better, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    write_cache(tmp_path / "cache", held_out=20)
    (tmp_path / "better").write_text(str(better))
    monkeypatch.setenv(LAUNCHER, profile)
    launch(Workspace(ROOT), str(tmp_path), module="tests.distributed.merge_worker")

    states = resume.last_weights(tmp_path / "state", count=3)
    expected = merge(states, MergeMethod.SLERP) if better else states[-1]
    assert any(not torch.equal(value, states[-1][name]) for name, value in merge(states, MergeMethod.SLERP).items())
    for file in ("held-0", "held-1", "weights"):
        found = load_file(tmp_path / f"{file}.safetensors")
        assert found.keys() == expected.keys()
        assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert json.loads((tmp_path / "curves.json").read_text())["merge"] == {"last": 1.0, "merged": 0.5 if better else 1.5}
