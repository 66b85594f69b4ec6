"""The inputs of the report, read and checked: score tables, model shapes and loss curves.

A report that silently drops half a table looks like any other report. So whatever is missing, damaged or contradictory here is an
error that names the file; only a *control* may lack a score, since some of them cannot do some tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from mlembed_core.artifacts import read_json
from mlembed_core.config.grid import Shape
from mlembed_core.errors import ArtifactError
from mlembed_core.evaluate.bootstrap import Answers, Part

COST_COLUMNS = ("bytes_fp32", "flops_per_token", "bytes_per_vector")
LOSS_COLUMNS = ("step", "loss")
VALIDATION_COLUMNS = ("step", "source", "layers", "dim", "loss")


@dataclass(frozen=True)
class TaskScore:
    """The main score of one task: the mean over its subsets and splits, as mteb averages them."""

    type: str
    metric: str
    parts: frozenset[tuple[str, str]]  # (subset, split) pairs behind the mean; scores over different parts are not comparable
    value: float | None  # None: this system has no score here


@dataclass(frozen=True)
class ScoredModel:
    """One row of the comparison: a submodel of a setting, or a control (whose sizes are None where it has none)."""

    setting: str
    submodel: str  # empty for a control that is no neural model
    layers: int | None
    dim: int | None
    rank: int | None
    bytes_fp32: int | None
    flops_per_token: int | None
    bytes_per_vector: int | None
    tasks: dict[str, TaskScore]


@dataclass(frozen=True)
class ModelFacts:
    """What a model folder says about itself: its full shape and the sizes it was trained at (empty where an axis is off)."""

    shape: Shape
    mrl_dims: tuple[int, ...]
    mll_layers: tuple[int, ...]
    mel_ranks: tuple[int, ...]


@dataclass(frozen=True)
class Curve:
    """A loss by training step."""

    steps: tuple[int, ...]
    losses: tuple[float, ...]


def read_scores(path: Path, *, suite: str, made_by: str, setting: str | None = None) -> list[ScoredModel]:
    """The main scores of one score table, one entry per submodel or control, in the table's order.

    Args:
        suite: what the table's ``suite`` column must say.
        made_by: the command that writes the table, for the error messages.
        setting: what its ``setting`` column must say; None for controls, which have a name each.

    Raises:
        ArtifactError: the file is missing, damaged, empty, of another setting or suite, or contradicts itself.
    """
    rows = _read_rows(path, made_by)
    for column, wanted in (("suite", suite), ("setting", setting)):
        found = sorted({str(getattr(row, column)) for row in rows})
        if wanted is not None and found != [wanted]:
            raise ArtifactError(f"{path}: column {column} holds {', '.join(found)}, expected only {wanted}. `{made_by}` writes it anew.")
    models: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        models.setdefault((row.setting, row.submodel or ""), []).append(row)
    return [_scored_model(path, name, submodel, of_model) for (name, submodel), of_model in models.items()]


def read_answers(path: Path, *, made_by: str) -> dict[tuple[str, str], dict[Part, Answers]]:
    """The scores of single questions in a score table: (setting, submodel or "") → part → answers. Empty where the suite keeps none.

    Args:
        made_by: the command that writes the table, for the error messages.

    Raises:
        ArtifactError: the file is missing, damaged or of an older format.
    """
    columns = ["setting", "submodel", *Part._fields, "query", "score"]
    frame = _read(path, columns, pa.compute.field("query").is_valid(), made_by).to_pandas()
    frame["submodel"] = frame["submodel"].fillna("")
    found: dict[tuple[str, str], dict[Part, Answers]] = {}
    for (setting, submodel, *part), rows in frame.groupby(["setting", "submodel", *Part._fields], sort=False):
        found.setdefault((setting, submodel), {})[Part(*part)] = Answers(tuple(rows["query"]), rows["score"].to_numpy(dtype=float))
    return found


@dataclass(frozen=True)
class LanguageScore:
    """What a system reaches on a task in one language and script.

    Attributes:
        count: questions behind the mean, or subsets where a task's questions were not kept.
        single: whether these are single questions.
    """

    task: str
    code: str  # deu-Latn
    mean: float
    count: int
    single: bool


def read_language_scores(path: Path, *, made_by: str) -> dict[tuple[str, str], list[LanguageScore]]:
    """Scores by task and language of every system in a score table: of single questions where a task has them, else of subsets.

    A subset in two languages (bitext) counts for both.

    Raises:
        ArtifactError: the file is missing, damaged or of an older format.
    """
    columns = ["setting", "submodel", "task", "languages", "query", "score"]
    rows = pa.compute.field("query").is_valid() | pa.compute.field("main")
    frame = _read(path, columns, rows, made_by).to_pandas()
    frame["submodel"] = frame["submodel"].fillna("")
    frame["single"] = frame["query"].notna()
    frame = frame[frame["score"].notna() & (frame["single"] == frame.groupby(["setting", "submodel", "task"])["single"].transform("any"))]
    frame = frame.explode("languages").dropna(subset=["languages"])
    groups = frame.groupby(["setting", "submodel", "task", "languages", "single"], sort=False)["score"].agg(["mean", "size"])
    found: dict[tuple[str, str], list[LanguageScore]] = {}
    for (setting, submodel, task, code, single), mean, count in groups.itertuples(name=None):
        found.setdefault((setting, submodel), []).append(LanguageScore(task, code, float(mean), int(count), bool(single)))
    return found


class _Row(NamedTuple):
    """A main row of a score table, as far as the report uses it."""

    setting: str
    suite: str
    submodel: str | None
    layers: int | None
    dim: int | None
    rank: int | None
    task: str
    task_type: str
    subset: str | None
    split: str | None
    metric: str
    score: float | None
    bytes_fp32: int | None
    flops_per_token: int | None
    bytes_per_vector: int | None


def _read_rows(path: Path, made_by: str) -> list[_Row]:
    """The main rows of a score table, its columns checked."""
    table = _read(path, list(_Row._fields), pa.compute.field("main"), made_by)
    if table.num_rows == 0:
        raise ArtifactError(f"{path} holds no main score. `{made_by}` writes it anew.")
    # Plain tuples: grouping a hundred thousand small tasks in pandas takes minutes.
    return list(map(_Row._make, zip(*(table.column(name).to_pylist() for name in _Row._fields), strict=True)))


def _read(path: Path, columns: Sequence[str], rows: Any, made_by: str) -> pa.Table:
    """Some columns of a score table, of the rows for which an expression holds."""
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist. `{made_by}` makes it, `dvc pull` fetches it from a remote.")
    try:
        absent = [column for column in (*columns, "main") if column not in pq.read_schema(path).names]
        if absent:
            raise ArtifactError(f"{path} lacks the column(s) {', '.join(absent)}. `{made_by}` writes it anew.")
        return pq.read_table(path, columns=list(columns), filters=rows)
    except (pa.ArrowException, OSError) as error:
        raise ArtifactError(f"{path} is not a readable parquet file ({error}). Delete it; `{made_by}` writes it anew.") from None


def _scored_model(path: Path, setting: str, submodel: str, rows: Sequence[_Row]) -> ScoredModel:
    where = f"{path}: {setting} {submodel}".rstrip()
    sizes = {column: _single(rows, column, where) for column in ("layers", "dim", "rank", *COST_COLUMNS)}
    tasks: dict[str, list[_Row]] = {}
    for row in rows:
        tasks.setdefault(row.task, []).append(row)
    return ScoredModel(
        setting=setting,
        submodel=submodel,
        tasks={task: _task_score(of_task, f"{where}, task {task}") for task, of_task in tasks.items()},
        **{column: None if value is None else int(value) for column, value in sizes.items()},
    )


def _task_score(rows: Sequence[_Row], where: str) -> TaskScore:
    """Average a task's main rows. A language can stand in several rows of one subset, so subsets are averaged before the mean."""
    parts: dict[tuple[str, str], list[float | None]] = {}
    for row in rows:
        parts.setdefault((str(row.subset), str(row.split)), []).append(row.score)
    scores = [row.score for row in rows]
    value = None
    if not any(score is None or math.isnan(score) for score in scores):
        value = fmean(fmean(score for score in part if score is not None) for part in parts.values())
        if not math.isfinite(value):
            raise ArtifactError(f"{where}: the score {value} is not finite. Evaluate this model again.")
    metric, task_type = _single(rows, "metric", where), _single(rows, "task_type", where)
    return TaskScore(str(task_type), str(metric), frozenset(parts), value)


def _single(rows: Sequence[_Row], column: str, where: str) -> Any:
    """The one value that a column holds in ``rows``; None where it is empty (null or NaN)."""
    found = (getattr(row, column) for row in rows)
    values = list(dict.fromkeys(value for value in found if not (value is None or value != value)))
    if len(values) > 1:
        shown = ", ".join(str(value) for value in values[:3])
        raise ArtifactError(f"{where}: column {column} holds several values ({shown}), expected one. Evaluate this model again.")
    return values[0] if values else None


def read_model_facts(folder: Path) -> ModelFacts:
    """Shape and trained sizes, from a model folder's ``mlembed.json``.

    Raises:
        ArtifactError: the file is missing, damaged or lacks a key.
    """
    path = folder / "mlembed.json"
    facts = read_json(path)
    try:
        shape = Shape(**{axis: int(facts["shape"][axis]) for axis in ("layers", "dim", "rank", "vocab")})
        trained = {axis: tuple(int(size) for size in facts.get(axis) or ()) for axis in ("mrl_dims", "mll_layers", "mel_ranks")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path} has no proper shape or axes ({error!r}). `mlembed train {folder.name}` writes it anew.") from None
    return ModelFacts(shape=shape, **trained)


def read_loss_curve(path: Path) -> Curve:
    """The logged training losses, by step.

    Raises:
        ArtifactError: the file is missing, damaged or lacks a column.
    """
    frame = _read_csv(path, LOSS_COLUMNS)
    means = frame.groupby("step", sort=True)["loss"].mean()
    return Curve(steps=tuple(int(step) for step in means.index), losses=tuple(float(loss) for loss in means))


def read_validation_curve(path: Path) -> Curve:
    """The validation losses of the full model (all layers, all dims), averaged over the sources, by step.

    That loss has one term whatever the setting trains, so it can be compared between settings. Empty where validation is off.

    Raises:
        ArtifactError: the file is missing, damaged or lacks a column.
    """
    frame = _read_csv(path, VALIDATION_COLUMNS)
    if frame.empty:
        return Curve((), ())
    full = frame[(frame["layers"] == frame["layers"].max()) & (frame["dim"] == frame["dim"].max())]
    means = full.groupby("step", sort=True)["loss"].mean()
    return Curve(steps=tuple(int(step) for step in means.index), losses=tuple(float(loss) for loss in means))


def _read_csv(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    remedy = f"`mlembed train {path.parent.name}` writes it anew."
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist. {remedy}")
    try:
        frame = pd.read_csv(path)
        absent = [column for column in columns if column not in frame.columns]
        if absent:
            raise ArtifactError(f"{path} lacks the column(s) {', '.join(absent)}. {remedy}")
        numeric = [column for column in columns if column != "source"]
        frame[numeric] = frame[numeric].astype(float)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors too
        raise ArtifactError(f"{path} is not a proper CSV file ({error}). {remedy}") from None
    return frame
