"""Registering in a real MLflow database: once per weights, whole, and again from the outs where the run is gone."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlembed_core.artifacts import Workspace, manifest_hash, sha256_file
from mlembed_core.errors import ArtifactError, ConfigError, RegistryError
from mlembed_core.registry.dvc_record import dvc_directory_md5
from mlembed_core.registry.register import register
from mlembed_core.train.state_folder import note_out, state_folder
from mlembed_core.train.tracking import connect, local_tracking_uri, open_run


def client_of(workspace: Workspace) -> Any:
    return connect(local_tracking_uri(workspace))


def versions_of(workspace: Workspace) -> list[Any]:
    return sorted(client_of(workspace).search_model_versions("name='house'"), key=lambda version: int(version.version))


def test_a_version_says_where_it_comes_from(workspace: Workspace) -> None:
    (done,) = register(workspace, ["3d"])
    assert done.created
    assert done.run_rebuilt
    version = client_of(workspace).get_model_version_by_alias("house", "candidate-3d")
    assert (done.version, str(version.version)) == ("1", "1")
    assert version.tags["mlembed.setting"] == "3d"
    assert version.tags["mlembed.weights_hash"] == done.weights_hash
    assert version.tags["mlembed.output_hash"] == manifest_hash(workspace.models / "3d")
    axes = json.loads(version.tags["mlembed.axes"])
    assert axes["mrl_dims"] == [8, 16]
    assert axes["mel_ranks"] == [2, 4, 8]
    inputs = json.loads(version.tags["mlembed.inputs"])
    assert inputs == {name: manifest_hash(workspace.root / "data" / name) for name in ("backbone", "cache", "tokenizer")}
    assert json.loads(version.tags["mlembed.scores"])["embedded"] == {"l1-d8-r2": 0.3125, "l2-d16-r8": 0.5625}
    assert "torch" in json.loads(version.tags["mlembed.packages"])


def test_the_run_holds_model_scores_and_pictures(workspace: Workspace, tmp_path: Path) -> None:
    (done,) = register(workspace, ["3d"])
    client = client_of(workspace)
    run = client.get_run(done.run_id)
    assert run.data.metrics["score/embedded/l2-d16-r8/Bitext"] == pytest.approx(0.375)  # the mean of two languages
    assert run.data.metrics["score/embedded/l2-d16-r8/average"] == pytest.approx(0.5625)
    assert done.num_metrics == 6
    assert {item.path for item in client.list_artifacts(done.run_id, "report")} == {"report/index.html", "report/frontier.png"}
    copy = Path(client.download_artifacts(done.run_id, "model", str(tmp_path)))
    files = [path for path in (workspace.models / "3d").rglob("*") if path.is_file()]
    assert all(sha256_file(copy / path.relative_to(workspace.models / "3d")) == sha256_file(path) for path in files)
    added = {path.name for path in copy.rglob("*") if path.is_file()} - {path.name for path in files}
    assert added == {"MLmodel"}  # what makes the folder an MLflow model


def test_a_rebuilt_run_shows_what_the_tracked_one_would(workspace: Workspace) -> None:
    (done,) = register(workspace, ["3d"])
    run = client_of(workspace).get_run(done.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"seed": "17", "train.num_steps": "20"}
    assert run.data.metrics["loss"] == 1.5
    assert run.data.metrics["loss/code"] == 2.5
    assert run.data.metrics["rank"] == 8
    assert run.data.metrics["validation_loss/code/l2-d16"] == 1.25
    assert {item.dataset.name for item in run.inputs.dataset_inputs} == {"backbone", "cache", "tokenizer"}
    assert run.data.tags["mlembed.rebuilt_from_outs"] == "true"


def test_the_second_call_adds_nothing(workspace: Workspace) -> None:
    (first,) = register(workspace, ["3d"])
    files = {path: path.stat().st_mtime_ns for path in (workspace.root / "mlartifacts").rglob("*")}
    (second,) = register(workspace, ["3d"])
    assert not second.created
    assert (second.version, second.run_id) == (first.version, first.run_id)
    assert (second.num_metrics, second.num_pictures, second.run_rebuilt) == (0, 0, False)
    assert "already registered" in second.summary
    assert "nothing to add" in second.summary
    assert files == {path: path.stat().st_mtime_ns for path in (workspace.root / "mlartifacts").rglob("*")}
    client = client_of(workspace)
    assert len(versions_of(workspace)) == 1
    assert len(client.get_metric_history(first.run_id, "score/embedded/l2-d16-r8/average")) == 1
    assert len(client.search_runs([client.get_experiment_by_name("house").experiment_id])) == 1


def test_new_scores_and_pictures_are_added_to_the_version_there_is(workspace: Workspace, rescore: Callable[[str, float], None]) -> None:
    register(workspace, ["3d"])
    rescore("3d", 0.25)
    (workspace.reports / "frontier.png").write_bytes(b"\x89PNG2")
    (done,) = register(workspace, ["3d"])
    assert not done.created
    assert (done.num_metrics, done.num_pictures) == (2, 2)  # one task and the average
    assert client_of(workspace).get_run(done.run_id).data.metrics["score/embedded/l2-d16-r8/Bitext"] == pytest.approx(0.625)
    assert json.loads(versions_of(workspace)[0].tags["mlembed.scores"])["embedded"]["l2-d16-r8"] == pytest.approx(0.6875)


def test_other_weights_are_another_version_and_old_ones_the_old(workspace: Workspace, retrain: Callable[[str, str], None]) -> None:
    register(workspace, ["3d"])
    retrain("3d", "other")
    (second,) = register(workspace, ["3d"])
    assert (second.version, second.created) == ("2", True)
    assert int(client_of(workspace).get_model_version_by_alias("house", "candidate-3d").version) == 2
    retrain("3d", "w")
    (third,) = register(workspace, ["3d"])
    assert (third.version, third.created) == ("1", False)
    assert int(client_of(workspace).get_model_version_by_alias("house", "candidate-3d").version) == 1


def test_all_settings_at_once(workspace: Workspace) -> None:
    assert [(done.setting, done.alias) for done in register(workspace)] == [("baseline", "candidate-baseline"), ("3d", "candidate-3d")]
    assert len({version.tags["mlembed.weights_hash"] for version in versions_of(workspace)}) == 2


def test_the_tracked_run_is_found_by_its_output(workspace: Workspace) -> None:
    with open_run(workspace, name="house", setting="3d", fingerprint="f", params={}, inputs={}) as tracker:
        tracker.log(1, {"loss": 3.0})
    (done,) = register(workspace, ["3d"])
    assert not done.run_rebuilt
    run = client_of(workspace).get_run(done.run_id)
    assert run.data.tags["mlembed.fingerprint"] == "f"
    assert run.data.metrics["loss"] == 3.0


def test_a_colleague_registers_from_pulled_outs(workspace: Workspace, tmp_path: Path, mlflow_database: Path) -> None:
    (mine,) = register(workspace, ["3d"])
    other = Workspace(tmp_path / "other")
    shutil.copytree(workspace.root, other.root, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".work"))
    shutil.copyfile(mlflow_database, other.root / "mlflow.db")
    (theirs,) = register(other, ["3d"])
    assert theirs.run_rebuilt
    assert theirs.weights_hash == mine.weights_hash
    assert client_of(other).get_run(theirs.run_id).data.metrics["loss"] == 1.5


def test_a_run_deleted_in_the_ui_comes_back(workspace: Workspace) -> None:
    (first,) = register(workspace, ["3d"])
    client_of(workspace).delete_run(first.run_id)
    (second,) = register(workspace, ["3d"])
    assert (second.version, second.run_id, second.created) == (first.version, first.run_id, False)
    assert client_of(workspace).get_run(first.run_id).info.lifecycle_stage == "active"


def test_an_upload_that_broke_off_is_done_again(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    upload = MlflowClient.log_artifacts

    def break_off(client: Any, run_id: str, folder: str, artifact_path: str) -> None:
        client.log_artifact(run_id, f"{folder}/config.json", artifact_path)
        raise OSError("connection lost")

    monkeypatch.setattr(MlflowClient, "log_artifacts", break_off)
    with pytest.raises(RegistryError, match="connection lost"):
        register(workspace, ["3d"])
    assert versions_of(workspace) == []
    monkeypatch.setattr(MlflowClient, "log_artifacts", upload)
    (done,) = register(workspace, ["3d"])
    assert not done.run_rebuilt  # the run of the first try is used
    assert any(item.path == "model/model.safetensors" for item in client_of(workspace).list_artifacts(done.run_id, "model"))


def test_without_scores_or_report_a_model_can_be_registered(workspace: Workspace) -> None:
    shutil.rmtree(workspace.scores)
    shutil.rmtree(workspace.reports)
    (done,) = register(workspace, ["3d"])
    assert (done.created, done.num_metrics, done.num_pictures) == (True, 0, 0)


def test_dvcs_md5_is_recorded_if_it_is_of_these_bytes(workspace: Workspace) -> None:
    lock = workspace.root / "dvc.lock"
    lock.write_text(lock_text("0" * 32 + ".dir"))
    state = state_folder(workspace, "3d", "fingerprint")
    state.mkdir(parents=True)
    note_out(state, manifest_hash(workspace.models / "3d"))
    (done,) = register(workspace, ["3d"])
    assert state.is_dir()  # the bytes on disk are on record nowhere yet
    assert done.dvc_md5 is None
    assert "mlembed.dvc_md5" not in versions_of(workspace)[0].tags
    md5 = dvc_directory_md5(workspace.models / "3d")
    lock.write_text(lock_text(md5))
    (done,) = register(workspace, ["3d"])
    assert done.dvc_md5 == md5
    assert not state.exists()
    assert versions_of(workspace)[0].tags["mlembed.dvc_md5"] == md5


def lock_text(md5: str) -> str:
    return f"""schema: '2.0'
stages:
  train@3d:
    cmd: mlembed train 3d
    outs:
    - path: models/3d
      hash: md5
      md5: {md5}
"""


def test_a_folders_md5_is_the_one_dvc_gives_it(tmp_path: Path) -> None:
    # What `dvc add` of DVC 3.67 wrote for these files.
    (tmp_path / "1_Pooling").mkdir()
    for name, text in {"model.safetensors": "weights", "1_Pooling/config.json": "{}\n", "1_pool.txt": "é", "config.json": "x"}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert dvc_directory_md5(tmp_path) == "fd96b0544859c222719bec0f4fa64bb4.dir"


def test_a_setting_that_is_none_is_named(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="settings has no 'base'; did you mean 'baseline'"):
        register(workspace, ["base"])


def test_a_missing_model_names_what_makes_it(workspace: Workspace) -> None:
    shutil.rmtree(workspace.models / "baseline")
    with pytest.raises(ArtifactError, match=r"models/baseline is missing .*dvc repro train@baseline"):
        register(workspace)
    assert versions_of(workspace) == []  # nothing is registered before all are looked at


def test_changed_weights_are_refused(workspace: Workspace) -> None:
    weights = workspace.models / "3d" / "model.safetensors"
    weights.write_text(weights.read_text().replace("w", "v"))
    with pytest.raises(ArtifactError, match=r"model\.safetensors was changed after it was written"):
        register(workspace, ["3d"])


def test_a_damaged_score_table_is_named(workspace: Workspace) -> None:
    (workspace.scores / "3d" / "embedded.parquet").write_bytes(b"PAR1 half of it")
    with pytest.raises(ArtifactError, match=r"embedded\.parquet is damaged .*dvc repro evaluate@3d-embedded"):
        register(workspace, ["3d"])


def test_a_server_that_is_down_is_named_without_its_password(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")  # pragma: allowlist secret
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError, match=f"MLflow at http://\\*\\*\\*@127.0.0.1:{port} failed") as caught:
        register(workspace, ["3d"])
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(workspace: Workspace) -> None:
    # Under another path: MLflow keeps a connection per address for as long as the process lives.
    other = workspace.root.with_name("broken")
    shutil.copytree(workspace.root, other)
    (other / "mlflow.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(RegistryError, match=r"broken/mlflow\.db failed"):
        register(Workspace(other), ["3d"])
