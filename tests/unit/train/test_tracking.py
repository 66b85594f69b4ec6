"""Runs in a real MLflow database: complete, resumed, and lost without costing the training anything."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mlembed_core.artifacts import Workspace, manifest_hash, write_manifest
from mlembed_core.train import tracking
from mlembed_core.train.tracking import Tracker, connect, flatten, local_tracking_uri, loss_metrics, open_run, validation_metrics

PARAMS = {"seed": 17, "train": {"learning_rate": 4e-4, "betas": [0.9, 0.98], "schedule": "cosine"}, "setting": {}}
INPUTS = {"cache": "c" * 64, "backbone": "b" * 64}


@pytest.fixture
def workspace(tmp_path: Path, mlflow_database: Path) -> Workspace:
    shutil.copyfile(mlflow_database, tmp_path / "mlflow.db")
    return Workspace(tmp_path)


@pytest.fixture
def start(workspace: Workspace) -> Callable[..., Tracker]:
    def start(fingerprint: str = "f1") -> Tracker:
        return open_run(workspace, name="house", setting="3d", fingerprint=fingerprint, params=PARAMS, inputs=INPUTS)

    return start


def write_model(workspace: Workspace) -> None:
    (workspace.models / "3d").mkdir(parents=True)
    (workspace.models / "3d" / "weights").write_text("w")
    write_manifest(workspace.models / "3d", stage="train@3d", params={})


def runs(workspace: Workspace) -> list[Any]:
    client = connect(local_tracking_uri(workspace))
    found: list[Any] = client.search_runs([client.get_experiment_by_name("house").experiment_id])
    return found


def curve(workspace: Workspace, run: Any, key: str) -> list[tuple[int, float]]:
    history = connect(local_tracking_uri(workspace)).get_metric_history(run.info.run_id, key)
    return sorted((point.step, point.value) for point in history)


def test_what_was_measured_lies_beside_the_out(workspace: Workspace, start: Callable[..., Tracker]) -> None:
    with start() as tracker:
        tracker.log(10, {"loss": 1.0, "tokens_per_second": 100.0})
        tracker.log(20, {"loss": 0.5, "tokens_per_second": 200.0})
        write_model(workspace)
    measured = json.loads(workspace.measured("train@3d").read_text())
    assert measured["tokens_per_second"] == 200
    assert measured["seconds"] > 0
    assert measured["run_id"] == runs(workspace)[0].info.run_id
    assert measured["experiment_id"] == runs(workspace)[0].info.experiment_id


def test_a_training_that_failed_leaves_no_measure(workspace: Workspace, start: Callable[..., Tracker]) -> None:
    with pytest.raises(ValueError), start() as tracker:
        tracker.log(10, {"loss": 1.0})
        raise ValueError
    assert not workspace.measured("train@3d").exists()


def test_a_run_shows_what_went_in_and_what_came_out(workspace: Workspace, start: Callable[..., Tracker]) -> None:
    with start() as tracker:
        for step in (10, 20):
            tracker.log(step, {"loss": 1 / step, "loss/code": 1 / step})
        write_model(workspace)
    (run,) = runs(workspace)
    assert run.info.status == "FINISHED"
    assert curve(workspace, run, "loss") == [(10, 0.1), (20, 0.05)]
    assert run.data.params == {
        "seed": "17",
        "train.learning_rate": "0.0004",
        "train.betas": "[0.9,0.98]",
        "train.schedule": "cosine",
        "setting": "{}",
    }
    assert run.data.tags["mlembed.fingerprint"] == "f1"
    assert run.data.tags["mlembed.output_hash"] == manifest_hash(workspace.models / "3d")
    assert "torch" in json.loads(run.data.tags["mlembed.packages"])
    datasets = {item.dataset.name: (item.dataset.digest, item.tags[0].value) for item in run.inputs.dataset_inputs}
    assert datasets == {name: (digest[:36], digest) for name, digest in INPUTS.items()}
    assert run.info.artifact_uri.startswith((workspace.root / "mlartifacts").as_uri())


def test_a_resumed_training_goes_on_in_its_run(workspace: Workspace, start: Callable[..., Tracker]) -> None:
    with pytest.raises(RuntimeError, match="killed"), start() as tracker:
        for step in (10, 20, 30):
            tracker.log(step, {"loss": float(step)})
        raise RuntimeError("killed")
    assert runs(workspace)[0].info.status == "FAILED"
    with start() as tracker:
        for step in (20, 30, 40):  # from the checkpoint of step 10
            tracker.log(step, {"loss": float(step), "grad_norm": 1.0})
    (run,) = runs(workspace)
    assert run.info.status == "FINISHED"
    assert curve(workspace, run, "loss") == [(10, 10), (20, 20), (30, 30), (40, 40)]
    assert len(curve(workspace, run, "grad_norm")) == 3


def test_a_finished_run_is_left_alone(workspace: Workspace, start: Callable[..., Tracker]) -> None:
    for fingerprint in ("f1", "f1", "f2"):
        with start(fingerprint) as tracker:
            tracker.log(1, {"loss": 1.0})
    assert len(runs(workspace)) == 3


def test_a_training_that_is_interrupted_is_killed_not_failed(workspace: Workspace, start: Callable[..., Tracker]) -> None:
    with pytest.raises(KeyboardInterrupt), start():
        raise KeyboardInterrupt
    assert runs(workspace)[0].info.status == "KILLED"


def test_metrics_are_written_in_batches(workspace: Workspace, start: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    write = tracking.log_points
    monkeypatch.setattr(tracking, "log_points", lambda client, run_id, points: (writes.append(len(points)), write(client, run_id, points)))
    with start() as tracker:
        for step in range(1500):
            tracker.log(step, {"loss": float(step)})
    assert sum(writes) == 1500
    assert len(writes) <= 2
    assert len(curve(workspace, runs(workspace)[0], "loss")) == 1500


def test_git_is_named_where_there_is_a_commit(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracking.git_tags(workspace) == {}
    root = str(workspace.root)
    (workspace.root / "configs").mkdir()
    (workspace.root / "configs" / "params.yaml").write_text("seed: 1\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "configs"], [*identity, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", root, *arguments], check=True)
    clean = tracking.git_tags(workspace)
    assert len(clean["mlflow.source.git.commit"]) == 40
    assert clean["mlembed.git_dirty"] == "false"
    (workspace.root / "configs" / "params.yaml").write_text("seed: 2\n")
    assert tracking.git_tags(workspace)["mlembed.git_dirty"] == "true"
    monkeypatch.setenv("PATH", "")
    assert tracking.git_tags(workspace) == {}


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def train_ten_steps(tracker: Tracker) -> float:
    started = time.monotonic()
    for step in range(10):
        tracker.log(step, {"loss": 1.0})
    return time.monotonic() - started


def test_a_server_that_is_down_costs_one_warning(
    start: Callable[..., Tracker], closed_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{closed_port}")  # pragma: allowlist secret
    started = time.monotonic()
    with start() as tracker:
        assert train_ten_steps(tracker) < 0.5
    assert time.monotonic() - started < 15
    warning = capsys.readouterr().err
    assert warning.count("warning") == 1
    assert "mlembed register 3d" in warning
    assert "secret" not in warning


@pytest.fixture
def mute_server() -> Iterator[int]:
    """A server that takes connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        yield listener.getsockname()[1]


def test_a_server_that_hangs_holds_up_no_step(
    start: Callable[..., Tracker], mute_server: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute_server}")
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 1.0)
    started = time.monotonic()
    with start() as tracker:
        assert train_ten_steps(tracker) < 0.5
    assert time.monotonic() - started < 5
    assert capsys.readouterr().err.count("no answer within 1 s") == 1


def test_mlflow_that_dies_half_way_costs_one_warning(
    workspace: Workspace, start: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "FLUSH_INTERVAL_S", 0.05)
    tracker = start()
    tracker.log(1, {"loss": 1.0})
    wait_for(lambda: (workspace.root / "mlflow.db").exists() and bool(tracker._pending) is False)

    def die(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tracking, "log_points", die)
    for step in range(2, 5):
        tracker.log(step, {"loss": 1.0})
        time.sleep(0.2)
    tracker.finish()
    assert capsys.readouterr().err.count("disk full") == 1
    assert tracker._pending == []  # and memory does not grow behind a dead connection


def wait_for(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_without_mlflow_training_is_not_tracked(
    start: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "mlflow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with start() as tracker:
        train_ten_steps(tracker)
    assert "MLflow is not installed" in capsys.readouterr().err


def test_an_address_that_is_none_costs_one_warning(
    start: Callable[..., Tracker], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with start():
        pass
    assert capsys.readouterr().err.count("warning") == 1


def test_parameters_are_flattened() -> None:
    assert flatten({"a": {"b": {"c": None}, "d": True}, "e": [1, 2], "f": "x"}) == {"a.b.c": "null", "a.d": "true", "e": "[1,2]", "f": "x"}


def test_curves_have_the_same_names_live_and_from_the_file() -> None:
    live = {"step": 10, "source": "code", "loss": 1.5, "learning_rate": 1e-3, "grad_norm": 2.0, "rank": None, "tokens": 700}
    written = {key: "" if value is None else str(value) for key, value in live.items()}
    expected = {"loss": 1.5, "loss/code": 1.5, "learning_rate": 1e-3, "grad_norm": 2.0, "tokens": 700.0}
    assert loss_metrics(live) == loss_metrics(written) == expected
    row = {"step": "10", "source": "code", "layers": "2", "dim": "64", "loss": "0.5"}
    assert validation_metrics(row) == {"validation_loss/code/l2-d64": 0.5}


CREATE = "import sys; from mlembed_core.train.tracking import connect; connect(sys.argv[1]).search_experiments()"


@pytest.mark.slow  # MLflow makes its tables, twice over for each
@pytest.mark.parametrize("size", [1, 400_000])
def test_a_database_whose_making_was_killed_is_made_anew(tmp_path: Path, size: int) -> None:
    """MLflow itself cannot open one that has some of its tables."""
    command = [sys.executable, "-c", CREATE, f"sqlite:///{tmp_path / 'mlflow.db'}"]
    process = subprocess.Popen(command)
    while process.poll() is None and not any(path.stat().st_size >= size for path in tmp_path.rglob("mlflow.db") if path.exists()):
        time.sleep(0.002)
    process.kill()
    assert process.wait() != 0, "it was through before it could be killed"
    assert not (tmp_path / "mlflow.db").exists()
    subprocess.run(command, check=True)
    assert (tmp_path / "mlflow.db").is_file()
