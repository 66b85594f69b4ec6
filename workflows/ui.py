"""``make ui``: Dagster and MLflow on this machine, on loopback, until Ctrl-C.

Four programs of their own: the code server (which starts the runs), Dagster's web server, its daemon, and MLflow's server. A web
server or daemon that dies is started again and ends no run; on Ctrl-C all four go, with whatever they started.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from assets.facts import MLFLOW_UI
from assets.graph import dvc_environment
from assets.processes import start, stop_tree
from mlembed_core.artifacts import Workspace
from mlembed_core.errors import MachineError, MlembedError
from workflows.code_server import HOST, listens
from workflows.home import prepare_home

READY_TIMEOUT_S = 120.0
LOOK_EVERY_S = 0.5
STEADY_S = 60.0  # a program that ran so long had started well
T = TypeVar("T")
STARTS_AT_MOST = 5  # of one program; one that dies this often has a reason, and it stands in its log


@dataclass
class Program:
    """A server: its command, its log, and its process while it runs."""

    name: str
    command: list[str]
    log: Path
    environment: Mapping[str, str]
    process: subprocess.Popen[str] | None = None
    starts: int = 0
    started: float = 0.0

    def ensure_running(self, root: Path) -> None:
        """Start it, or start it again.

        Raises:
            MachineError: it died too often.
        """
        if self.process is not None and self.process.poll() is None:
            return
        if time.monotonic() - self.started > STEADY_S:
            self.starts = 0
        if self.starts == STARTS_AT_MOST:
            raise MachineError(f"{self.name} ended {self.starts} times; the reason stands at the end of {self.log}")
        if self.process is not None:
            print(f"{self.name} ended; starting it again", flush=True)
        self.starts += 1
        self.started = time.monotonic()
        with self.log.open("a", encoding="utf-8") as log:
            self.process = start(
                self.command, cwd=root, environment=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def stop(self) -> None:
        """End it and everything below it."""
        if self.process is not None:
            stop_tree(self.process.pid)
            self.process.wait()


@contextlib.contextmanager
def servers(workspace: Workspace, *, dagster_port: int = 3000, mlflow_port: int = 5000) -> Iterator[tuple[str, str, list[Program]]]:
    """Run the four programs while the body runs: (Dagster's address, MLflow's address, the programs).

    Args:
        dagster_port, mlflow_port: where they should listen; a port in use gives way to the next free one.

    Raises:
        MachineError: one did not come up; its log is named.
    """
    home = prepare_home(workspace)
    dagster_port = free_port(dagster_port)
    code_port = free_port(dagster_port + 1, but=[mlflow_port])
    mlflow_port = free_port(mlflow_port, but=[dagster_port, code_port])
    dagster_url, mlflow_url = f"http://{HOST}:{dagster_port}", f"http://{HOST}:{mlflow_port}"
    layout = home / "servers.yaml"
    layout.write_text(f"load_from:\n  - grpc_server: {{host: {HOST}, port: {code_port}, location_name: mlembed}}\n", encoding="utf-8")
    environment = {**dvc_environment(), MLFLOW_UI: mlflow_url}
    python = sys.executable
    database = f"sqlite:///{workspace.root / 'mlflow.db'}"
    commands = {
        "code server": [python, "-m", "workflows.code_server", "--host", HOST, "--port", str(code_port)],
        "web server": [python, "-m", "dagster_webserver", "-h", HOST, "-p", str(dagster_port), "-w", str(layout)],
        "daemon": [python, "-m", "dagster._daemon", "run", "-w", str(layout)],
        "mlflow": [
            python,
            "-m",
            "mlflow",
            "server",
            "--host",
            HOST,
            "--port",
            str(mlflow_port),
            "--workers",
            "1",
            "--backend-store-uri",
            database,
        ],
    }
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    programs = [Program(name, command, logs / f"{name.replace(' ', '_')}.log", environment) for name, command in commands.items()]
    code_server, *others = programs
    try:
        code_server.ensure_running(workspace.root)
        _wait_for(lambda: listens(code_port), code_server)
        for program in others:
            program.ensure_running(workspace.root)
        _wait_for(lambda: _answers(f"{dagster_url}/server_info"), others[0])
        _wait_for(lambda: _answers(f"{mlflow_url}/health"), others[2])
        yield dagster_url, mlflow_url, programs
    finally:
        with ThreadPoolExecutor(len(programs)) as pool:
            list(pool.map(Program.stop, programs))


def keep_running(workspace: Workspace, programs: list[Program]) -> None:
    """Look after the programs for ever."""
    while True:
        for program in programs:
            program.ensure_running(workspace.root)
        time.sleep(LOOK_EVERY_S)


def free_port(wanted: int, *, but: Sequence[int] = ()) -> int:
    """``wanted``, or the next port that nobody listens on and that is none of ``but``."""
    while wanted in but or listens(wanted):
        wanted += 1
    return wanted


def _answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        return bool(urllib.request.urlopen(url, timeout=5).status == 200)  # noqa: S310  # our own server on loopback
    return False


def _wait_for(ready: Callable[[], bool], program: Program) -> None:
    end = time.monotonic() + READY_TIMEOUT_S
    while not ready():
        if program.process is None or program.process.poll() is not None or time.monotonic() > end:
            raise MachineError(f"{program.name} did not come up; the reason stands at the end of {program.log}")
        time.sleep(LOOK_EVERY_S)


def stay(workspace: Workspace, what: str, opened: AbstractContextManager[T], told: Callable[[T], tuple[str, list[Program]]]) -> None:
    """Start servers, say where they are, and look after them until Ctrl-C. Exits with the status of what went wrong.

    Args:
        what: is started, for people.
        opened: the servers, running while its body does.
        told: from what it gives, the words to say and the programs to look after.
    """
    # Also where it was started with `&` by a shell, which makes a program deaf to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with telling_errors():
            print(f"starting {what} …", flush=True)
            with opened as running:
                words, programs = told(running)
                print(words, flush=True)
                with contextlib.suppress(KeyboardInterrupt):
                    keep_running(workspace, programs)
                print("stopping …", flush=True)
    except KeyboardInterrupt:
        sys.exit(130)


@contextlib.contextmanager
def telling_errors() -> Iterator[None]:
    """An error of ours in the body ends the program with its message and status."""
    try:
        yield
    except MlembedError as error:
        print(f"mlembed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def main() -> None:
    parser = argparse.ArgumentParser(description="Dagster and MLflow on loopback, until Ctrl-C")
    parser.add_argument("--port", type=int, default=3000, help="Dagster's (the next free one, if it is taken)")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="MLflow's (likewise)")
    arguments = parser.parse_args()
    workspace = Workspace.find()
    opened = servers(workspace, dagster_port=arguments.port, mlflow_port=arguments.mlflow_port)

    def told(running: tuple[str, str, list[Program]]) -> tuple[str, list[Program]]:
        dagster, mlflow, programs = running
        return f"Dagster  {dagster}\nMLflow   {mlflow}\nCtrl-C stops both.", programs

    stay(workspace, "Dagster and MLflow", opened, told)


if __name__ == "__main__":
    main()
