"""A process does not outlive those that it depends on."""

import os
import signal
import subprocess
import sys

from mlembed_core import lifeline

HOLD = "from mlembed_core import lifeline; import time; lifeline.hold(); time.sleep({}); print('alive')"


def run(seconds, depends_on):
    environment = {**os.environ, lifeline.DIES_WITH: depends_on}
    return subprocess.run(
        [sys.executable, "-c", HOLD.format(seconds)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_who_depends_on_nobody_lives_on():
    assert run(1.5, "").stdout == "alive\n"


def test_who_depends_on_the_living_lives_on():
    assert run(1.5, str(os.getpid())).stdout == "alive\n"


def test_who_depends_on_the_dead_dies():
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    done = run(50, f"{os.getpid()},{gone.pid}")
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_dependence_is_added_to(monkeypatch):
    monkeypatch.setenv(lifeline.DIES_WITH, "7")
    assert lifeline.environment({"A": "b"}) == {"A": "b", lifeline.DIES_WITH: f"7,{os.getpid()}"}
    monkeypatch.delenv(lifeline.DIES_WITH)
    assert lifeline.environment({})[lifeline.DIES_WITH] == str(os.getpid())
