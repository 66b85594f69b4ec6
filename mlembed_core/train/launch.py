"""Start a training through ``accelerate launch`` with the profile that the machine asks for.

The machine's shape (processes, nodes, devices) is a file of ``configs/accelerate`` named by ``MLEMBED_LAUNCHER``; it is no part of a
stage's command, so that DVC sees the same stage on a laptop and on a cluster. Default: ``one_gpu`` where CUDA is there, else ``cpu``.
A profile may name environment variables, ``${LIKE_THIS}``, for what differs between the nodes of a cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from mlembed_core import lifeline
from mlembed_core.artifacts import Workspace
from mlembed_core.config.base import Section
from mlembed_core.config.load import load, read_yaml
from mlembed_core.config.train import TrainParams
from mlembed_core.errors import ConfigError, MachineError, TrainingInterruptedError
from mlembed_core.train.control import CONTROL, ask_to_stop, reported

LAUNCHER = "MLEMBED_LAUNCHER"
EXPECTED_WORLD_SIZE = "MLEMBED_EXPECTED_WORLD_SIZE"  # what the launched processes hold their number against
SHARDED = "MLEMBED_SHARDED"  # tells them to split the weights (train/sharding.py)
VARIABLE = re.compile(r"\$\{([A-Z][A-Z0-9_]*)\}")


class _Threads(Section):
    train: TrainParams


def launch(workspace: Workspace, setting: str, *, module: str = "mlembed_core.stages.train") -> None:
    """Run the training stage in as many processes as the profile says, and wait for it.

    Told to stop (SIGTERM, Ctrl-C), it has the processes save their state and waits for them; killed, it takes them along.

    Args:
        module: what each process runs, with the setting as its argument.

    Raises:
        ConfigError: an unknown profile, or an environment variable of it that is not set.
        MachineError: the machine lacks what the profile asks for, or a process failed; what it said stands above on stderr.
        TrainingInterruptedError: told to stop; the state is saved.
    """
    (workspace.work / "tmp").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="launch.", dir=workspace.work / "tmp") as name:
        control = Path(name)
        profile = _resolved_profile(workspace, control)
        facts = read_yaml(profile)
        check_devices(facts)
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
        status, told = _run(command, workspace.root, _environment(facts, control), control)
        _raise_for(setting, status, reported(control), told=told)


def check_devices(profile: dict[str, Any]) -> None:
    """Hold a profile for GPUs against this machine.

    Raises:
        MachineError: torch cannot use a GPU here, there are fewer than processes, or the library that joins them is missing.
    """
    if profile.get("use_cpu"):
        return
    import torch  # two seconds that only trainings on GPUs have to wait for

    advice = f"Choose a profile for CPUs ({LAUNCHER}=cpu), or "
    if torch.version.cuda is None:
        raise MachineError(
            f"the launch profile asks for GPUs, but torch {torch.__version__} is built without CUDA. {advice}install a build for your CUDA "
            "version: `make setup TORCH_INDEX_URL=…`."
        )
    if not torch.cuda.is_available():
        raise MachineError(f"the launch profile asks for GPUs, but torch sees none. {advice}look at `nvidia-smi` and CUDA_VISIBLE_DEVICES.")
    wanted = int(profile.get("num_processes", 1)) // int(profile.get("num_machines", 1))
    if torch.cuda.device_count() < wanted:
        raise MachineError(
            f"the launch profile asks for {wanted} processes on this machine, one per GPU, but torch sees {torch.cuda.device_count()}. "
            "Change num_processes in the profile, or look at CUDA_VISIBLE_DEVICES."
        )
    if int(profile.get("num_processes", 1)) > 1 and not torch.distributed.is_nccl_available():
        raise MachineError(
            f"the launch profile asks for several GPUs, but this torch {torch.__version__} has no NCCL. {advice}install one that has."
        )


def _environment(profile: dict[str, Any], control: Path) -> dict[str, str]:
    environment = {
        **lifeline.environment(),
        EXPECTED_WORLD_SIZE: str(profile.get("num_processes", 1)),
        CONTROL: str(control),
        "TOKENIZERS_PARALLELISM": "false",
        # Torch's agent would kill the processes half a minute after a SIGTERM; a save of a large model may take longer.
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGQUIT",
    }
    # Threads that wait for each other by spinning stall a training many times over when another program wants the cores.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if profile.get("fsdp_config"):
        environment[SHARDED] = "1"
    if profile.get("use_cpu"):
        # `accelerate launch --cpu --num_processes 2` would start one process in silence; the profile plus this starts two.
        environment["ACCELERATE_USE_CPU"] = "true"
    return environment


def _run(command: list[str], folder: Path, environment: dict[str, str], control: Path) -> tuple[int, bool]:
    """Exit status of the command, and whether we were told to stop while it ran."""
    # A session of its own: the terminal's Ctrl-C reaches us alone, and the training processes hear of it from us.

    def between() -> None:
        """Runs in the process between us and the training: deaf to the signals that the training processes act on."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    with (
        subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, preexec_fn=between) as process,
        _stopping(process, control) as told,
    ):
        status = process.wait()
    return status, bool(told)


@contextmanager
def _stopping(process: subprocess.Popen[bytes], control: Path) -> Iterator[list[int]]:
    """Pass SIGTERM and Ctrl-C on to the training processes; a second Ctrl-C does not wait for them. Yields the signals received."""
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        impatient = number == signal.SIGINT and bool(received)
        received.append(number)
        if impatient or not ask_to_stop(control):
            process.kill()  # and what it started ends with us

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_for(setting: str, status: int, reported: int | None, *, told: bool) -> None:
    """Turn the end of the processes into an error, unless they succeeded."""
    if status == 0 and reported is None:
        return
    if reported == TrainingInterruptedError.exit_code or (told and reported is None):
        raise TrainingInterruptedError(
            f"the training of {setting} was told to stop. Run it again, and it goes on from the state that it saved."
        )
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        raise MachineError(f"the training of {setting} was killed (SIGKILL); where nobody did it, the machine ran out of memory.")
    error = MachineError(
        f"the training of {setting} ended with status {reported or status}; the reason stands above. Earlier results are untouched."
    )
    error.exit_code = reported or error.exit_code
    raise error


def _resolved_profile(workspace: Workspace, target: Path) -> Path:
    """The profile with its environment variables filled in, written into the folder ``target``."""
    profile = _profile(workspace)
    try:
        text = VARIABLE.sub(lambda match: os.environ[match[1]], profile.read_text(encoding="utf-8"))
    except KeyError as error:
        raise ConfigError(
            f"{profile.name} needs the environment variable {error.args[0]}, which is not set; the comments in that file say what it means"
        ) from None
    resolved = target / profile.name
    resolved.write_text(text, encoding="utf-8")
    return resolved


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
