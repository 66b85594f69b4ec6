"""Trees of processes end, whoever is killed and however stubborn they are."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from assets.processes import start, stop_tree
from mlembed_core.lifeline import DIES_WITH

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
DEAF = (
    "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)]; "
    "print('up', flush=True); time.sleep(60)"
)
HOLDS = "from mlembed_core import lifeline; lifeline.hold(); import time; print('up', flush=True); time.sleep(60)"


def gone(pid, within=10.0):
    end = time.monotonic() + within
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


def wait_for(path):
    end = time.monotonic() + 20
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < end, f"{path} was never written"
        time.sleep(0.05)
    return int(path.read_text())


def test_a_deaf_tree_in_several_sessions_is_ended(tmp_path):
    code = textwrap.dedent(f"""
        import subprocess, sys, pathlib
        child = subprocess.Popen([sys.executable, "-c", {DEAF!r}], start_new_session=True)
        pathlib.Path({str(tmp_path / "child")!r}).write_text(f"{{child.pid}}\\n")
        {DEAF}
    """)
    top = start([sys.executable, "-c", code], cwd=ROOT, environment=ENVIRONMENT, stdout=subprocess.PIPE)
    child = wait_for(tmp_path / "child")
    assert top.stdout.readline() == "up\n"  # either of the two
    assert top.stdout.readline() == "up\n"
    killed = stop_tree(top.pid, patience=0.3)
    assert len(killed) == 2
    assert gone(top.pid)
    assert gone(child)
    top.communicate()


def test_a_polite_tree_is_not_killed():
    top = start(
        [sys.executable, "-c", "print('up', flush=True); import time; time.sleep(60)"], cwd=ROOT, environment=ENVIRONMENT, stdout=-1
    )
    top.stdout.readline()
    assert stop_tree(top.pid, patience=5) == []
    top.communicate()
    assert top.returncode is not None


def test_stopping_what_has_ended_is_nothing():
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert stop_tree(done.pid) == []


@pytest.mark.parametrize("killed", ["starter", "command"])
def test_a_stage_dies_with_either_program_above_it(tmp_path, killed):
    """starter → command (stands for dvc) → stage: the two above are killed with SIGKILL, so neither can tell anyone."""
    command = textwrap.dedent(f"""
        import subprocess, sys, pathlib
        stage = subprocess.Popen([sys.executable, "-c", {HOLDS!r}], start_new_session=True)
        pathlib.Path({str(tmp_path / "stage")!r}).write_text(f"{{stage.pid}}\\n")
        stage.wait()
    """)
    starter = textwrap.dedent(f"""
        import os, sys, time, pathlib
        from assets.processes import start
        process = start([sys.executable, "-c", {command!r}], cwd=pathlib.Path({str(ROOT)!r}), environment=dict(os.environ))
        pathlib.Path({str(tmp_path / "command")!r}).write_text(f"{{process.pid}}\\n")
        time.sleep(60)
    """)
    top = subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT, env=ENVIRONMENT)
    command_pid, stage_pid = wait_for(tmp_path / "command"), wait_for(tmp_path / "stage")
    try:
        os.kill(top.pid if killed == "starter" else command_pid, signal.SIGKILL)
        assert gone(stage_pid)
        assert gone(command_pid)
    finally:
        top.kill()
        top.wait()


def test_what_a_run_started_dies_with_the_run(tmp_path):
    """The run's process → assets.runner → a command: the first is killed with SIGKILL; Pipes' own client would leave the rest running."""
    command = f"import os, pathlib, time; pathlib.Path({str(tmp_path / 'command')!r}).write_text(f'{{os.getpid()}}\\n'); time.sleep(60)"
    worker = textwrap.dedent(f"""
        import os, pathlib, subprocess, sys
        from assets.stages import run_item
        class Pipes:
            def run(self, *, context, command, cwd, env):
                runner = subprocess.Popen(command, cwd=cwd, env={{**os.environ, **env}})
                pathlib.Path({str(tmp_path / "runner")!r}).write_text(f"{{runner.pid}}\\n")
                runner.wait()
        run_item(None, Pipes(), ["--", sys.executable, "-c", {command!r}])
    """)
    top = subprocess.Popen([sys.executable, "-W", "ignore", "-c", worker], cwd=ROOT, env=ENVIRONMENT)
    try:
        runner_pid, command_pid = wait_for(tmp_path / "runner"), wait_for(tmp_path / "command")
        os.kill(top.pid, signal.SIGKILL)
        assert gone(runner_pid)
        assert gone(command_pid)
    finally:
        top.kill()
        top.wait()


def test_without_anything_to_depend_on_a_stage_just_runs():
    environment = {name: value for name, value in ENVIRONMENT.items() if name != DIES_WITH}
    code = "from mlembed_core import lifeline; import threading; lifeline.hold(); print(threading.active_count())"
    assert subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True).stdout == "1\n"
