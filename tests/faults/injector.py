"""Faults for a whole workspace: what people and machines do to a pipeline while it runs, drawn from a seed.

Each fault first makes an item undone (its out, its record and DVC's memory of its run go), so that there is work to disturb, and then
disturbs it. Whatever happened, plain commands must bring the workspace back to the bytes of an undisturbed run: :meth:`Injector.recover`
runs them and compares.
"""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil

from mlembed_core.artifacts import Workspace, verify_files
from mlembed_core.config.load import read_yaml
from mlembed_core.train.tracking import connect, local_tracking_uri
from tests.integration.conftest import ENVIRONMENT

PATIENCE_S = 300.0
GONE_WITHIN_S = 10.0
STAGES = (
    "source@python_topics",
    "tokenize@python_topics",
    "cache",
    "backbone",
    "train@3d",
    "train@baseline",
    "evaluate@3d-local",
    "report",
)
HOOKS = Path(__file__).parent / "hooks"  # on PYTHONPATH: its sitecustomize makes the clock of every process jump
CLOCK = "MLEMBED_TEST_CLOCK_JUMP"
OURS = ("dvc", "mlembed", "accelerate", "assets.runner", "dagster")


@dataclass
class Outcome:
    """One fault: what was done to what, whether it came to bite, and what it took to recover."""

    fault: str
    item: str
    bit: bool
    reruns: int = 0
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def clean(lock):
    """``dvc.lock`` as data: DVC writes the items in the order in which they ran."""
    return read_yaml(lock)["stages"]


class Injector:
    """Draws faults and inflicts them on one workspace, which is up to date when it is handed over."""

    def __init__(self, folder, seed):
        self.folder, self.draw = Path(folder), random.Random(seed)
        self.lock = self.folder / "dvc.lock"
        self.expected = clean(self.lock)
        self._usual_s = {}
        self.faults = [name.removeprefix("fault_") for name in dir(self) if name.startswith("fault_")]

    # ── Running and looking ──────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, *command, **variables):
        environment = {**ENVIRONMENT, "PYTHONPATH": str(self.folder), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", **variables}
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def finish(self, process):
        """Exit status and output, of a command and all that holds its output."""
        output, _ = process.communicate(timeout=PATIENCE_S)
        return process.returncode, output

    def repro(self, *arguments, **variables):
        return self.finish(self.start("dvc", "repro", *arguments, **variables))

    def ours(self):
        """Processes that work in this workspace."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE and any(word in words for word in OURS):
                    found.append(process)
        return found

    def wait_for(self, pattern, parent, patience=60.0):
        """The first process below ``parent`` whose command holds all words of ``pattern``; None once the parent has ended."""
        end = time.monotonic() + patience
        while time.monotonic() < end and parent.poll() is None:
            with suppress(psutil.Error):
                for child in psutil.Process(parent.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        words = child.cmdline()
                        if all(any(word in part for part in words) for word in pattern):
                            return child
            time.sleep(0.02)
        return None

    def undo(self, item):
        """As if the item had never been run here."""
        stages = read_yaml(self.lock)
        entry = stages["stages"].pop(item)
        with self.lock.open("w", encoding="utf-8") as handle:
            json.dump(stages, handle)  # YAML too
        shutil.rmtree(self.folder / ".dvc" / "cache" / "runs", ignore_errors=True)
        shutil.rmtree(self.folder / ".work", ignore_errors=True)
        for out in entry["outs"]:
            path = self.folder / out["path"]
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    # ── The faults ───────────────────────────────────────────────────────────────────────────────────────────────────────

    def killed(self, item, pattern, *command, number=signal.SIGKILL, **variables):
        """Run a command on an undone item, and send a signal to one process of it at a random moment of its life."""
        self.undo(item)
        process = self.start(*command, **variables)
        victim = self.wait_for(pattern, process) if pattern else psutil.Process(process.pid)
        bit = False
        if victim is not None:
            time.sleep(self.draw.uniform(0, 3.0))
            with suppress(psutil.Error):
                victim.send_signal(number)
                bit = True
        self.finish(process)
        return bit

    def _item(self, *prefixes):
        return self.draw.choice([item for item in STAGES if not prefixes or item.startswith(prefixes)])

    def fault_stage_killed(self):
        item = self._item("source", "tokenize", "cache", "backbone", "report")
        return item, self.killed(item, ["mlembed", item.split("@")[0]], "dvc", "repro", "--single-item", item)

    def fault_dvc_killed(self):
        item = self._item()
        return item, self.killed(item, None, "dvc", "repro", "--single-item", item)

    def fault_launcher_killed(self):
        item = self._item("train")
        return item, self.killed(item, ["mlembed", "train"], "dvc", "repro", "--single-item", item)

    def fault_trainer_killed(self):
        item = self._item("train")
        return item, self.killed(item, ["mlembed_core.stages.train"], "dvc", "repro", "--single-item", item)

    def fault_evaluator_killed(self):
        item = self._item("evaluate")
        return item, self.killed(item, ["mlembed", "evaluate"], "dvc", "repro", "--single-item", item)

    def fault_run_worker_killed(self):
        """The process of a Dagster run."""
        item, asset = self.draw.choice([("train@3d", "trained_model"), ("tokenize@python_topics", "tokenized_corpus")])
        home = self.folder / ".dagster"
        home.mkdir(exist_ok=True)
        command = ["dagster", "asset", "materialize", "-m", "workflows.definitions", "--select", asset, "--partition", item.split("@")[1]]
        self.undo(item)
        process = self.start(*command, DAGSTER_HOME=str(home))
        below = self.wait_for(["assets.runner"], process)
        if below is not None:
            time.sleep(self.draw.uniform(0, 4.0))
        bit = process.poll() is None
        process.kill()
        self.finish(process)
        return item, bit

    def fault_cancelled(self):
        """Ctrl-C in a terminal: the whole group gets it."""
        item = self._item()
        self.undo(item)
        process = self.start("dvc", "repro", "--single-item", item)
        self.wait_for(["mlembed"], process)
        time.sleep(self.draw.uniform(0, 3.0))
        bit = process.poll() is None
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        self.finish(process)
        return item, bit

    def fault_disk_full(self):
        item = self._item()
        self.undo(item)
        filler = self.folder / ".work" / "filler"
        filler.parent.mkdir(exist_ok=True)
        if not os.path.ismount(self.folder):
            return item, False
        with filler.open("wb") as handle, suppress(OSError):
            left = self.draw.choice([0, 4, 64, 512]) << 10  # what stays free: it fails sooner or later
            size = shutil.disk_usage(self.folder).free - left
            while size > 0:
                size -= handle.write(bytes(min(size, 1 << 20)))
        status, _ = self.repro("--single-item", item)
        filler.unlink()
        return item, status != 0

    def fault_lock_held(self):
        """DVC's own lock, by somebody who is slow."""
        item = self._item()
        self.undo(item)
        with (self.folder / ".dvc" / "tmp" / "lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            status, output = self.repro("--single-item", item)
        assert status, output
        return item, "Unable to acquire lock" in output

    def fault_mlflow_down(self):
        """A server that takes the connection and goes, from the start or in the middle; not one step may be lost by it."""
        item = self._item("train")
        self.undo(item)
        dead = "http://127.0.0.1:9"  # the port of discard, where nothing listens
        status, output = self.repro("--single-item", item, MLFLOW_TRACKING_URI=dead)
        assert status == 0, output
        assert "is not tracked any further" in output
        return item, True

    def fault_corrupted_cache(self):
        """A byte of DVC's cache turns, and the out that it is of is gone."""
        item = self._item()
        entry = read_yaml(self.lock)["stages"][item]
        out = next(out for out in entry["outs"] if not out["path"].endswith(".json"))
        stored = self.folder / ".dvc" / "cache" / "files" / "md5" / out["md5"][:2] / out["md5"][2:]
        if out["md5"].endswith(".dir"):
            part = self.draw.choice(json.loads(stored.read_text()))["md5"]
            stored = stored.parents[1] / part[:2] / part[2:]
        content = bytearray(stored.read_bytes())
        content[self.draw.randrange(len(content))] ^= 1
        stored.chmod(0o644)
        stored.unlink()  # it may be linked to the out
        stored.write_bytes(content)
        path = self.folder / out["path"]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return item, True

    def fault_two_at_once(self):
        item = self._item()
        self.undo(item)
        both = [self.start("dvc", "repro", "--single-item", item) for _ in range(2)]
        statuses = [self.finish(process)[0] for process in both]
        return item, any(statuses)

    def fault_clock_jump(self):
        """Every process sees the clock jump by days, back or forth, some moments after it starts."""
        item = self._item()
        self.undo(item)
        jump = f"{self.draw.choice([-3, 3]) * 86400}:{self.draw.uniform(0, 3):.1f}"
        self.repro("--single-item", item, PYTHONPATH=f"{HOOKS}{os.pathsep}{self.folder}", **{CLOCK: jump})
        return item, True

    def fault_registration_killed(self):
        """Into an empty registry, killed at any moment of it; the next one makes whole what there is, and nothing twice."""
        self._forget_registry()
        bit = self._act_killed("register", "--all")
        weights, _ = acts(self.folder)
        assert len(weights) == len(set(weights)) == 2, f"registered twice: {weights}"
        return "register", bit

    def fault_promotion_killed(self):
        """A rollback or a promotion, killed at any moment of it: afterwards there is one champion, and each move stands there once."""
        if not list(self.folder.glob("mlflow.db")):
            self.act("register", "--all")
        _, history = acts(self.folder)
        self.act("rollback") if len(history["moves"]) % 2 else None  # refused where there is nothing to go back to
        setting = self.draw.choice(["3d", "baseline"])
        bit = self._act_killed("promote", setting)
        _, history = acts(self.folder)
        last = [move for move in history["moves"] if move["state"] == "done"]
        assert last, "nothing was promoted"
        assert last[-1]["after"] == history["champion"]
        pairs = pairwise(last)
        assert all(before["after"] == after["before"] for before, after in pairs), f"a move is missing or stands twice: {last}"
        assert not [move for move in history["moves"] if move["state"] == "begun"]
        return "promote", bit

    def _forget_registry(self):
        for path in [*self.folder.glob("mlflow.db*"), *self.folder.glob("*promotions.jsonl*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def act(self, *arguments):
        """Seconds that a command of the registry took."""
        started = time.monotonic()
        self.finish(self.start("mlembed", *arguments))
        return time.monotonic() - started

    def _act_killed(self, *arguments):
        """Kill the command at a moment of its usual time, then let it run to its end."""
        name = arguments[0]
        if name not in self._usual_s:
            self._usual_s[name] = self.act(*arguments, *(["--dry-run"] if name == "promote" else []))
            if name == "register":
                self._forget_registry()
        process = self.start("mlembed", *arguments)
        time.sleep(self.draw.uniform(0.1, 1.0) * self._usual_s[name])
        bit = process.poll() is None
        process.kill()
        self.finish(process)
        self.act(*arguments)
        return bit

    # ── And back ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def inflict(self, fault):
        started = time.monotonic()
        item, bit = getattr(self, f"fault_{fault}")()
        outcome = Outcome(fault, item, bit)
        self.recover(outcome)
        outcome.seconds = round(time.monotonic() - started, 1)
        return outcome

    def wait_until_gone(self):
        """Raises AssertionError where a process of ours outlives what started it by more than some seconds."""
        end = time.monotonic() + GONE_WITHIN_S
        while left := self.ours():
            assert time.monotonic() < end, f"still there: {[process.cmdline() for process in left]}"
            time.sleep(0.1)

    def recover(self, outcome):
        """Plain commands; raises AssertionError where they do not bring everything back."""
        self.wait_until_gone()
        status = 1
        while status and outcome.reruns < 3:
            outcome.reruns += 1
            status, output = self.repro()
            if status:
                outcome.notes.append(output[-1500:])
        assert status == 0, f"{outcome}: no plain re-run ends well"
        assert clean(self.lock) == self.expected, f"{outcome}: other bytes than the undisturbed run's"
        said = self.finish(self.start("dvc", "status", "--json"))[1]
        assert json.loads(said) == {}, f"{outcome}: {said}"
        for entry in self.expected.values():
            for out in entry["outs"]:
                path = self.folder / out["path"]
                if path.is_dir():
                    verify_files(path)
        assert not self.ours()


@contextmanager
def small_disk(target, size):
    """A file system of its own for the workspace, where this account may mount one; else the folder as it is."""
    target.mkdir()
    mounted = (
        os.getuid() == 0
        and subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(target)], capture_output=True, check=False).returncode
        == 0
    )
    try:
        yield target
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(target)], check=True)


def acts(folder, name="mlembed_tiny"):
    """What was registered and promoted: weights by version, and the moves of the champion."""
    workspace = Workspace(folder)
    code = (
        "import json; from mlembed_core.artifacts import Workspace; from mlembed_core.registry.promote import history; "
        "print(json.dumps(history(Workspace.find()).as_dict()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env={**ENVIRONMENT, "PYTHONPATH": str(folder)}, capture_output=True, text=True, check=True
    )
    versions = connect(local_tracking_uri(workspace)).search_model_versions(f"name='{name}'")
    weights = [version.tags["mlembed.weights_hash"] for version in versions]
    return weights, json.loads(done.stdout.splitlines()[-1])
