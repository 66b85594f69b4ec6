"""The process between Dagster and DVC: ``python -m assets.runner repro --single-item ITEM`` calls DVC and tells Dagster live what it says.

It holds a Pipes session and passes every line on as it comes. Stopped (cancelled in the UI), it ends the whole tree below it;
killed, the tree dies with it (``processes.start``), and it dies with the run's process that started it (``MLEMBED_DIES_WITH``: Pipes
gives no other hold on it). DVC itself killed, the stage dies with DVC.

Arguments after ``--`` are run instead of DVC, as a whole command (``-- mlembed register 3d``). What a command of ours gives as its
reason to fail is written to ``MLEMBED_REASON_FILE`` too: Pipes hands nothing on from a process that failed.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dagster_pipes import PipesContext, open_dagster_pipes

from assets.graph import dvc_environment, dvc_executable
from assets.processes import start, stop_tree
from mlembed_core import lifeline
from mlembed_core.artifacts import Workspace
from mlembed_core.errors import MlembedError

REASON_FILE = "MLEMBED_REASON_FILE"
REASON_LINES = 40
STATUS_OF_STAGE = re.compile(r"failed to run: .*, exited with (\d+)")


def command_of(arguments: Sequence[str]) -> list[str]:
    """What to run for the arguments of this module."""
    if arguments[0] == "--":
        return list(arguments[1:])
    # Wait for the lock: another item may be running, and the lock is taken again at the end of a long run.
    return [dvc_executable(), "--wait-for-lock", *arguments]


def run(command: Sequence[str], pipes: PipesContext) -> int:
    """Run ``command`` to its end; every line that it prints goes to Dagster's log at once.

    Returns:
        Its exit status; where DVC says which status a stage ended with, that.
    """
    process = start(
        command,
        cwd=Workspace.find().root,
        environment={**dvc_environment(), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    status_of_stage, said = None, []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if text := line.rstrip():
                pipes.log.info(text)
                said.append(text)
            if found := STATUS_OF_STAGE.search(text):
                status_of_stage = int(found.group(1))
        status = process.wait()
        if status and REASON_FILE in os.environ:
            Path(os.environ[REASON_FILE]).write_text(reason_of(said), encoding="utf-8")
        return status and (status_of_stage or status)
    finally:
        # Where it ended by itself, nothing is left: the loop above reads until the last one below it has gone.
        for name in stop_tree(process.pid):
            pipes.log.warning(f"{name} had to be killed")


def reason_of(lines: Sequence[str]) -> str:
    """The last error message of ours, which may have several lines; without one, what DVC called an error; else nothing."""
    starts = [number for number, line in enumerate(lines) if line.startswith("mlembed: ") and not line.startswith("mlembed: warning")]
    if not starts:
        return "\n".join(line for line in lines if line.startswith("ERROR: "))
    message = [lines[starts[-1]].removeprefix("mlembed: ")]
    for line in lines[starts[-1] + 1 :]:
        if line.startswith("ERROR: ") or len(message) == REASON_LINES:
            break
        message.append(line)
    return "\n".join(message)


def main() -> None:
    lifeline.hold()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with open_dagster_pipes() as pipes:
        try:
            status = run(command_of(sys.argv[1:]), pipes)
        except MlembedError as error:
            pipes.log.error(str(error))
            sys.exit(error.exit_code)
    sys.exit(status)


def _interrupt(number: int, _frame: object) -> None:
    for other in (signal.SIGINT, signal.SIGTERM):  # a second one must not interrupt the cleaning up
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    main()
