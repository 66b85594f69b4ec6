"""Start a training through ``accelerate launch`` with the profile that the machine asks for.

The machine's shape (processes, nodes, devices) is a file of ``configs/accelerate`` named by ``MLEMBED_LAUNCHER``; it is no part of a
stage's command, so that DVC sees the same stage on a laptop and on a cluster. Default: ``one_gpu`` where CUDA is there, else ``cpu``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from mlembed_core.artifacts import Workspace
from mlembed_core.config.base import Section
from mlembed_core.config.load import load, read_yaml
from mlembed_core.config.train import TrainParams
from mlembed_core.errors import ConfigError, MachineError

LAUNCHER = "MLEMBED_LAUNCHER"
EXPECTED_WORLD_SIZE = "MLEMBED_EXPECTED_WORLD_SIZE"  # what the launched processes hold their number against
# glibc hands large blocks back to the system when they are freed and faults them in again, page by page, a sixth of a small step's CPU
# time. A training asks for the same sizes in every step: let it keep them.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


class _Threads(Section):
    train: TrainParams


def launch(workspace: Workspace, setting: str, *, module: str = "mlembed_core.stages.train") -> None:
    """Run the training stage in as many processes as the profile says, and wait for it.

    Args:
        module: what each process runs, with the setting as its argument.

    Raises:
        ConfigError: an unknown profile.
        MachineError: a process failed; what it said stands above on stderr.
    """
    profile = _profile(workspace)
    processes = int(read_yaml(profile).get("num_processes", 1))
    environment = {**os.environ, EXPECTED_WORLD_SIZE: str(processes), "TOKENIZERS_PARALLELISM": "false"}
    # Threads that wait for each other by spinning stall a training many times over when another program wants the cores.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    environment = ALLOCATOR | environment
    if read_yaml(profile).get("use_cpu"):
        # `accelerate launch --cpu --num_processes 2` would start one process in silence; the profile plus this starts two.
        environment["ACCELERATE_USE_CPU"] = "true"
    threads = load(workspace.params_file, _Threads).train.num_threads
    command = [
        *_accelerate(),
        "launch",
        "--quiet",
        "--num_cpu_threads_per_process",
        str(threads),
        "--config_file",
        str(profile),
        "--module",
        module,
        setting,
    ]
    status = subprocess.run(command, cwd=workspace.root, env=environment, check=False).returncode
    if status != 0:
        raise MachineError(f"the training of {setting} ended with status {status}; the reason stands above. Earlier results are untouched.")


def _profile(workspace: Workspace) -> Path:
    folder = workspace.root / "configs" / "accelerate"
    name = os.environ.get(LAUNCHER) or ("one_gpu" if shutil.which("nvidia-smi") else "cpu")
    profile = folder / f"{name}.yaml"
    if not profile.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml"))) or f"none in {folder}"
        raise ConfigError(f"{LAUNCHER}={name}: there is no such launch profile (there are: {known})")
    return profile


def _accelerate() -> list[str]:
    # The interpreter that runs us, not whatever `accelerate` stands first on PATH.
    return [sys.executable, "-m", "accelerate.commands.accelerate_cli"]
