"""A stage dies with the program that started it, whatever killed that one.

A killed parent leaves its children running. A training that nobody waits for any more would keep the machine busy, and write while
the next attempt writes. So whoever starts a stage on behalf of something that may be killed puts the process ids to depend on into
``MLEMBED_DIES_WITH``; the stage's processes inherit it, however many programs stand between, and look at them twice a second.
Works on every system. Unset, which is the rule in a terminal, it does nothing.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping

DIES_WITH = "MLEMBED_DIES_WITH"  # process ids, separated by commas
INTERVAL_S = 0.5


def environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """``base`` for a program whose stages shall die with this process too, besides those that it depends on already."""
    return {**base, DIES_WITH: ",".join(filter(None, [os.environ.get(DIES_WITH), str(os.getpid())]))}


def hold() -> None:
    """From now on, end this process at once (SIGKILL: no cleaning up, as for a pulled plug) when one it depends on is gone."""
    depended_on = [int(pid) for pid in os.environ.get(DIES_WITH, "").split(",") if pid]
    if depended_on:
        threading.Thread(target=_watch, args=(depended_on,), name="lifeline", daemon=True).start()


def _watch(pids: list[int]) -> None:
    import psutil  # only where it is needed: `mlembed --help` goes without

    def alive(process: psutil.Process) -> bool:
        # is_running also tells a process from a later one with the same number; a zombie is dead but for its parent's word.
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

    try:
        processes = [psutil.Process(pid) for pid in pids]
        while all(alive(process) for process in processes):
            time.sleep(INTERVAL_S)
    except psutil.NoSuchProcess:
        pass  # between two looks
    os.kill(os.getpid(), signal.SIGKILL)
