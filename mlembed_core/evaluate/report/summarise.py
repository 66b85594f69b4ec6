"""The numbers of the report: averages, what a cut keeps, who is on the Pareto line, where a control wins. Written as ``report.json``.

Words: a system's *average* is the plain mean of its main scores over all tasks of a suite, and is left open where a score is missing,
for a mean over fewer tasks would compare with nothing. *Retention* is the average of a submodel divided by that of the uncut model of
the same setting. A submodel is on the *Pareto line* of a cost when no submodel of any setting costs at most as much and scores at
least as much, with one of the two strictly better.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict, ValidationError

from mlembed_core.artifacts import CONTROLS, read_json
from mlembed_core.config.evaluate import BenchmarkSuite, EvaluationParams, LocalSuite, Suites
from mlembed_core.config.grid import Shape, Submodel, resolve_submodel
from mlembed_core.errors import ArtifactError
from mlembed_core.evaluate.report.read import Curve, ModelFacts, ScoredModel, TaskScore

REPORT_VERSION = 2  # 2: how sure differences are, languages and scripts, published scores
DIGITS = 6  # of every score written down; mteb's own precision is finer than its tasks' noise


class Record(BaseModel):
    """A part of ``report.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cost(StrEnum):
    """What a submodel is paid for with."""

    BYTES = "bytes"  # weights on disk in fp32, cut physically
    FLOPS = "flops_per_token"  # of one forward pass
    VECTOR = "bytes_per_vector"  # of the index, in fp32


class Task(Record):
    name: str
    type: str
    metric: str


class SubmodelSummary(Record):
    """One point (layers, dim, rank) of one setting."""

    setting: str
    name: str
    layers: int
    dim: int
    rank: int
    full: bool
    average: float
    retention: float | None  # None where the uncut model was not scored
    bytes: int
    flops_per_token: int
    bytes_per_vector: int
    pareto: list[Cost]  # the costs for which it is on the line
    scores: dict[str, float]

    def cost(self, cost: Cost) -> int:
        return int(getattr(self, cost.value))


class SettingSummary(Record):
    """A setting on one suite, and the sizes that it was trained at."""

    name: str
    shape: Submodel
    mrl_dims: list[int]
    mll_layers: list[int]
    mel_ranks: list[int]
    reference: str  # the submodel that controls are compared with: the uncut one, or else the largest scored
    submodels: list[SubmodelSummary]

    def submodel(self, name: str) -> SubmodelSummary:
        return next(submodel for submodel in self.submodels if submodel.name == name)


class ControlSummary(Record):
    """What a method without our training reaches on the same tasks."""

    name: str
    submodel: str | None  # of an untrained model; None, like its sizes, for methods without layers
    layers: int | None
    dim: int | None
    rank: int | None
    bytes: int | None
    average: float | None
    scores: dict[str, float | None]
    wins: dict[str, dict[str, float]]  # setting → task or "average" → by how much the control beats the setting's reference


class Comparison(Record):
    """A difference of two systems' averages by single questions: paired bootstrap, stratified over tasks (see ``bootstrap.py``)."""

    setting: str
    submodel: str
    against: str  # another setting, or a control
    against_submodel: str | None
    difference: float
    low: float
    high: float
    p_value: float
    level: float
    num_tasks: int
    num_questions: int

    @property
    def certain(self) -> bool:
        """Whether zero lies outside the interval."""
        return self.low > 0 or self.high < 0


class Group(Record):
    """The scores in one language or script."""

    code: str  # ISO 639-3 or ISO 15924
    num_questions: int  # 0 where only scores of whole subsets are known
    num_tasks: int
    scores: dict[str, float]  # by system, as in SuiteSummary.systems; one that lacks a task of the group is left out


class PublishedBenchmark(Record):
    """Means over the tasks of a benchmark, in percent, in the order of the models."""

    title: str
    benchmark: str  # mteb's name
    tasks: int
    scores: list[float]


class Published(Record):
    """What others report."""

    source: str
    models: list[str]
    benchmarks: list[PublishedBenchmark]


class SuiteSummary(Record):
    """All scores on one suite."""

    name: str
    benchmark: str | None  # mteb's name of the suite; None for local tasks
    tasks: list[Task]
    settings: list[SettingSummary]
    controls: list[ControlSummary]
    pareto: dict[Cost, list[dict[str, str]]]  # cost → members, cheapest first, as {"setting", "submodel"}
    comparisons: list[Comparison] = []
    languages: list[Group] = []
    scripts: list[Group] = []
    published: PublishedBenchmark | None = None

    @property
    def submodels(self) -> list[SubmodelSummary]:
        """All submodels of all settings."""
        return [submodel for setting in self.settings for submodel in setting.submodels]


class Training(Record):
    """How a setting's loss ended. Training losses of different settings add different terms; validation losses can be compared."""

    setting: str
    num_steps: int | None
    validation_loss: float | None


class Report(Record):
    """The whole of ``report.json``."""

    version: int = REPORT_VERSION
    name: str
    suites: list[SuiteSummary]
    training: list[Training]

    def to_json(self) -> dict[str, object]:
        values: dict[str, object] = self.model_dump(mode="json")
        return values

    @classmethod
    def load(cls, path: Path) -> Report:
        """The report in a ``report.json``.

        Raises:
            ArtifactError: the file is missing, is not JSON or was written by another version.
        """
        values = read_json(path)
        version = values.get("version") if isinstance(values, dict) else None
        if version != REPORT_VERSION:
            raise ArtifactError(f"{path} has version {version!r}, this code reads {REPORT_VERSION}. `dvc repro report` writes it anew.")
        try:
            return cls.model_validate_json(json.dumps(values))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"{path}: {where}: {first['msg']}. `dvc repro report` writes it anew.") from None


def summarise_training(curves: Mapping[str, tuple[Curve, Curve]]) -> list[Training]:
    """Last step and last validation loss per setting, from its (loss, validation) curves."""
    return [
        Training(
            setting=setting,
            num_steps=loss.steps[-1] if loss.steps else None,
            validation_loss=round(validation.losses[-1], DIGITS) if validation.losses else None,
        )
        for setting, (loss, validation) in curves.items()
    ]


def summarise_suite(
    name: str,
    suites: Suites,
    evaluation: EvaluationParams,
    *,
    models: Mapping[str, ModelFacts],
    scores: Mapping[str, Sequence[ScoredModel]],
    controls: Sequence[ScoredModel],
    origin: Mapping[str, Path],
) -> SuiteSummary:
    """Compare all settings and controls on the suite ``name``.

    Args:
        models, scores: per setting, in the order in which it shall be shown.
        origin: per setting (and ``CONTROLS``) the score table's path, for messages.

    Raises:
        ArtifactError: a table lacks a submodel or a task, or two tables measured different things.
    """
    suite = suites[name]
    tasks = _tasks(name, suites, scores, origin)
    settings = []
    for setting, facts in models.items():
        _check_submodels(scores[setting], facts.shape, evaluation, origin[setting])
        for model in scores[setting]:
            _check_tasks(model, tasks, origin[setting])
        settings.append(_setting(setting, facts, scores[setting], tasks))
    lines = {cost: pareto_line([submodel for setting in settings for submodel in setting.submodels], cost) for cost in Cost}
    settings = [_with_pareto(setting, lines) for setting in settings]
    return SuiteSummary(
        name=name,
        benchmark=suite.benchmark if isinstance(suite, BenchmarkSuite) else None,
        tasks=[Task(name=task, type=score.type, metric=score.metric) for task, score in tasks.items()],
        settings=settings,
        controls=[_control(control, tasks, settings, origin[CONTROLS]) for control in controls],
        pareto={cost: [{"setting": member.setting, "submodel": member.name} for member in line] for cost, line in lines.items()},
    )


def pareto_line(submodels: Iterable[SubmodelSummary], cost: Cost) -> list[SubmodelSummary]:
    """The submodels that no other one beats at the same or lower cost, cheapest first. Exact ties stay in together."""
    line: list[SubmodelSummary] = []
    for submodel in sorted(submodels, key=lambda item: (item.cost(cost), -item.average)):
        tied = bool(line) and (submodel.cost(cost), submodel.average) == (line[-1].cost(cost), line[-1].average)
        if not line or tied or submodel.average > line[-1].average:
            line.append(submodel)
    return line


def smallest_within(suite: SuiteSummary, share: float) -> SubmodelSummary:
    """Of all submodels with at least ``share`` of the best average: the one with the fewest bytes, then with the shortest vector."""
    return smallest(good_enough(suite, suite.submodels, share))


def good_enough(suite: SuiteSummary, submodels: Iterable[SubmodelSummary], share: float) -> list[SubmodelSummary]:
    """Those of ``submodels`` with at least ``share`` of the suite's best average."""
    best = best_submodel(suite).average
    return [item for item in submodels if item.average >= best - (1 - share) * abs(best)]


def smallest(submodels: Iterable[SubmodelSummary]) -> SubmodelSummary:
    """The one with the fewest bytes, then with the shortest vector, then with the highest average."""
    return min(submodels, key=lambda item: (item.bytes, item.bytes_per_vector, -item.average))


def best_submodel(suite: SuiteSummary) -> SubmodelSummary:
    """The submodel with the highest average; among equals the one with the fewest bytes."""
    return min(suite.submodels, key=lambda item: (-item.average, item.bytes, item.bytes_per_vector))


def whole_controls(suite: SuiteSummary) -> list[ControlSummary]:
    """One entry per control: of an untrained model scored at several cuts, the largest. That a cut one loses would say little."""
    largest: dict[str, ControlSummary] = {}
    for control in suite.controls:
        known = largest.setdefault(control.name, control)
        if (control.layers or 0, control.dim or 0, control.rank or 0) > (known.layers or 0, known.dim or 0, known.rank or 0):
            largest[control.name] = control
    return list(largest.values())


def _tasks(name: str, suites: Suites, scores: Mapping[str, Sequence[ScoredModel]], origin: Mapping[str, Path]) -> dict[str, TaskScore]:
    """The tasks of a suite in the order to show them, each with one score that stands for what is measured."""
    setting, models = next(iter(scores.items()))
    suite, found = suites[name], models[0].tasks
    if not isinstance(suite, LocalSuite):
        return dict(sorted(found.items(), key=lambda item: (item[1].type, item[0])))
    absent = [task for task in suite.tasks if task not in found]
    if absent:
        raise ArtifactError(
            f"{origin[setting]}: {models[0].submodel} has no score on {', '.join(absent)}, which suites.{name}.tasks names. "
            f"`mlembed evaluate {setting} {name}` writes it anew."
        )
    return {task: found[task] for task in suite.tasks}


def _check_submodels(models: Sequence[ScoredModel], shape: Shape, evaluation: EvaluationParams, path: Path) -> None:
    found = {model.submodel for model in models}
    absent = [name for cut in evaluation.submodels if (name := resolve_submodel(shape, **cut.model_dump()).name) not in found]
    if absent:
        raise ArtifactError(
            f"{path} has no scores of the submodel(s) {', '.join(absent)}, which evaluation.submodels names. "
            "`dvc repro evaluate` scores them."
        )
    for model in models:
        empty = [
            column for column in ("layers", "dim", "rank", "bytes_fp32", "flops_per_token", "bytes_per_vector") if _none(model, column)
        ]
        if empty:
            raise ArtifactError(f"{path}: {model.submodel} has no {', '.join(empty)}. `dvc repro evaluate` writes the table anew.")


def _none(model: ScoredModel, column: str) -> bool:
    return getattr(model, column) is None


def _check_tasks(model: ScoredModel, tasks: Mapping[str, TaskScore], path: Path) -> None:
    """Every submodel needs every score, measured in the same way."""
    for name, standard in tasks.items():
        score = model.tasks.get(name)
        if score is None or score.value is None:
            raise ArtifactError(f"{path}: {model.submodel} has no score on {name}. Delete the file; `dvc repro evaluate` writes it anew.")
        if (score.metric, score.parts) != (standard.metric, standard.parts):
            raise ArtifactError(
                f"{path}: {model.submodel} was scored on {name} by {score.metric} over {len(score.parts)} subset(s), others by "
                f"{standard.metric} over {len(standard.parts)}: these cannot be compared. `dvc repro --force evaluate` scores all alike."
            )
    extra = sorted(set(model.tasks) - set(tasks))
    if extra:
        raise ArtifactError(
            f"{path}: {model.submodel} has scores on {', '.join(extra)}, which others lack. `dvc repro evaluate` writes it anew."
        )


def _setting(name: str, facts: ModelFacts, models: Sequence[ScoredModel], tasks: Mapping[str, TaskScore]) -> SettingSummary:
    shape = facts.shape.full
    means = {model.submodel: _average(model, tasks) for model in models}
    full_average = means.get(shape.name)
    submodels = [_submodel(model, tasks, means[model.submodel], full_average, shape) for model in models]
    reference = max(submodels, key=lambda item: (item.full, item.layers, item.dim, item.rank))
    return SettingSummary(
        name=name,
        shape=shape,
        mrl_dims=list(facts.mrl_dims),
        mll_layers=list(facts.mll_layers),
        mel_ranks=list(facts.mel_ranks),
        reference=reference.name,
        submodels=submodels,
    )


def _submodel(
    model: ScoredModel, tasks: Mapping[str, TaskScore], average: float, full_average: float | None, shape: Submodel
) -> SubmodelSummary:
    return SubmodelSummary.model_validate(
        {
            "setting": model.setting,
            "name": model.submodel,
            "layers": model.layers,
            "dim": model.dim,
            "rank": model.rank,
            "full": model.submodel == shape.name,
            "average": round(average, DIGITS),
            "retention": round(average / full_average, DIGITS) if full_average else None,
            "bytes": model.bytes_fp32,
            "flops_per_token": model.flops_per_token,
            "bytes_per_vector": model.bytes_per_vector,
            "pareto": [],
            "scores": {task: round(_value(model, task), DIGITS) for task in tasks},
        }
    )


def _average(model: ScoredModel, tasks: Mapping[str, TaskScore]) -> float:
    return fmean(_value(model, task) for task in tasks)


def _value(model: ScoredModel, task: str) -> float:
    value = model.tasks[task].value
    assert value is not None  # _check_tasks has seen it
    return value


def _with_pareto(setting: SettingSummary, lines: Mapping[Cost, Sequence[SubmodelSummary]]) -> SettingSummary:
    submodels = [
        submodel.model_copy(update={"pareto": [cost for cost, line in lines.items() if submodel in line]}) for submodel in setting.submodels
    ]
    return setting.model_copy(update={"submodels": submodels})


def _control(model: ScoredModel, tasks: Mapping[str, TaskScore], settings: Sequence[SettingSummary], path: Path) -> ControlSummary:
    scores: dict[str, float | None] = {}
    for name, standard in tasks.items():
        score = model.tasks.get(name)
        if score is not None and score.metric != standard.metric:
            raise ArtifactError(
                f"{path}: {model.setting} was scored on {name} by {score.metric}, the settings by {standard.metric}: these cannot be "
                "compared. `dvc repro --force control` scores it anew."
            )
        # A control that did only some of the subsets has no score on the task: its mean would be of something else.
        comparable = score is not None and score.value is not None and score.parts == standard.parts
        scores[name] = round(score.value, DIGITS) if comparable and score is not None and score.value is not None else None
    known = [model.tasks[name].value for name in tasks if scores[name] is not None]
    average = round(fmean(value for value in known if value is not None), DIGITS) if len(known) == len(tasks) else None
    return ControlSummary(
        name=model.setting,
        submodel=model.submodel if model.layers is not None else None,
        layers=model.layers,
        dim=model.dim,
        rank=model.rank,
        bytes=model.bytes_fp32,
        average=average,
        scores=scores,
        wins={setting.name: _wins(scores, average, setting.submodel(setting.reference)) for setting in settings},
    )


def _wins(scores: Mapping[str, float | None], average: float | None, reference: SubmodelSummary) -> dict[str, float]:
    """Where a control beats ``reference``, and by how much."""
    pairs = {"average": (average, reference.average)} | {task: (score, reference.scores[task]) for task, score in scores.items()}
    return {key: round(theirs - ours, DIGITS) for key, (theirs, ours) in pairs.items() if theirs is not None and theirs > ours}
