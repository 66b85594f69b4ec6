"""What the launcher finds out before it starts anything, and what it makes of how the processes ended."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from mlembed_core.artifacts import Workspace
from mlembed_core.config.load import read_yaml
from mlembed_core.errors import ConfigError, MachineError, TrainingInterruptedError
from mlembed_core.train.control import CONTROL, StopRequest, ask_to_stop, report, reported
from mlembed_core.train.launch import LAUNCHER, _raise_for, _resolved_profile, check_devices

GPU = {"use_cpu": False, "num_processes": 8, "num_machines": 1}


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "configs" / "accelerate").mkdir(parents=True)
    (tmp_path / "configs" / "accelerate" / "cluster.yaml").write_text("machine_rank: ${MLEMBED_MACHINE_RANK}\n# costs $5\n")
    (tmp_path / "out").mkdir()
    return Workspace(tmp_path)


def test_a_profile_takes_what_differs_between_nodes_from_the_environment(workspace, monkeypatch):
    monkeypatch.setenv(LAUNCHER, "cluster")
    monkeypatch.setenv("MLEMBED_MACHINE_RANK", "3")
    assert read_yaml(_resolved_profile(workspace, workspace.root / "out")) == {"machine_rank": 3}


def test_a_variable_that_is_not_set_is_named(workspace, monkeypatch):
    monkeypatch.setenv(LAUNCHER, "cluster")
    monkeypatch.delenv("MLEMBED_MACHINE_RANK", raising=False)
    with pytest.raises(ConfigError, match=r"cluster.yaml needs the environment variable MLEMBED_MACHINE_RANK"):
        _resolved_profile(workspace, workspace.root / "out")


def test_a_profile_for_cpus_needs_nothing():
    check_devices({"use_cpu": True, "num_processes": 2})


@pytest.mark.parametrize(
    ("cuda", "available", "count", "nccl", "message"),
    [
        (None, False, 0, False, r"built without CUDA.*MLEMBED_LAUNCHER=cpu.*TORCH_INDEX_URL"),
        ("12.8", False, 0, True, r"torch sees none.*CUDA_VISIBLE_DEVICES"),
        ("12.8", True, 4, True, r"asks for 8 processes on this machine.*torch sees 4"),
        ("12.8", True, 8, False, r"has no NCCL"),
    ],
)
def test_what_a_machine_lacks_for_gpus_is_said_before_anything_starts(monkeypatch, cuda, available, count, nccl, message):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    with pytest.raises(MachineError, match=message):
        check_devices(GPU)


def test_processes_of_other_machines_need_no_gpus_here(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    check_devices({"use_cpu": False, "num_processes": 16, "num_machines": 2})


def test_success_is_no_error():
    _raise_for("3d", 0, None, told=False)
    _raise_for("3d", 0, None, told=True)  # told to stop after the last step


@pytest.mark.parametrize(
    ("status", "code", "told", "error", "exit_code"),
    [
        (1, 10, False, MachineError, 10),  # what the training process reported, not accelerate's 1
        (1, None, False, MachineError, MachineError.exit_code),
        (-9, None, False, MachineError, MachineError.exit_code),
        (0, 143, False, TrainingInterruptedError, 143),  # another machine was told
        (0, 143, True, TrainingInterruptedError, 143),
        (-9, None, True, TrainingInterruptedError, 143),  # told before there was anything to save
        (1, 10, True, MachineError, 10),
    ],
)
def test_the_exit_code_says_how_it_ended(status, code, told, error, exit_code):
    with pytest.raises(error) as caught:
        _raise_for("3d", status, code, told=told)
    assert caught.value.exit_code == exit_code


def test_the_first_report_counts(tmp_path, monkeypatch):
    monkeypatch.setenv(CONTROL, str(tmp_path))
    assert reported(tmp_path) is None
    assert report(10)
    assert not report(1)
    assert reported(tmp_path) == 10


def test_without_a_launcher_everybody_speaks(monkeypatch):
    monkeypatch.delenv(CONTROL, raising=False)
    assert report(10)
    assert report(10)


def test_a_process_is_asked_to_stop_through_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CONTROL, str(tmp_path))
    assert not ask_to_stop(tmp_path)
    with StopRequest() as stop_requested:
        assert not stop_requested()
        assert ask_to_stop(tmp_path)
        assert stop_requested()
        os.kill(os.getpid(), signal.SIGTERM)  # asking twice does no harm
        assert stop_requested()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f"pid-{os.getpid()}").rename(tmp_path / f"pid-{gone.pid}")
    assert ask_to_stop(tmp_path)
