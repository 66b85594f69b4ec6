"""The registry's acts in Dagster: the commands that they run, what a refusal becomes, and what the sensors ask for."""

import os
from pathlib import Path

import pytest
from dagster import DagsterInstance, RunConfig, SkipReason, build_sensor_context
from dagster._core.errors import DagsterPipesExecutionError

from assets.runner import REASON_FILE
from assets.stages import FORCE_TAG
from mlembed_core import cli
from mlembed_core.artifacts import Workspace, write_json
from mlembed_core.config.data import SourceParams
from mlembed_core.registry.gate import PromotionRefusedError
from workflows import promotion, sensors
from workflows.promotion import CANDIDATE_TAG, PromoteConfig, RollbackConfig, asking, promote, rescoring, rollback


class Commands:
    """Stands for the Pipes client: notes the commands, and ends with a status."""

    def __init__(self, status=0, reason=""):
        self.status, self.reason, self.seen = status, reason, []

    def run(self, *, command, env, **_):
        self.seen.append(command[3:])
        if self.status:
            Path(env[REASON_FILE]).write_text(self.reason)
            raise DagsterPipesExecutionError(f"External execution process failed with code {self.status}")


def execute(job, config, commands, **tags):
    with DagsterInstance.ephemeral() as instance:
        return job.execute_in_process(run_config=config, resources={"pipes": commands}, instance=instance, tags=tags, raise_on_error=False)


def test_the_jobs_run_what_a_person_would_type():
    commands = Commands()
    config = RunConfig(ops={"promote_through_the_gate": PromoteConfig(version="3", why="better")})
    assert execute(promote, config, commands).success
    assert execute(promote, {}, commands).success
    assert execute(rollback, RunConfig(ops={"give_the_alias_back": RollbackConfig(to="2", why="worse")}), commands).success
    assert execute(rollback, {}, commands).success
    assert commands.seen == [
        ["--", "mlembed", "promote", "--why", "better", "--", "3"],
        ["--", "mlembed", "promote"],
        ["--", "mlembed", "rollback", "--to", "2", "--why", "worse"],
        ["--", "mlembed", "rollback"],
    ]


def failure_of(result):
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event.step_failure_data.user_failure_data.description


def test_a_refused_promotion_fails_with_its_reasons():
    refusal = Commands(11, "x version 3 was not promoted.\n  beats_the_champion: average 0.6 → 0.5")
    result = execute(promote, asking("3", only_ask=False), refusal, **{CANDIDATE_TAG: "3d"})
    assert not result.success
    assert "beats_the_champion: average 0.6 → 0.5" in failure_of(result)


@pytest.mark.parametrize(("status", "says"), [(0, "asks for promotion"), (11, "does not pass the gate:\nreasons")])
def test_a_candidate_that_only_asks_is_answered(status, says):
    commands = Commands(status, "reasons")
    result = execute(promote, asking("3", only_ask=True), commands, **{CANDIDATE_TAG: "3d"})
    assert result.success
    assert commands.seen == [["--", "mlembed", "promote", "--dry-run", "--", "3"]]
    (observed,) = [event.asset_observation_data.asset_observation for event in result.all_events if event.is_asset_observation]
    assert (observed.asset_key.path, observed.partition) == (["registered_model"], "3d")
    assert says in observed.metadata["gate"].value


def test_an_answer_that_is_none_fails():
    assert not execute(promote, asking("3", only_ask=True), Commands(9, "MLflow is down"), **{CANDIDATE_TAG: "3d"}).success


def test_all_agree_on_what_a_refusal_is():
    assert promotion.REFUSED == cli.REFUSED == PromotionRefusedError.exit_code


def test_rescoring_is_off_until_somebody_turns_it_on():
    assert rescoring.default_status.value == "STOPPED"
    status = {sensor.name: sensor.default_status.value for sensor in sensors.SENSORS}
    assert status.pop("candidates_are_promoted") == "STOPPED"
    assert set(status.values()) == {"RUNNING"}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(sensors, "WORKSPACE", Workspace(tmp_path))
    return Workspace(tmp_path)


def look(sensor, cursor=None):
    with DagsterInstance.ephemeral() as instance, build_sensor_context(instance=instance, cursor=cursor) as context:
        return sensor.evaluate_tick(context)


def test_a_candidate_asks_once_with_the_scores_that_it_has(workspace):
    asks = next(sensor for sensor in sensors.SENSORS if sensor.name == "candidates_ask_for_promotion")
    assert look(asks).run_requests == []
    record = {"name": sensors.PARAMS.name, "setting": "3d", "version": "4", "scores_hash": "a"}
    path = workspace.registration("3d")
    path.parent.mkdir(parents=True)
    write_json(path, record)
    (first,) = look(asks).run_requests
    assert (first.job_name or "promote", first.tags[CANDIDATE_TAG]) == ("promote", "3d")
    assert first.run_config["ops"]["promote_through_the_gate"]["config"]["version"] == "4"
    (again,) = look(asks).run_requests
    assert again.run_key == first.run_key  # which Dagster runs once
    write_json(path, record | {"scores_hash": "b"})
    assert look(asks).run_requests[0].run_key != first.run_key
    write_json(path, record | {"setting": "gone"})
    assert look(asks).run_requests == []


@pytest.fixture
def pairs(workspace, monkeypatch):
    """A source of type local with one file, whose rows were made."""
    source = SourceParams(kind="retrieval", origin={"type": "local", "files": ["pairs/*.parquet"]})
    monkeypatch.setattr(sensors, "PARAMS", sensors.PARAMS.model_copy(update={"sources": {"pairs": source}}))
    (workspace.root / "pairs").mkdir()
    (workspace.root / "pairs" / "a.parquet").write_text("1")
    made = workspace.sources / "pairs"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    return workspace.root / "pairs"


def requested(cursor=None):
    """Partitions that the sensor wants to run, and its memory afterwards."""
    with DagsterInstance.ephemeral() as instance, build_sensor_context(instance=instance, cursor=cursor) as context:
        result = sensors.source_files(context)
        if isinstance(result, SkipReason):
            return [], context.cursor
        assert all(request.tags == {FORCE_TAG: "true"} for request in result.run_requests)
        return [request.partition_key for request in result.run_requests], result.cursor


def test_new_and_changed_files_of_a_source_are_read_again(pairs):
    wanted, cursor = requested()
    assert wanted == []
    (pairs / "b.parquet").write_text("2")
    wanted, cursor = requested(cursor)
    assert wanted == ["pairs"]
    assert requested(cursor) == ([], cursor)
    (pairs / "a.parquet").write_text("11")
    wanted, cursor = requested(cursor)
    assert wanted == ["pairs"]
    (pairs / "b.parquet").unlink()
    assert requested(cursor)[0] == ["pairs"]


def test_files_that_changed_while_nobody_looked_are_seen(pairs, workspace):
    os.utime(workspace.sources / "pairs" / "manifest.json", ns=(1, 1))
    assert requested()[0] == ["pairs"]


def test_a_source_that_was_never_made_waits_for_a_person(pairs, workspace):
    (workspace.sources / "pairs" / "manifest.json").unlink()
    assert requested()[0] == []
