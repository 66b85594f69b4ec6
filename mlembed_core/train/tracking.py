"""The MLflow run of a training: what went in, how the loss fell, what came out.

Tracking never costs a training step. A thread of its own connects, writes in batches and closes the run; the loop only appends to a
list. When MLflow is missing, down, or dies half-way, one warning goes to stderr and the rest of the run is not tracked: `mlembed register`
rebuilds the whole run from the outs. Tags tie a run to its bytes: the fingerprint from the start (a resumed training goes on in
the run that it finds by it), the out's manifest hash at the end.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mlembed_core.artifacts import MANIFEST, Workspace, canonical_json, manifest_hash, write_json, writing
from mlembed_core.errors import MlembedError, TrainingInterruptedError

SETTING_TAG = "mlembed.setting"
FINGERPRINT_TAG = "mlembed.fingerprint"
OUTPUT_HASH_TAG = "mlembed.output_hash"
PACKAGES_TAG = "mlembed.packages"
# MLflow's own names, which its pages show.
GIT_COMMIT_TAG = "mlflow.source.git.commit"
GIT_DIRTY_TAG = "mlembed.git_dirty"

FLUSH_INTERVAL_S = 5.0  # sqlite takes some 30 writes a second in all, whatever their size
FINISH_TIMEOUT_S = 60.0  # what the end of a training waits for MLflow at most
DIGEST_LENGTH = 36  # the longest dataset digest that MLflow stores
RECORDED_PACKAGES = ("mlembed", "torch", "transformers", "tokenizers", "accelerate", "safetensors", "numpy")

SQLITE = "sqlite:///"

Status = Literal["FINISHED", "FAILED", "KILLED"]


def tracking_uri(workspace: Workspace) -> str:
    """``MLFLOW_TRACKING_URI``, else the sqlite database at the root of the workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_tracking_uri(workspace)


def without_secrets(message: str) -> str:
    """A message or address with the ``user:password@`` of any URL in it blotted out."""
    return re.sub(r"://[^/\s@]+@", "://***@", message)


def local_tracking_uri(workspace: Workspace) -> str:
    return f"{SQLITE}{workspace.root / 'mlflow.db'}"


def connect(uri: str) -> Any:
    """An ``MlflowClient`` for runs and versions at ``uri``; neither telemetry nor chatter.

    Raises:
        ImportError: MLflow is not installed.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # Its bars for copied files are for people who watch.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", str(sys.stderr.isatty()).lower())
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):  # they announce every table of a new database
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists():
        _create_database(Path(uri.removeprefix(SQLITE)))
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create_database(path: Path) -> None:
    """A new database, whole or not at all: MLflow makes its tables over seconds, and cannot open one that lacks some."""
    from mlflow.tracking import MlflowClient

    with tempfile.TemporaryDirectory(prefix=f"{path.name}-", dir=path.parent) as scratch:
        draft = Path(scratch) / path.name
        MlflowClient(tracking_uri=f"{SQLITE}{draft}").search_experiments(max_results=1)
        with contextlib.suppress(FileExistsError):  # somebody else has made one meanwhile
            os.link(draft, path)  # unlike a rename, it puts nothing in the place of another


def ensure_experiment(client: Any, workspace: Workspace, name: str) -> str:
    """The id of the experiment ``name``; made when it is missing, with its artifacts in the workspace if the database is there too."""
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    local = tracking_uri(workspace) == local_tracking_uri(workspace)
    location = (workspace.root / "mlartifacts" / name).as_uri() if local else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except Exception:
        # Another process may have made it in between; anything else fails again here, with its own message.
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def run_tags(workspace: Workspace, setting: str) -> dict[str, str]:
    """Tags that say where a run comes from: setting, git commit, package versions."""
    return {SETTING_TAG: setting, PACKAGES_TAG: canonical_json(package_versions()), **git_tags(workspace)}


def git_tags(workspace: Workspace) -> dict[str, str]:
    """The commit of the workspace, and whether code or parameters differ from it. Empty without git or without a commit."""
    commit = _git(workspace, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changed = _git(workspace, "status", "--porcelain", "--", "mlembed_core", "configs", "dvc.yaml", "constraints.txt")
    return {GIT_COMMIT_TAG: commit, GIT_DIRTY_TAG: str(bool(changed)).lower()}


def _git(workspace: Workspace, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(workspace.root), *arguments], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Versions of what a vector depends on."""
    versions = {"python": platform.python_version()}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as MLflow shows them: ``{"train": {"seed": 1}}`` → ``{"train.seed": "1"}``; lists as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = value if isinstance(value, str) else canonical_json(value)
    return flat


def loss_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of one row of ``loss_curve.csv``: the loss also by its source and kind, and its terms; empty cells left out."""
    names = {name: name for name in ("loss", "learning_rate", "grad_norm", "rank", "tokens")}
    names |= {f"loss_term/{name}": name for name in ("in_batch", "hard", "distillation", "self_distillation")}
    if row.get("source"):
        names[f"loss/{row['source']}"] = "loss"
    if row.get("kind"):
        names[f"loss_kind/{row['kind']}"] = "loss"
    return {name: float(row[column]) for name, column in names.items() if row.get(column) not in (None, "")}


def validation_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """The metric of one row of ``validation_curve.csv``."""
    return {f"validation_loss/{row['source']}/l{row['layers']}-d{row['dim']}": float(row["loss"])}


def open_run(
    workspace: Workspace, *, name: str, setting: str, fingerprint: str, params: Mapping[str, Any], inputs: Mapping[str, str]
) -> Tracker:
    """Open the run of a training, or the unfinished one with the same fingerprint. Returns at once and never raises.

    Call it in the main process only, as a context manager around the training *and* the move of its out into place: leaving it
    closes the run.

    Args:
        name: of the experiment (``name`` of the parameters).
        setting: trained here; the out is ``models/SETTING``.
        fingerprint: equal for two trainings that must give the same bytes; names the resume state too.
        params: what shapes the training, nested; the same mapping goes into the out's manifest, so that a rebuilt run shows the same.
        inputs: name → manifest hash of the earlier outs it reads.
    """
    # A server that is down shall be noticed soon; whoever set these knows their network better.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    return Tracker(RunFacts(workspace, name, setting, fingerprint, dict(params), dict(inputs)))


@dataclass(frozen=True)
class RunFacts:
    """What a run is opened with; see :func:`open_run`."""

    workspace: Workspace
    name: str
    setting: str
    fingerprint: str
    params: dict[str, Any]
    inputs: dict[str, str]


class Tracker:
    """Takes metrics of one training; a thread carries them to MLflow."""

    def __init__(self, facts: RunFacts) -> None:
        self._facts = facts
        self._lock = threading.Lock()
        self._pending: list[Point] = []
        self._stop = threading.Event()
        self._gave_up = False
        self._status: Status = "FINISHED"
        self._output_hash: str | None = None
        self._run: _Run | None = None
        self._started = time.monotonic()
        self._last: dict[str, float] = {}
        self._thread: threading.Thread | None = threading.Thread(target=self._work, name="mlflow-tracker", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note metrics of a step; costs an append. Points that a resumed run already has are dropped, so a replayed curve does no harm."""
        self._last |= metrics
        if self._gave_up:
            return
        now = time.time()
        with self._lock:
            self._pending += [Point(key, float(value), step, now) for key, value in metrics.items()]

    def finish(self, status: Status = "FINISHED") -> None:
        """Write what is left and close the run; waits for MLflow at most ``FINISH_TIMEOUT_S``. A second call does nothing.

        A finished run is tagged with the manifest hash of ``models/SETTING``, which must be in place by then.
        """
        if self._thread is None:
            return
        out = self._facts.workspace.models / self._facts.setting
        if status == "FINISHED" and (out / MANIFEST).is_file():
            self._output_hash = manifest_hash(out)
        self._status = status
        self._stop.set()
        self._thread.join(FINISH_TIMEOUT_S)
        if self._thread.is_alive():
            self._give_up(f"no answer within {FINISH_TIMEOUT_S:.0f} s")
        self._thread = None
        if status == "FINISHED":
            self._write_measured()

    def _write_measured(self) -> None:
        """Leave time, speed and the way to the run beside the out, for those who show it (they do not ask MLflow)."""
        target = self._facts.workspace.measured(f"train@{self._facts.setting}")
        run = None if self._gave_up else self._run
        facts = {
            "seconds": round(time.monotonic() - self._started, 1),
            "tokens_per_second": round(self._last.get("tokens_per_second", 0.0), 1),
            "experiment_id": run.experiment_id if run else None,
            "run_id": run.run_id if run else None,
            "output_hash": self._output_hash,
        }
        try:
            with writing(self._facts.workspace, target) as draft:
                write_json(draft, facts)
        except (OSError, MlembedError) as error:  # the model is in place: that nobody sees how long it took is no reason to fail
            print(f"mlembed: warning: {target} was not written: {error}", file=sys.stderr, flush=True)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish("FINISHED")
        else:
            stopped = issubclass(kind, TrainingInterruptedError) or not issubclass(kind, Exception)
            self.finish("KILLED" if stopped else "FAILED")

    def _work(self) -> None:
        try:
            run = self._run = _Run(self._facts)
            stopping = False
            while not stopping and not self._gave_up:
                stopping = self._stop.wait(FLUSH_INTERVAL_S)
                run.write(self._take())
            if not self._gave_up:
                run.close(self._status, self._output_hash)
        except ImportError:
            self._give_up("MLflow is not installed; `pip install 'mlembed[mlflow]'` brings it")
        except Exception as error:
            # Whatever MLflow, its database or its server raises: the training matters more than its record.
            self._give_up(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}")

    def _take(self) -> list[Point]:
        with self._lock:
            points, self._pending = self._pending, []
        return points

    def _give_up(self, reason: str) -> None:
        with self._lock:
            first, self._gave_up = not self._gave_up, True
            self._pending = []
        if first:
            uri = tracking_uri(self._facts.workspace)
            message = (
                f"mlembed: warning: this training is not tracked any further in MLflow at {uri} ({reason}). "
                f"The training goes on; afterwards `mlembed register {self._facts.setting}` rebuilds the run from the outs."
            )
            print(without_secrets(message), file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Point:
    """One value of one metric; ``time`` in seconds since the epoch."""

    key: str
    value: float
    step: int
    time: float


class _Run:
    """The open run in MLflow. Lives in the tracker's thread, since a database connection belongs to one thread."""

    def __init__(self, facts: RunFacts) -> None:
        self._client = connect(tracking_uri(facts.workspace))
        self.experiment_id = experiment = ensure_experiment(self._client, facts.workspace, facts.name)
        unfinished = f"tags.`{FINGERPRINT_TAG}` = '{facts.fingerprint}' and attributes.status != 'FINISHED'"
        found = self._client.search_runs([experiment], unfinished, max_results=1)
        self._last_step: dict[str, int] = {}
        if found:
            self.run_id = str(found[0].info.run_id)
            self._client.update_run(self.run_id, status="RUNNING")
            for key in found[0].data.metrics:
                self._last_step[key] = max(point.step for point in self._client.get_metric_history(self.run_id, key))
        else:
            tags = {FINGERPRINT_TAG: facts.fingerprint, **run_tags(facts.workspace, facts.setting)}
            self.run_id = str(self._client.create_run(experiment, run_name=facts.setting, tags=tags).info.run_id)
            log_inputs(self._client, self.run_id, facts.inputs)
            log_params(self._client, self.run_id, facts.params)

    def write(self, points: list[Point]) -> None:
        log_points(self._client, self.run_id, [point for point in points if point.step > self._last_step.get(point.key, -1)])

    def close(self, status: Status, output_hash: str | None) -> None:
        if output_hash is not None:
            self._client.set_tag(self.run_id, OUTPUT_HASH_TAG, output_hash)
        self._client.set_terminated(self.run_id, status)


def log_points(client: Any, run_id: str, points: list[Point]) -> None:
    """Write points in as few transactions as MLflow allows."""
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(point.key, point.value, int(point.time * 1000), point.step) for point in points])


def log_params(client: Any, run_id: str, params: Mapping[str, Any]) -> None:
    """Write nested parameters; MLflow cuts a value that is too long for its column."""
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(key, value) for key, value in flatten(params).items()])


def log_inputs(client: Any, run_id: str, inputs: Mapping[str, str]) -> None:
    """Record the outs that a training read as dataset inputs, each by its manifest hash (whole in a tag, cut in the digest)."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    datasets = [
        DatasetInput(
            Dataset(
                name=name,
                digest=digest[:DIGEST_LENGTH],
                source_type="mlembed_out",
                source=canonical_json({"name": name, "manifest_hash": digest}),
            ),
            [InputTag("mlembed.manifest_hash", digest)],
        )
        for name, digest in inputs.items()
    ]
    if datasets:
        client.log_inputs(run_id, datasets)
