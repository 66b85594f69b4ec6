"""Trees of processes: start one that dies with its parent, and stop one for good."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from mlembed_core import lifeline
from mlembed_core.lifeline import DIES_WITH

PATIENCE_S = 2.5  # after each signal, before the next, harder one
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def start(command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], **options: Any) -> subprocess.Popen[str]:
    """Start ``command`` in a session of its own, so that a Ctrl-C in the terminal reaches it only through us.

    Every stage below it dies with this process and with ``command``, through ``MLEMBED_DIES_WITH``. For the programs in between that
    are not ours (dvc, a shell, accelerate): on Linux the kernel kills ``command`` when this process dies; the others end by
    themselves as soon as the stage that they wait for has died, which is all there is elsewhere.
    """
    # The shell becomes the command, so its process id is the command's.
    become = f'{DIES_WITH}="${DIES_WITH},$$" exec "$@"'
    return subprocess.Popen(
        ["/bin/sh", "-c", become, "sh", *command],
        cwd=cwd,
        env=lifeline.environment(environment),
        start_new_session=True,
        preexec_fn=_die_with_parent if sys.platform == "linux" else None,  # one system call, no lock
        text=True,
        errors="replace",  # a program may print what it likes
        **options,
    )


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def stop_tree(root: int, *, patience: float = PATIENCE_S) -> list[str]:
    """End a process and everything below it: SIGINT, then SIGTERM, then SIGKILL to those that are left.

    The tree is noted down first: once a parent is dead, its children can no longer be found from it, and a program may have put
    them into sessions of their own (torch does), where no signal to a group reaches them.

    Returns:
        The names of those that only SIGKILL ended.
    """
    try:
        top = psutil.Process(root)
        tree = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []
    for number in (signal.SIGINT, signal.SIGTERM):
        _send(tree, number)
        _, tree = psutil.wait_procs(_with_children(tree), timeout=patience)
        if not tree:
            return []
    names = [name for process in tree if (name := _name(process))]
    _send(tree, signal.SIGKILL)
    psutil.wait_procs(tree, timeout=patience)
    return names


def _with_children(tree: list[psutil.Process]) -> list[psutil.Process]:
    """The tree and whatever it started since it was noted down."""
    found = {process.pid: process for process in tree}
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in process.children(recursive=True)}
    return list(found.values())


def _send(tree: Sequence[psutil.Process], number: int) -> None:
    for process in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _name(process: psutil.Process) -> str | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return f"{process.name()} ({process.pid})"
    return None
