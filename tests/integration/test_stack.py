"""The team stack without containers: real PostgreSQL, MLflow with users, Dagster; worked with, killed, stopped and moved, in this order."""

import base64
import json
import os
import re
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

from docs import browser, take_pictures
from tests.integration.conftest import run
from tests.integration.test_dagster import Servers, forget_outs, listening, wait_until
from workflows.stack import SERVER_PROGRAMS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SERVER_PROGRAMS and shutil.which("initdb") is None, reason="no PostgreSQL server here (package postgresql)"),
]
NAME = "mlembed_tiny"
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

    def mlflow(self, path, password=None, body=None, **query):
        """A call of MLflow's interface as the administrator; other passwords, or none (""), on demand."""
        call = urllib.request.Request(f"{self.servers.mlflow}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}")
        if body is not None:
            call.data = json.dumps(body).encode()
            call.add_header("Content-Type", "application/json")
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

    def environment(self):
        """The addresses and accounts of the stack, as a colleague would set them."""
        return {
            "MLFLOW_TRACKING_URI": self.servers.mlflow,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.secrets["MLFLOW_ADMIN_PASSWORD"],
            "MLEMBED_PROMOTIONS_DATABASE": "postgresql+psycopg2:///promotions",
            "PGHOST": "127.0.0.1",
            "PGPORT": self.variables["POSTGRES_PORT"],
            "PGUSER": "dagster",
            "PGPASSWORD": self.secrets["DAGSTER_DB_PASSWORD"],
        }

    def moves(self):
        """The record of promotions in the database: (act, before, after, why)."""
        said = json.loads(run(self.folder, "mlembed", "history", "--json", **self.environment()).stdout)
        assert "table mlembed_promotions" in said["place"]
        return [(move["act"], move["before"], move["after"], move["why"]) for move in said["moves"]]

    def champion(self):
        aliases = self.mlflow("registered-models/get", name=NAME)["registered_model"].get("aliases", [])
        return {alias["alias"]: alias["version"] for alias in aliases}.get("champion")

    def act(self, job, op, **config):
        """Start a job of the registry through GraphQL."""
        return self.servers.launch(job=job, config={"ops": {op: {"config": config}}})

    def promote(self, version, why=""):
        return self.act("promote", "promote_through_the_gate", version=version, why=why)

    def rollback(self, why):
        return self.act("rollback", "give_the_alias_back", why=why)

    def runs(self):
        """(id, partition) of every run so far."""
        found = self.servers.ask("{ runsOrError { ... on Runs { results { runId tags { key value } } } } }")["runsOrError"]["results"]
        return {(run["runId"], {tag["key"]: tag["value"] for tag in run["tags"]}.get("dagster/partition")) for run in found}

    def said(self, run_id):
        return "\n".join(self.servers.logs(run_id))

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
    (folder / ".env").chmod(0o600)
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
    found = listening(team.servers.process.pid)
    assert len(found) >= 4  # PostgreSQL, MLflow, the code server and Dagster
    assert {address.removeprefix("::ffff:") for address, _ in found} == {"127.0.0.1"}


def test_the_scan_finds_nothing_open(team):
    nobody = "http://127.0.0.1:9/v1/query"  # no network in tests: the vulnerabilities are not asked for, and the scan says so
    done = run(team.folder, sys.executable, "-m", "workflows.scan", "--json", check=False, **team.variables, MLEMBED_OSV_URL=nobody)
    said = json.loads(done.stdout)
    assert said["findings"] == []
    assert {"secrets of the stack", "ports", "logins"} <= set(said["asked"])
    assert "vulnerabilities" in said["not_asked"]
    assert done.returncode == said["status"] == 13


def test_the_pipeline_runs_and_its_versions_are_registered(team):
    run_id = team.servers.launch(job="everything")
    assert team.servers.finish(run_id, timeout=500) == "SUCCESS", team.servers.logs(run_id)[-20:]
    settings = {tags["mlembed.setting"] for tags in team.versions().values()}
    assert settings == {"baseline", "3d"}
    assert not (team.folder / "mlflow.db").exists()


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(team):
    runs = {setting: team.promote(setting, why="both want it") for setting in ("baseline", "3d")}
    ended = {setting: team.servers.finish(run_id, timeout=180) for setting, run_id in runs.items()}
    assert sorted(ended.values()) == ["FAILURE", "SUCCESS"], [team.said(run_id) for run_id in runs.values()]
    loser = next(setting for setting, status in ended.items() if status == "FAILURE")
    assert f"the champion of {NAME} is being moved by somebody else" in team.said(runs[loser])
    assert team.moves() == [("promote", None, team.champion(), "both want it")]


def test_the_gate_refuses_in_dagster_with_its_reasons(team):
    champion, moves = team.champion(), team.moves()
    settings = {version: tags["mlembed.setting"] for (_, version), tags in team.versions().items()}
    other = next(setting for version, setting in settings.items() if version != champion)
    params = team.folder / "configs" / "params.yaml"
    params.write_text((before := params.read_text()).replace("margin: 0.0", "margin: 0.5"))
    run_id = team.promote(other)
    assert team.servers.finish(run_id, timeout=180) == "FAILURE"
    params.write_text(before)
    assert f"({other}) was not promoted. Against the champion, version {champion}" in team.said(run_id)
    assert "beats_the_champion" in team.said(run_id)
    assert "needed: at least +0.5" in team.said(run_id)
    assert (team.champion(), team.moves()) == (champion, moves)


def test_an_alias_moved_by_hand_is_noted_and_taken_back(team):
    champion = team.champion()
    other = next(version for _, version in team.versions() if version != champion)
    team.mlflow("registered-models/alias", body={"name": NAME, "alias": "champion", "version": other})
    run_id = team.rollback("not through the gate")
    assert team.servers.finish(run_id, timeout=180) == "SUCCESS", team.said(run_id)
    assert team.champion() == champion
    assert [move[:3] for move in team.moves()[-2:]] == [("by hand", champion, other), ("rollback", other, champion)]
    again = team.rollback("once more")
    assert team.servers.finish(again, timeout=180) == "FAILURE"
    assert f"{NAME} has no champion before {champion}" in team.said(again)


@pytest.mark.skipif(not any(map(shutil.which, browser.NAMES)), reason="no browser here (package chromium)")
def test_what_a_browser_shows(team, tmp_path):
    dagster, mlflow = team.servers.dagster, team.servers.mlflow
    with browser.browser() as page:
        before = team.runs()
        take_pictures.materialise(page, dagster, "trained_model", "3d")
        wait_until(lambda: team.runs() - before, 30)
        ((run_id, partition),) = team.runs() - before
        assert partition == "3d"
        assert team.servers.finish(run_id, timeout=180) == "SUCCESS", team.said(run_id)
        pictures = [
            take_pictures.materialised(page, dagster, "trained_model", "3d", run_id),
            take_pictures.asset(page, dagster, "trained_model", "3d", "loss_curve"),
        ]
        page.account("admin", team.secrets["MLFLOW_ADMIN_PASSWORD"])
        pictures.append(take_pictures.version(page, mlflow, NAME, team.champion()))
        page.wait_until("/@\\s*champion/.test(document.body.innerText)", "the alias")
        shown = " ".join(page.ask("document.body.innerText").split())
        tags = team.versions()[NAME, team.champion()]
        assert f"mlembed.setting {tags['mlembed.setting']}" in shown
        assert tags["mlembed.dvc_md5"] in shown  # where it comes from
        pictures.append(take_pictures.report(page, team.folder / "reports" / "index.html"))
        the_report_answers(page)
    for picture in pictures:
        assert len(picture.convert("RGB").getcolors(2**24)) > 100  # a page that is there, no empty window


FILTER = """(() => {{
  const form = document.querySelector('form.filters');
  form.reset();
  form.elements.{name}.{what} = {value};
  form.dispatchEvent(new Event('input', {{bubbles: true}}));
  return form.querySelector('output').textContent;
}})()"""
AVERAGES = "[...document.querySelectorAll('table.submodels tbody tr')].map(row => +row.cells[2].dataset.value)"
SORT = "[...document.querySelectorAll('table.submodels th button')].find(head => head.innerText.startsWith('average')).click()"
VIEWS = "[...document.querySelectorAll('.frontier > .view')].filter(view => view.offsetParent).map(view => view.className)"
COST = "[...document.querySelectorAll('.switch input')].at({number}).click()"


def the_report_answers(page):
    """Its controls do what they say: the filters, the order of the table, the cost of the picture."""
    assert page.ask(FILTER.format(name="pareto", what="checked", value="false")) == "4 of 4"
    assert page.ask(FILTER.format(name="setting", what="value", value="'3d'")) == "2 of 4"
    assert page.ask(FILTER.format(name="average", what="value", value="1")) == "0 of 4"
    averages = page.ask(AVERAGES)
    page.ask(SORT)
    assert page.ask(AVERAGES) == sorted(averages, reverse=True)
    page.ask(SORT)
    assert page.ask(AVERAGES) == sorted(averages)
    (first,) = page.ask(VIEWS)
    page.ask(COST.format(number=-1))
    (last,) = page.ask(VIEWS)
    assert first != last


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
        run_id = launch_again(team)
        assert team.servers.finish(run_id, timeout=180) == "SUCCESS", team.servers.logs(run_id)[-20:]
    assert team.versions().keys() == before.keys()


def test_a_run_whose_machine_died_is_failed_and_can_be_started_again(team):
    run_id = team.servers.launch(asset="registered_model", partition="3d")
    wait_until(lambda: team.servers.status(run_id) == "STARTED", 60)
    code = next(child for child in psutil.Process(team.servers.process.pid).children() if "workflows.code_server" in child.cmdline())
    for process in [code, *code.children(recursive=True)]:  # all at once, as when a container or machine goes
        process.kill()
    assert team.servers.finish(run_id, timeout=120) == "FAILURE"
    assert "The code server that ran it is gone" in team.said(run_id)
    run_id = launch_again(team)
    assert team.servers.finish(run_id, timeout=180) == "SUCCESS", team.said(run_id)


def launch_again(team):
    """The registration, once the web server has heard of the new code server."""
    end = time.monotonic() + 120
    while True:
        try:
            return team.servers.launch(asset="registered_model", partition="3d")
        except (AssertionError, urllib.error.URLError):
            assert time.monotonic() < end
            time.sleep(1)


def answers(team):
    try:
        return bool(team.versions()) and bool(team.servers.stale())
    except (urllib.error.URLError, AssertionError, ConnectionError, TimeoutError):
        return False


def test_after_a_restart_nothing_is_lost(team):
    before = (team.versions(), team.servers.versions(), team.champion(), team.moves())
    team.stop()
    team.start()
    assert (team.versions(), team.servers.versions(), team.champion(), team.moves()) == before


def test_backup_and_restore(team, homes, tmp_path):
    target = tmp_path / "backup"
    stack = [sys.executable, "-m", "workflows.stack"]
    run(team.folder, *stack, "backup", str(target), **team.variables)
    versions, moves = team.versions(), team.moves()
    refused = run(team.folder, *stack, "restore", str(target), check=False, **team.variables)
    assert "a backup replaces none" in refused.stderr
    team.stop()
    team.home = homes / "second"
    team.variables["MLEMBED_STACK"] = str(team.home)
    run(team.folder, *stack, "restore", str(target), **team.variables)
    team.start()
    assert (team.versions(), team.moves()) == (versions, moves)
    (name, version), _ = sorted(versions.items())[-1]
    run(
        team.folder,
        *(sys.executable, "-c", "import sys, mlflow; mlflow.artifacts.download_artifacts(sys.argv[1], dst_path=sys.argv[2])"),
        *(f"models:/{name}/{version}", str(tmp_path / "model")),
        **team.environment(),
    )
    assert list((tmp_path / "model").rglob("model.safetensors"))


def test_many_clients_while_a_pipeline_runs(team):
    """Bounds for a quick look; those of the issue with MLEMBED_LOAD_CLIENTS=50 MLEMBED_LOAD_SECONDS=60."""
    params = team.folder / "configs" / "params.yaml"
    params.write_text(re.sub(r"^seed: \d+", "seed: 4242", params.read_text(), flags=re.MULTILINE))  # so that all is computed again
    bounds = [
        word
        for name, value in (("clients", "10"), ("seconds", "10"))
        for word in (f"--{name}", os.environ.get(f"MLEMBED_LOAD_{name.upper()}", value))
    ]
    addresses = ["--dagster", team.servers.dagster, "--mlflow", team.servers.mlflow]
    done = run(team.folder, sys.executable, "-m", "benchmarks.stack_load", *addresses, *bounds, check=False, **team.environment())
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "meanwhile: SUCCESS" in done.stdout
