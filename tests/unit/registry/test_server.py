"""The same against a real MLflow server on loopback, which is then killed in the middle of a training."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlembed_core.artifacts import Workspace, manifest_hash
from mlembed_core.registry.register import register
from mlembed_core.registry.resolve import resolve
from mlembed_core.train import tracking
from mlembed_core.train.tracking import open_run

pytestmark = pytest.mark.slow


@dataclass
class Server:
    uri: str
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """The server and its workers, which share its session."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "artifacts")]
    with (tmp_path / "server.log").open("wb") as log:
        # Without its job processes, which would outlive the server that the test kills.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        process = subprocess.Popen([*command, *stores], stdout=log, stderr=log, start_new_session=True, env=environment)
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        wait_until_healthy(server, tmp_path / "server.log")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        yield server
    finally:
        server.kill()


def wait_until_healthy(server: Server, log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.process.poll() is None:
        try:
            with urllib.request.urlopen(f"{server.uri}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail(f"the server did not start:\n{log.read_text()}")


def test_a_server_keeps_runs_and_versions_until_it_is_killed(
    workspace: Workspace, server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = register(workspace, ["3d"])
    (second,) = register(workspace, ["3d"])
    assert (first.created, second.created, second.num_metrics, second.num_pictures) == (True, False, 0, 0)
    assert manifest_hash(resolve("models:/house@candidate-3d")) == manifest_hash(workspace.models / "3d")

    monkeypatch.setattr(tracking, "FLUSH_INTERVAL_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with open_run(workspace, name="house", setting="baseline", fingerprint="f", params={}, inputs={}) as tracker:
        tracker.log(1, {"loss": 1.0})
        time.sleep(3)
        server.kill()
        started = time.monotonic()
        for step in range(2, 12):
            tracker.log(step, {"loss": 1.0})
        assert time.monotonic() - started < 0.5
    assert capsys.readouterr().err.count("mlembed: warning") == 1
