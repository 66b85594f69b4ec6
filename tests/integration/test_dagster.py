"""Dagster's real servers on the tiny pipeline: what they show is what DVC has, and what they start can be ended."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from mlembed_core.config.load import read_yaml
from tests.integration.conftest import ENVIRONMENT, run

LAUNCH = """mutation($p: ExecutionParams!) { launchPipelineExecution(executionParams: $p) {
  __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
TERMINATE = """mutation($r: String!) { terminateRun(runId: $r) { __typename } }"""
STATUS = """query($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }"""
ASSETS = """{ assetNodes { assetKey { path } staleStatus partitionKeys assetMaterializations { partition tags { key value } } } }"""
STALE_PARTITIONS = """query($keys: [AssetKeyInput!]) { assetNodes(assetKeys: $keys) {
  assetKey { path } partitionKeys staleStatusByPartition } }"""
LOGS = """query($r: ID!) { logsForRun(runId: $r) { ... on EventConnection { events {
  ... on MessageEvent { message } ... on ExecutionStepFailureEvent { error { message } } } } } }"""
ENDED = {"SUCCESS", "FAILURE", "CANCELED"}
LONG = "num_steps: 1000000"


class Servers:
    """`make ui` in a workspace, and its GraphQL; or other servers that say their addresses in the same words."""

    def __init__(self, folder, command=("workflows.ui", "--port", "3400", "--mlflow-port", "5400"), **variables):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env={**ENVIRONMENT, "PYTHONPATH": str(folder), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        said = []
        for line in self.process.stdout:
            said.append(line)
            if "Ctrl-C" in line:
                break
        assert self.process.poll() is None, "".join(said)
        self.dagster, self.mlflow = re.findall(r"http://127[^ \n]+", "".join(said))

    def ask(self, query, **variables):
        request = urllib.request.Request(
            f"{self.dagster}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer
        return answer["data"]

    def launch(self, *, job="__ASSET_JOB", asset=None, partition=None, config=None):
        selector = {"repositoryName": "__repository__", "repositoryLocationName": "mlembed", "pipelineName": job}
        if asset:
            selector["assetSelection"] = [{"path": [asset]}]
        tags = [{"key": "dagster/partition", "value": partition}] if partition else []
        params = {"selector": selector, "runConfigData": config or {}, "mode": "default", "executionMetadata": {"tags": tags}}
        answer = self.ask(LAUNCH, p=params)["launchPipelineExecution"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return answer["run"]["runId"]

    def status(self, run_id):
        return self.ask(STATUS, r=run_id)["runOrError"]["status"]

    def logs(self, run_id):
        events = self.ask(LOGS, r=run_id)["logsForRun"]["events"]
        return [f"{event.get('message', '')}{(event.get('error') or {}).get('message', '')}" for event in events]

    def finish(self, run_id, timeout=300):
        wait_until(lambda: self.status(run_id) in ENDED, timeout)
        return self.status(run_id)

    def stale(self):
        """(asset, partition) → Dagster's own word. Of a partitioned asset as a whole it says FRESH whatever its partitions are."""
        nodes = self.ask(ASSETS)["assetNodes"]
        found = {(node["assetKey"]["path"][0], None): node["staleStatus"] for node in nodes if not node["partitionKeys"]}
        keys = [{"path": node["assetKey"]["path"]} for node in nodes if node["partitionKeys"]]
        for node in self.ask(STALE_PARTITIONS, keys=keys)["assetNodes"]:
            name = node["assetKey"]["path"][0]
            found |= {(name, key): word for key, word in zip(node["partitionKeys"], node["staleStatusByPartition"], strict=True)}
        return found

    def versions(self):
        """(asset, partition) → data versions, the newest first."""
        found = {}
        for node in self.ask(ASSETS)["assetNodes"]:
            for event in node["assetMaterializations"]:
                tags = {tag["key"]: tag["value"] for tag in event["tags"]}
                found.setdefault((node["assetKey"]["path"][0], event["partition"]), []).append(tags["dagster/data_version"])
        return found

    def stop(self):
        tree = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.send_signal(signal.SIGINT)
        self.process.communicate(timeout=60)
        return [child for child in tree[1:] if child.is_running()]


def wait_until(condition, timeout):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout} s"
        time.sleep(0.3)


def processes_in(folder):
    """Programs that run in the workspace on behalf of a stage: dvc, the stage, the launcher, the trainers."""
    words = ("dvc", "mlembed", "accelerate", "assets.runner")
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and any(word in " ".join(process.cmdline()) for word in words) and process.status() != "zombie":
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if "workflows" not in " ".join(process.cmdline())]


def sync(folder):
    return run(folder, sys.executable, "-m", "workflows.sync").stdout


FAILED_CHECKS = """
import json
from dagster import AssetCheckKey, AssetKey, DagsterInstance
from workflows.pipeline import PIPELINE
with DagsterInstance.get() as instance:
    keys = [AssetCheckKey(AssetKey(this.name), "matches_dvc") for this in PIPELINE]
    infos = instance.event_log_storage.get_asset_check_partition_info(keys)
failed = [info for info in infos if info.latest_execution_status.value == "FAILED"]
print(json.dumps([[info.check_key.asset_key.path[0], info.partition_key] for info in failed]))
"""


def failed_checks(folder):
    """(asset, partition) of every failed matches_dvc."""
    answer = run(folder, sys.executable, "-W", "ignore", "-c", FAILED_CHECKS, DAGSTER_HOME=str(folder / ".dagster")).stdout
    return {tuple(item) for item in json.loads(answer)}


def forget_outs(folder):
    """Nothing is done yet; but DVC's cache remembers which command on which inputs gave which bytes."""
    for name in ("data", "models", "reports", ".work", ".dagster"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in [*folder.glob("scores/*/*"), *folder.glob("mlflow.db*"), folder / "dvc.lock"]:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def here(workspace, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dagster") / "copy"
    shutil.copytree(workspace, folder, symlinks=True)
    forget_outs(folder)
    return folder


@pytest.fixture(scope="module")
def servers(here):
    running = Servers(here)
    yield running
    assert running.stop() == []


@pytest.fixture(scope="module")
def done(servers, here):
    """Everything materialised from nothing by one action."""
    run_id = servers.launch(job="everything")
    assert servers.finish(run_id) == "SUCCESS", servers.logs(run_id)[-20:]
    return here


@pytest.fixture
def params(done):
    """The parameters of the workspace, put back afterwards."""
    path = done / "configs" / "params.yaml"
    before = path.read_text()
    yield path
    path.write_text(before)


def test_one_action_brings_everything_up_to_date(done, servers, workspace):
    assert run(done, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert "Running stage" not in run(done, "dvc", "repro").stdout
    # As data: the order in which stages ran is of no consequence.
    assert read_yaml(done / "dvc.lock") == read_yaml(workspace / "dvc.lock")
    assert set(servers.stale().values()) == {"FRESH"}
    assert failed_checks(done) == set()
    assert {partition for asset, partition in servers.versions() if asset == "registered_model"} == {"baseline", "3d"}


def listening(pid):
    """(address, port) of every listening socket of a process and those below it."""
    found = []
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):  # a health check that has ended meanwhile
            found += [
                (item.laddr.ip, item.laddr.port)
                for item in process.net_connections(kind="inet")
                if item.status == psutil.CONN_LISTEN and item.type == socket.SOCK_STREAM
            ]
    return found


def test_all_servers_listen_on_loopback_only(servers):
    found = listening(servers.process.pid)
    assert len(found) >= 3  # the code server, Dagster and MLflow
    assert {address for address, _ in found} <= {"127.0.0.1", "::ffff:127.0.0.1"}


def test_data_versions_are_dvcs_md5s(done, servers):
    lock = (done / "dvc.lock").read_text()
    for (asset, _), versions in servers.versions().items():
        assert f"md5: {versions[0]}\n" in lock, asset


def test_what_is_known_is_not_told_twice(done):
    assert "told 0 materialisations, 0 check results" in sync(done)


def test_a_stage_that_is_done_stays_done(done, servers):
    run_id = servers.launch(asset="tokenized_corpus", partition="python_topics")
    assert servers.finish(run_id) == "SUCCESS"
    assert any("didn't change, skipping" in line for line in servers.logs(run_id))
    assert set(servers.stale().values()) == {"FRESH"}


def test_a_source_changed_by_hand_shows_on_exactly_what_was_made_from_it(done):
    rows = done / "data" / "sources" / "python_topics" / "rows.parquet"
    before = rows.read_bytes()
    rows.unlink()  # DVC may have linked it to its cache
    rows.write_bytes(before + b" ")
    sync(done)
    assert failed_checks(done) == {
        ("raw_sources", "python_topics"),
        ("tokenizer", None),
        ("tokenized_corpus", "python_topics"),
        ("data_card", None),
        ("mteb_scores", "baseline|local"),
        ("mteb_scores", "3d|local"),
        ("control_scores", "local"),
    }
    run(done, "dvc", "checkout", "data/sources/python_topics", "--force")
    sync(done)
    assert failed_checks(done) == set()


@pytest.mark.slow  # a training, an evaluation and two registrations
def test_what_was_done_in_a_shell_appears_and_what_was_taken_back_too(done, servers, params):
    before = servers.versions()
    tracked = {path: path.read_text() for path in [done / "dvc.lock", *done.glob("scores/*/*.json")]}  # what git has
    params.write_text(params.read_text().replace("rank: 16", "rank: 8"))
    sync(done)
    assert failed_checks(done) == {("trained_model", "3d"), ("frontier_report", None), ("registered_model", "3d")}
    run(done, "dvc", "repro")
    sync(done)
    after = servers.versions()
    changed = {item for item in after if after[item][0] != before[item][0]}
    assert changed == {("trained_model", "3d"), ("mteb_scores", "3d|local"), ("frontier_report", None)}
    # The weights of one setting are others, and the report that both versions carry.
    assert failed_checks(done) == {("registered_model", "3d"), ("registered_model", "baseline")}
    run(done, "mlembed", "register", "--all")
    sync(done)
    assert failed_checks(done) == set()
    assert set(servers.stale().values()) == {"FRESH"}
    # An older commit, checked out.
    for path, text in tracked.items():
        path.write_text(text)
    params.write_text(params.read_text().replace("rank: 8", "rank: 16"))
    run(done, "dvc", "checkout")
    run(done, "mlembed", "register", "--all")
    sync(done)
    assert {item: versions[0] for item, versions in servers.versions().items()} == {item: versions[0] for item, versions in before.items()}
    assert failed_checks(done) == set()


REPORT_FAILURE = """
from dagster import AssetCheckEvaluation, AssetKey, DagsterInstance
with DagsterInstance.get() as instance:
    instance.report_runless_asset_event(AssetCheckEvaluation(
        asset_key=AssetKey("raw_sources"), check_name="rows_are_present", passed=False, metadata={}, partition="python_topics"))
"""


@pytest.mark.slow  # the same question without servers: tests/unit/assets/test_stages.py
def test_no_training_starts_on_data_that_failed_a_check(done, servers):
    run(done, sys.executable, "-W", "ignore", "-c", REPORT_FAILURE, DAGSTER_HOME=str(done / ".dagster"))
    refused = servers.launch(asset="trained_model", partition="3d")
    assert servers.finish(refused) == "FAILURE"
    assert "raw_sources[python_topics]: rows_are_present" in "\n".join(servers.logs(refused))
    assert servers.finish(servers.launch(asset="raw_sources", partition="python_topics")) == "SUCCESS"
    assert servers.finish(servers.launch(asset="trained_model", partition="3d")) == "SUCCESS"


def start_a_long_training(servers, params):
    params.write_text(re.sub(r"num_steps: \d+", LONG, params.read_text()))
    run_id = servers.launch(asset="trained_model", partition="3d")
    wait_until(lambda: any("training:" in line for line in servers.logs(run_id)), 120)
    assert processes_in(servers.folder)
    return run_id


@pytest.mark.slow  # half a minute; what ends the tree is tested by itself in tests/unit/assets/test_processes.py
def test_a_cancelled_training_leaves_nothing_and_can_be_done_again(done, servers, params):
    before = params.read_text()
    run_id = start_a_long_training(servers, params)
    servers.ask(TERMINATE, r=run_id)
    wait_until(lambda: not processes_in(done), 10)
    assert servers.finish(run_id) == "CANCELED"
    params.write_text(before)
    assert servers.finish(servers.launch(asset="trained_model", partition="3d")) == "SUCCESS"
    assert run(done, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["assets.runner", "dvc", "run worker"])
def test_a_killed_program_takes_the_training_with_it(done, servers, params, victim):
    before = params.read_text()
    run_id = start_a_long_training(servers, params)
    runner = next(process for process in processes_in(done) if "assets.runner" in process.cmdline())
    if victim == "run worker":
        target = runner.parent()
    elif victim == "dvc":
        target = next(child for child in runner.children(recursive=True) if any(part.endswith("bin/dvc") for part in child.cmdline()))
    else:
        target = runner
    os.kill(target.pid, signal.SIGKILL)
    wait_until(lambda: not processes_in(done), 10)
    assert servers.finish(run_id, timeout=120) == "FAILURE"
    params.write_text(before)
    assert servers.finish(servers.launch(asset="trained_model", partition="3d")) == "SUCCESS"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["dagster_webserver", "dagster._daemon"])
def test_a_killed_server_ends_no_run(done, servers, params, victim):
    before = params.read_text()
    run_id = start_a_long_training(servers, params)
    target = next(child for child in psutil.Process(servers.process.pid).children() if victim in child.cmdline())
    os.kill(target.pid, signal.SIGKILL)
    time.sleep(10)  # the server comes back by itself
    wait_until(lambda: servers.status(run_id) == "STARTED", 60)
    assert processes_in(done)
    servers.ask(TERMINATE, r=run_id)
    assert servers.finish(run_id) == "CANCELED"
    params.write_text(before)
    assert servers.finish(servers.launch(asset="trained_model", partition="3d")) == "SUCCESS"


@pytest.mark.slow
def test_asset_by_asset_from_nothing_in_process(workspace, tmp_path):
    """What a person clicks one by one, without servers, and without what DVC remembers: every stage really runs."""
    folder = tmp_path / "copy"
    shutil.copytree(workspace, folder, symlinks=True)
    forget_outs(folder)
    shutil.rmtree(folder / ".dvc" / "cache")
    (folder / ".dagster").mkdir()
    home = {"DAGSTER_HOME": str(folder / ".dagster")}
    listing = (
        "from workflows.pipeline import PIPELINE; print(*(f'{a.name} {key or str()}' for a in PIPELINE for key in a.items()), sep='\\n')"
    )
    for line in run(folder, sys.executable, "-W", "ignore", "-c", listing).stdout.splitlines():
        asset, _, partition = line.partition(" ")
        command = ["dagster", "asset", "materialize", "-m", "workflows.definitions", "--select", asset]
        run(folder, *command, *(["--partition", partition] if partition else []), **home)
    assert run(folder, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert "Running stage" not in run(folder, "dvc", "repro").stdout
    assert read_yaml(folder / "dvc.lock") == read_yaml(workspace / "dvc.lock")  # DVC writes the items in the order in which they ran
    assert "told 0 materialisations, 0 check results" in run(folder, sys.executable, "-m", "workflows.sync", **home).stdout
