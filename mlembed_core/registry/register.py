"""``mlembed register SETTING``: a trained setting becomes a version of the model in MLflow's registry, once.

Registration is an act, not a stage, and it can be repeated: the hash of the weights decides whether there is anything to do. The run
that a version points to is found by the manifest hash of ``models/SETTING``; where there is none (MLflow was down, or somebody else
trained and pushed the outs), it is rebuilt from the outs, which hold everything it showed.
"""

from __future__ import annotations

import csv
import hashlib
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from mlembed_core.artifacts import (
    MANIFEST,
    Workspace,
    canonical_json,
    hash_of,
    manifest_hash,
    read_json,
    read_manifest,
    sha256_file,
    verify_files,
    write_json,
    writing,
)
from mlembed_core.config.base import Name, Section, pick
from mlembed_core.config.load import load
from mlembed_core.config.settings import Settings
from mlembed_core.errors import ArtifactError
from mlembed_core.registry.client import (
    AXES_TAG,
    CARD_HASH_TAG,
    DVC_MD5_TAG,
    INPUTS_TAG,
    MODEL_ARTIFACT,
    REBUILT_TAG,
    REPORT_HASH_TAG,
    SCORES_TAG,
    WEIGHTS_HASH_TAG,
    Registry,
    candidate_alias,
    open_registry,
    registering,
)
from mlembed_core.registry.dvc_record import recorded_md5
from mlembed_core.registry.pyfunc import mlmodel
from mlembed_core.registry.tables import tables_of, upload_tables
from mlembed_core.train.state_folder import drop_states
from mlembed_core.train.tracking import (
    GIT_COMMIT_TAG,
    GIT_DIRTY_TAG,
    OUTPUT_HASH_TAG,
    PACKAGES_TAG,
    SETTING_TAG,
    Point,
    ensure_experiment,
    log_inputs,
    log_params,
    log_points,
    loss_metrics,
    run_tags,
    validation_metrics,
)


class Config(Section):
    """The sections of the parameters that registration reads."""

    name: Name
    settings: Settings


@dataclass(frozen=True)
class Registration:
    """What one call did.

    Attributes:
        created: a new version was made; False where the weights were registered already.
        run_rebuilt: MLflow had no run for this out.
        model_uploaded: the folder was copied to the run's artifacts; for a version there already was: because it had been lost.
        num_metrics: scores written, new or changed.
        num_pictures: files of the report written; ``num_tables`` of the scores, which the gate compares question by question.
        dvc_md5: as in ``dvc.lock``, if that describes these very bytes.
        scores_hash: of the average scores that the version shows; ``report_hash`` of the report's manifest, None without a report.
    """

    name: str
    version: str
    alias: str
    setting: str
    run_id: str
    experiment_id: str
    weights_hash: str
    created: bool
    run_rebuilt: bool
    model_uploaded: bool
    num_metrics: int
    num_pictures: int
    num_tables: int
    dvc_md5: str | None
    scores_hash: str
    report_hash: str | None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lasting(self) -> dict[str, Any]:
        """What is true of the version however often it is registered again: no word of what this call added."""
        names = ("name", "version", "alias", "setting", "run_id", "experiment_id", "weights_hash", "dvc_md5")
        return {name: getattr(self, name) for name in (*names, "scores_hash", "report_hash")}

    @property
    def summary(self) -> str:
        """One line for people."""
        what = f"{self.name} version {self.version} ({self.alias})"
        added = ["the run, rebuilt from the outs"] if self.run_rebuilt else []
        added += ["the model folder"] if self.model_uploaded else []
        added += [f"{self.num_metrics} scores"] if self.num_metrics else []
        added += [f"{self.num_pictures} files of the report"] if self.num_pictures else []
        added += [f"{self.num_tables} score tables"] if self.num_tables else []
        news = f"added {', '.join(added)}" if added else "nothing to add"
        return f"registered {what}; {news}" if self.created else f"already registered: {what} has these weights; {news}"


def register(workspace: Workspace, settings: Sequence[str] | None = None) -> list[Registration]:
    """Register trained settings, in one connection; a model that DVC has on record needs its training's resume state no more.

    Args:
        settings: keys of ``settings`` in the parameters; None takes all.

    Raises:
        ConfigError: no such setting.
        ArtifactError: a model is missing, incomplete or changed since it was written.
        RegistryError: MLflow is missing, down or refuses.
    """
    config = load(workspace.params_file, Config)
    chosen = list(config.settings) if settings is None else list(settings)
    for setting in chosen:
        pick(config.settings, setting, path="settings")
    # All are checked before the first is registered.
    trained = [TrainedModel.find(workspace, setting) for setting in chosen]
    with registering(workspace), open_registry(workspace) as registry:
        done = [_register_one(registry, workspace, config.name, model) for model in trained]
        for registration in done:
            record = workspace.registration(registration.setting)
            with writing(workspace, record) as draft:
                write_json(draft, registration.lasting())
    for model in trained:
        if model.dvc_md5 is not None:
            drop_states(workspace, model.setting, model.output_hash)
    return done


def _register_one(registry: Registry, workspace: Workspace, name: str, model: TrainedModel) -> Registration:
    client = registry.client
    version = _find_version(client, name, model)
    run = client.get_run(version.run_id) if version else _find_run(client, name, model)
    rebuilt = run is None
    if run is None:
        run = client.get_run(_rebuild_run(client, workspace, name, model))
    scores = main_scores(workspace.scores / model.setting)
    num_metrics = _update_scores(client, run, scores)
    num_pictures = _update_files(client, run, workspace.reports, "report", REPORT_HASH_TAG)
    num_pictures += _update_files(client, run, workspace.card, "data_card", CARD_HASH_TAG)
    num_tables = upload_tables(client, run, tables_of(workspace, model.setting))
    uploaded = _upload_model(client, run, model)
    created = version is None
    if version is None:
        version = _create_version(client, name, model, run)
    _update_version_tags(client, version, {SCORES_TAG: canonical_json(average_scores(scores)), DVC_MD5_TAG: model.dvc_md5})
    _point_alias(client, name, candidate_alias(model.setting), str(version.version))
    return Registration(
        name=name,
        version=str(version.version),
        alias=candidate_alias(model.setting),
        setting=model.setting,
        run_id=str(run.info.run_id),
        experiment_id=str(run.info.experiment_id),
        weights_hash=model.weights_hash,
        created=created,
        run_rebuilt=rebuilt,
        model_uploaded=uploaded,
        num_metrics=num_metrics,
        num_pictures=num_pictures,
        num_tables=num_tables,
        dvc_md5=model.dvc_md5,
        scores_hash=hash_of(average_scores(scores)),
        report_hash=manifest_hash(workspace.reports) if (workspace.reports / MANIFEST).is_file() else None,
    )


@dataclass(frozen=True)
class TrainedModel:
    """A model folder whose bytes are those its manifest lists."""

    setting: str
    folder: Path
    manifest: dict[str, Any]
    output_hash: str
    weights_hash: str
    dvc_md5: str | None

    @classmethod
    def find(cls, workspace: Workspace, setting: str) -> TrainedModel:
        """Check ``models/SETTING`` and read what identifies it.

        Raises:
            ArtifactError: it is missing, or a file of it is missing or changed.
        """
        # Torch comes along with it: only now, not when the command line starts.
        from mlembed_core.model.encoder import weights_hash

        folder = workspace.models / setting
        manifest = read_manifest(folder, made_by=f"dvc repro train@{setting}")
        verify_files(folder)
        return cls(setting, folder, manifest, manifest_hash(folder), weights_hash(folder), recorded_md5(workspace, setting))

    @cached_property
    def facts(self) -> dict[str, Any]:
        """``mlembed.json``: shape and trained axes."""
        from mlembed_core.model.checkpoint import CHECKPOINT_FACTS

        facts: dict[str, Any] = read_json(self.folder / CHECKPOINT_FACTS)
        return facts

    @property
    def axes(self) -> dict[str, Any]:
        return {key: self.facts.get(key) for key in ("shape", "mrl_dims", "mll_layers", "mel_ranks")}


def _find_version(client: Any, name: str, model: TrainedModel) -> Any | None:
    """The version with these weights, its run there (brought back if somebody deleted it); None otherwise."""
    from mlflow.exceptions import MlflowException

    for version in client.search_model_versions(f"name='{name}'"):
        if version.tags.get(WEIGHTS_HASH_TAG) != model.weights_hash or version.tags.get(SETTING_TAG) != model.setting:
            continue
        try:
            run = client.get_run(version.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            continue  # purged with its artifacts: this version cannot be loaded any more
        if run.info.lifecycle_stage == "deleted":
            client.restore_run(version.run_id)
        return version
    return None


def _find_run(client: Any, name: str, model: TrainedModel) -> Any | None:
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return None
    runs = client.search_runs([experiment.experiment_id], f"tags.`{OUTPUT_HASH_TAG}` = '{model.output_hash}'", max_results=1)
    return runs[0] if runs else None


def _rebuild_run(client: Any, workspace: Workspace, name: str, model: TrainedModel) -> str:
    """A run as the tracker would have left it, from the manifest and the curves in the model folder."""
    tags = {**run_tags(workspace, model.setting), REBUILT_TAG: "true"}
    run_id = str(client.create_run(ensure_experiment(client, workspace, name), run_name=model.setting, tags=tags).info.run_id)
    log_inputs(client, run_id, model.manifest["inputs"])
    log_params(client, run_id, model.manifest["params"])
    now = time.time()
    points = [
        Point(key, value, int(row["step"]), now)
        for file_name, metrics_of in (("loss_curve.csv", loss_metrics), ("validation_curve.csv", validation_metrics))
        for row in _read_csv(model.folder / file_name)
        for key, value in metrics_of(row).items()
    ]
    log_points(client, run_id, points)
    # Only a whole run can be found by its output: a crash before this line leaves one that nobody uses.
    client.set_tag(run_id, OUTPUT_HASH_TAG, model.output_hash)
    client.set_terminated(run_id, "FINISHED")
    return run_id


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.is_file():  # a setting without validation has no such curve
        return []
    with path.open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def main_scores(folder: Path) -> dict[tuple[str, str, str], float]:
    """The main score of every (suite, submodel, task) in ``scores/SETTING``, the mean over subsets and splits; empty before evaluation.

    Raises:
        ArtifactError: a table is damaged or lacks a column.
    """
    # Imported here: pyarrow is slow to load, and a model without scores does not need it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    values: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for path in sorted(folder.glob("*.parquet")):
        try:
            table = pq.read_table(path, columns=["suite", "submodel", "task", "score", "main"], filters=[("main", "=", True)])
            rows = table.to_pylist()
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ArtifactError(
                f"{path} is damaged or no score table ({error}). Make it again: `dvc repro evaluate@{folder.name}-{path.stem}`."
            ) from error
        for row in rows:
            if row["main"]:
                values[row["suite"], row["submodel"], row["task"]].append(row["score"])
    return {key: fmean(scores) for key, scores in sorted(values.items())}


def average_scores(scores: dict[tuple[str, str, str], float]) -> dict[str, dict[str, float]]:
    """Suite → submodel → mean over its tasks, rounded to 6 digits."""
    tasks: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (suite, submodel, _), score in scores.items():
        tasks[suite][submodel].append(score)
    return {suite: {submodel: round(fmean(values), 6) for submodel, values in rows.items()} for suite, rows in tasks.items()}


def _update_scores(client: Any, run: Any, scores: dict[tuple[str, str, str], float]) -> int:
    """Write the scores that the run does not show yet; returns how many."""
    wanted = {f"score/{suite}/{submodel}/{task}": score for (suite, submodel, task), score in scores.items()}
    for suite, rows in average_scores(scores).items():
        wanted |= {f"score/{suite}/{submodel}/average": score for submodel, score in rows.items()}
    there = run.data.metrics
    now = time.time()
    changed = [Point(key, value, 0, now) for key, value in wanted.items() if not _same(there.get(key), value)]
    log_points(client, run.info.run_id, changed)
    return len(changed)


def _same(known: float | None, value: float) -> bool:
    return known is not None and (known == value or (math.isnan(known) and math.isnan(value)))


def _update_files(client: Any, run: Any, folder: Path, name: str, tag: str) -> int:
    """Put a folder's page and pictures beside the run, unless they are there; returns how many files.

    Args:
        name: of the folder among the run's artifacts.
        tag: of the run, holds their hash.
    """
    files = sorted(folder.glob("*.png")) + sorted(folder.glob("index.html"))
    digest = hashlib.sha256("".join(f"{path.name}:{sha256_file(path)}\n" for path in files).encode()).hexdigest()
    if not files or run.data.tags.get(tag) == digest:
        return 0
    for path in files:
        client.log_artifact(run.info.run_id, str(path), name)
    client.set_tag(run.info.run_id, tag, digest)
    return len(files)


def _upload_model(client: Any, run: Any, model: TrainedModel) -> bool:
    """Put the model folder among the run's artifacts, unless it is there; returns whether it was put."""
    run_id = run.info.run_id
    if run.data.tags.get(WEIGHTS_HASH_TAG) == model.weights_hash and client.list_artifacts(run_id, MODEL_ARTIFACT):
        return False
    client.log_artifacts(run_id, str(model.folder), MODEL_ARTIFACT)
    client.log_text(run_id, mlmodel(run_id), f"{MODEL_ARTIFACT}/MLmodel")
    # Set after the upload: a crash in between uploads again instead of registering half a folder.
    client.set_tag(run_id, WEIGHTS_HASH_TAG, model.weights_hash)
    return True


def _create_version(client: Any, name: str, model: TrainedModel, run: Any) -> Any:
    run_id = run.info.run_id
    _ensure_registered_model(client, name)
    tags = {
        SETTING_TAG: model.setting,
        WEIGHTS_HASH_TAG: model.weights_hash,
        OUTPUT_HASH_TAG: model.output_hash,
        AXES_TAG: canonical_json(model.axes),
        INPUTS_TAG: canonical_json(model.manifest["inputs"]),
        **{key: run.data.tags.get(key) for key in (GIT_COMMIT_TAG, GIT_DIRTY_TAG, PACKAGES_TAG, REBUILT_TAG)},
    }
    known = {key: value for key, value in tags.items() if value is not None}
    return client.create_model_version(name, source=f"runs:/{run_id}/{MODEL_ARTIFACT}", run_id=run_id, tags=known)


def _update_version_tags(client: Any, version: Any, tags: dict[str, str | None]) -> None:
    """Bring up to date what may become known after the registration: scores, and the recording by DVC."""
    for key, value in tags.items():
        if value is not None and version.tags.get(key) != value:
            client.set_model_version_tag(version.name, version.version, key, value)


def _ensure_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _point_alias(client: Any, name: str, alias: str, version: str) -> None:
    # A database gives version numbers, a server gives them as text.
    if str(client.get_registered_model(name).aliases.get(alias)) != version:
        client.set_registered_model_alias(name, alias, version)
