"""Between a launcher and the training processes that it started: who they are, when to stop, how it ended.

Between the two stands accelerate (and, for several processes, torch's agent), which passes on neither a signal in time nor an exit
code. So they share a folder: each training process writes its pid there, the launcher signals these, and the first process that fails
or stops leaves its exit code. When a launcher is killed outright, what it started goes with it (``lifeline.py``).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

CONTROL = "MLEMBED_CONTROL"  # the folder, for the launched processes
OUTCOME = "outcome"


class StopRequest:
    """Whether this process was told to stop, by SIGTERM or Ctrl-C: both ask for the end of the step and a saved state.

    A context manager; it can only be entered in the main thread.
    """

    def __init__(self) -> None:
        self._received = False

    def __call__(self) -> bool:
        return self._received

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        announce()  # from here on a signal does no harm
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._received = True


def announce() -> None:
    """Tell the launcher, if there is one, that this is a training process."""
    folder = _folder()
    if folder is not None:
        (folder / f"pid-{os.getpid()}").touch()


def report(exit_code: int) -> bool:
    """Leave ``exit_code`` for the launcher; false where another process was first, whose reason is the one that counts."""
    folder = _folder()
    if folder is None:
        return True
    try:
        with (folder / OUTCOME).open("x") as handle:
            handle.write(str(exit_code))
    except FileExistsError:
        return False
    return True


def reported(folder: Path) -> int | None:
    """What :func:`report` left in the folder."""
    text = (folder / OUTCOME).read_text() if (folder / OUTCOME).is_file() else ""
    return int(text) if text else None  # empty: killed while writing


def ask_to_stop(folder: Path) -> bool:
    """Send SIGTERM to the training processes that announced themselves; false where there is none yet."""
    pids = [int(path.name.removeprefix("pid-")) for path in folder.glob("pid-*")]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    return bool(pids)


def _folder() -> Path | None:
    name = os.environ.get(CONTROL)
    return Path(name) if name else None
