"""Killed and stopped at any moment, then run again: bit for bit the uninterrupted training, through the project's own launcher."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mlembed_core.train.launch import LAUNCHER
from tests.distributed.worker import write_cache
from tests.faults.worker import KILL, KILL_RANK, NUM_STEPS, PAUSE, PLACES

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 600


def start(base, profile="cpu", **variables):
    environment = {**os.environ, LAUNCHER: profile, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.faults.launcher", str(base)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Exit code and output; fails if any of the training's processes outlives it."""
    output, _ = process.communicate(timeout=WAIT_S)
    return process.returncode, output


def folder_with_cache(folder):
    folder.mkdir()
    (folder / "cache").mkdir()
    write_cache(folder / "cache")
    return folder


def result(base):
    return (base / "weights.safetensors").read_bytes(), json.loads((base / "curves.json").read_text())


def steps_saved(base):
    return max((int(path.name.removeprefix("step-")) for path in (base / "state").glob("step-*")), default=0)


def wait_until(true):
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(base):
    pids = [int(path.name.removeprefix("pid-")) for path in base.glob("pid-*")]
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What a training in peace gives, with one process."""
    base = folder_with_cache(tmp_path_factory.mktemp("peace") / "run")
    subprocess.run([sys.executable, "-m", "tests.faults.worker", str(base)], cwd=ROOT, check=True, timeout=WAIT_S)
    return result(base)


def killed_at(base, profile, place, times, **variables):
    """Run until a process kills itself at a place."""
    code, output = finish(start(base, profile, **{KILL: f"{place}:{times}", **variables}))
    assert code != 0, f"not killed at {place}: {output}"
    assert not alive(base)


def killed_from_outside(base, profile):
    """Run, and kill the launcher alone."""
    process, goal = start(base, profile, **{PAUSE: "0.1"}), steps_saved(base) + 3
    wait_until(lambda: steps_saved(base) >= goal)
    process.kill()
    finish(process)
    wait_until(lambda: not alive(base))  # within milliseconds


def stopped(base, profile):
    """Run, and send SIGTERM to the launcher alone."""
    process, before = start(base, profile, **{PAUSE: "0.1"}), steps_saved(base)
    wait_until(lambda: steps_saved(base) > before)
    process.terminate()
    code, output = finish(process)
    assert code == 143, output
    assert "told to stop" in output
    assert "Traceback" not in output
    assert not alive(base)


def finished(base, profile):
    code, output = finish(start(base, profile))
    assert code == 0, output
    return result(base)


def test_killed_in_a_save_from_outside_and_stopped(expected, tmp_path):
    base = folder_with_cache(tmp_path / "run")
    killed_at(base, "cpu", "files", 5)
    killed_from_outside(base, "cpu")
    stopped(base, "cpu")
    assert 8 < steps_saved(base) < NUM_STEPS
    assert finished(base, "cpu") == expected


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["cpu", "cpu_2proc", "cpu_2proc_fsdp2"])
def test_killed_at_twenty_random_moments(expected, tmp_path, profile):
    draw = random.Random(0)
    base = folder_with_cache(tmp_path / "run")
    # What is split over processes is a copy, whose weights have no hook to be killed in.
    known = [place for place in PLACES if not (place == "backward" and profile == "cpu_2proc_fsdp2")]
    # Each place at least twice, and soon: the training must not be through before it is killed twenty times.
    places = [*known, *known, *draw.choices(known, k=20 - 2 * len(known))]
    draw.shuffle(places)
    for place in places:
        killed_at(base, profile, place, draw.randint(1, 2))
    if profile == "cpu":
        assert finished(base, profile) == expected
    else:
        assert finished(base, profile) == finished(folder_with_cache(tmp_path / "whole"), profile)


@pytest.mark.slow
def test_a_killed_second_process_ends_the_first(tmp_path):
    base, whole = folder_with_cache(tmp_path / "run"), folder_with_cache(tmp_path / "whole")
    for place in ("forward", "backward"):
        killed_at(base, "cpu_2proc", place, 5, **{KILL_RANK: "1"})
    assert finished(base, "cpu_2proc") == finished(whole, "cpu_2proc")
