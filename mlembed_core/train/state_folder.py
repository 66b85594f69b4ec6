"""Where a training's resume state lives: ``.work/train/SETTING/FINGERPRINT/``, held by one process, gone once its out is on record.

DVC deletes a stage's outs before it runs the stage again, hence a place outside of them. A finished training leaves its state there too,
with the hash of its out: until ``dvc.lock`` records that out, a crash may still take it, and the next call makes it from the state.
"""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import MachineError

LOCK_PATIENCE_S = 10.0  # a process whose launcher was killed notices within a second (lifeline.py)
OUT = "out"  # of a finished training: the hash of the manifest that it wrote


def state_folder(workspace: Workspace, setting: str, fingerprint: str) -> Path:
    return _of_setting(workspace, setting) / fingerprint


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's states against another training of the same fingerprint, one that outlived its launcher for instance.

    Raises:
        MachineError: there is one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        if not _locked(handle, time.monotonic() + LOCK_PATIENCE_S):
            raise MachineError(
                f"another process is training this setting with these parameters (it holds {folder / 'lock'}). Wait for it, or stop it."
            )
        yield


def note_out(folder: Path, output_hash: str) -> None:
    """Say that the training is done, and which manifest its out has."""
    (folder / OUT).write_text(output_hash, encoding="utf-8")


def drop_states(workspace: Workspace, setting: str, output_hash: str) -> None:
    """Remove the states of the trainings whose out is ``output_hash``, which DVC has on record; one that is in use stays."""
    for note in _of_setting(workspace, setting).glob(f"*/{OUT}"):
        if note.read_text(encoding="utf-8") != output_hash:
            continue
        with (note.parent / "lock").open("w") as handle:
            if _locked(handle, time.monotonic()):
                shutil.rmtree(note.parent, ignore_errors=True)


def _of_setting(workspace: Workspace, setting: str) -> Path:
    return workspace.work / "train" / setting


def _locked(handle: IO[str], end: float) -> bool:
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back by the system when the process ends, however it ends
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.1)
