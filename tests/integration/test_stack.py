"""The team stack without containers: real PostgreSQL, MLflow with users, Dagster; worked with, killed, stopped and moved, in this order."""

import base64
import json
import shutil
import signal
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from tests.integration.conftest import run
from tests.integration.test_dagster import Servers, forget_outs, wait_until
from workflows.stack import SERVER_PROGRAMS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER_PROGRAMS and shutil.which("initdb") is None, reason="no PostgreSQL server here (package postgresql)"),
]
PORT_NAMES = ("DAGSTER_PORT", "MLFLOW_PORT", "CODE_PORT", "POSTGRES_PORT")


def free_ports():
    probes = [socket.socket() for _ in PORT_NAMES]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return dict(zip(PORT_NAMES, ports, strict=True))


class Team:
    """A workspace with the stack, and what somebody with an account does."""

    def __init__(self, folder, home):
        self.folder, self.home = folder, home
        self.secrets = dict(line.split("=", 1) for line in (folder / ".env").read_text().splitlines())
        self.variables = {**free_ports(), "MLEMBED_STACK": str(home)}
        self.servers = None

    def start(self):
        started = time.monotonic()
        self.servers = Servers(self.folder, ("workflows.stack",), **self.variables)
        return time.monotonic() - started

    def stop(self):
        assert self.servers.stop() == []

    def mlflow(self, path, password=None, **query):
        """A call of MLflow's interface as the administrator; other passwords, or none (""), on demand."""
        call = urllib.request.Request(f"{self.servers.mlflow}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}")
        password = self.secrets["MLFLOW_ADMIN_PASSWORD"] if password is None else password
        if password:
            call.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
        with urllib.request.urlopen(call, timeout=60) as response:
            return json.load(response)

    def versions(self):
        return {
            (version["name"], version["version"]): {tag["key"]: tag["value"] for tag in version.get("tags", [])}
            for version in self.mlflow("model-versions/search", max_results=100).get("model_versions", [])
        }

    def mlembed(self, *arguments, check=True):
        """The command line with the address and account of the stack, as a colleague would set them."""
        return run(
            self.folder,
            "mlembed",
            *arguments,
            check=check,
            MLFLOW_TRACKING_URI=self.servers.mlflow,
            MLFLOW_TRACKING_USERNAME="admin",
            MLFLOW_TRACKING_PASSWORD=self.secrets["MLFLOW_ADMIN_PASSWORD"],
        )

    def postmaster(self):
        return psutil.Process(int((self.home / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[0]))


@pytest.fixture(scope="module")
def homes():
    """Folders that PostgreSQL's account can reach, unlike pytest's."""
    base = Path(tempfile.mkdtemp(prefix="mlembed-stack-"))
    base.chmod(0o711)
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def team(workspace, tmp_path_factory, homes):
    folder = tmp_path_factory.mktemp("stack") / "copy"
    shutil.copytree(workspace, folder, symlinks=True)
    forget_outs(folder)
    secrets = run(folder, sys.executable, "-m", "workflows.stack", "secrets").stdout
    (folder / ".env").write_text(secrets)
    team = Team(folder, homes / "first")
    yield team
    if team.servers and team.servers.process.poll() is None:
        team.stop()


def test_nothing_starts_without_secrets(team, homes):
    (team.folder / ".env").rename(team.folder / "kept")
    refused = run(team.folder, sys.executable, "-m", "workflows.stack", check=False, MLEMBED_STACK=str(homes / "none"))
    (team.folder / "kept").rename(team.folder / ".env")
    assert refused.returncode != 0
    assert "POSTGRES_PASSWORD, " in refused.stderr
    assert "workflows.stack secrets > .env" in refused.stderr


def test_up_and_closed_to_strangers(team):
    seconds = team.start()
    print(f"up from nothing in {seconds:.0f} s")
    for password in ("", "wrong"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            team.mlflow("experiments/search", password=password, max_results=1)
    assert team.mlflow("experiments/search", max_results=1)["experiments"]
    listening = [
        connection.laddr.ip
        for process in [team.servers.process, *psutil.Process(team.servers.process.pid).children(recursive=True)]
        for connection in psutil.Process(process.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert {address.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}


def test_the_pipeline_runs_and_its_versions_are_registered(team):
    run_id = team.servers.launch(job="everything")
    assert team.servers.finish(run_id, timeout=500) == "SUCCESS", team.servers.logs(run_id)[-20:]
    settings = {tags["mlembed.setting"] for tags in team.versions().values()}
    assert settings == {"baseline", "3d"}
    assert not (team.folder / "mlflow.db").exists()


def test_a_killed_database_comes_back_and_nothing_is_half_recorded(team):
    before = team.versions()
    run_id = team.servers.launch(asset="registered_model", partition="3d")
    time.sleep(3)  # in mid-run
    team.postmaster().send_signal(signal.SIGKILL)
    wait_until(lambda: answers(team), 120)
    try:
        ended = team.servers.finish(run_id, timeout=180)
    except (AssertionError, urllib.error.URLError):
        ended = "lost"
    if ended != "SUCCESS":
        run_id = team.servers.launch(asset="registered_model", partition="3d")
        assert team.servers.finish(run_id, timeout=180) == "SUCCESS", team.servers.logs(run_id)[-20:]
    assert team.versions().keys() == before.keys()


def answers(team):
    try:
        return bool(team.versions()) and bool(team.servers.stale())
    except (urllib.error.URLError, AssertionError, ConnectionError, TimeoutError):
        return False


def test_after_a_restart_nothing_is_lost(team):
    versions, materialised = team.versions(), team.servers.versions()
    team.stop()
    team.start()
    assert team.versions() == versions
    assert team.servers.versions() == materialised


def test_backup_and_restore(team, homes, tmp_path):
    target = tmp_path / "backup"
    stack = [sys.executable, "-m", "workflows.stack"]
    run(team.folder, *stack, "backup", str(target), **team.variables)
    versions = team.versions()
    refused = run(team.folder, *stack, "restore", str(target), check=False, **team.variables)
    assert "a backup replaces none" in refused.stderr
    team.stop()
    team.home = homes / "second"
    team.variables["MLEMBED_STACK"] = str(team.home)
    run(team.folder, *stack, "restore", str(target), **team.variables)
    team.start()
    assert team.versions() == versions
    (name, version), _ = sorted(versions.items())[-1]
    run(
        team.folder,
        *(sys.executable, "-c", "import sys, mlflow; mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2])"),
        *(f"models:/{name}/{version}", str(tmp_path / "model")),
        MLFLOW_TRACKING_URI=team.servers.mlflow,
        MLFLOW_TRACKING_USERNAME="admin",
        MLFLOW_TRACKING_PASSWORD=team.secrets["MLFLOW_ADMIN_PASSWORD"],
    )
    assert list((tmp_path / "model").rglob("model.safetensors"))
