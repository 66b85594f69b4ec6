"""Run models over tasks with mteb and collect what it measures into one long table.

mteb computes every metric. The table takes over the scores and leaves behind what differs from run to run (dates, durations), so
that equal models give equal files. It also has a row for what could not be scored: a main score that is null means that this
system cannot do that task, which is not the same as a zero. Where a suite keeps them, the scores of single questions follow, one row
each, with the question's own language; in these rows ``query`` is filled and ``main`` is false.
"""

from __future__ import annotations

import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import mteb
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
import torch
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from threadpoolctl import threadpool_limits

from mlembed_core.artifacts import canonical_json, write_json
from mlembed_core.config.evaluate import SubmodelParams
from mlembed_core.config.grid import Shape, Submodel, resolve_submodel
from mlembed_core.errors import EvaluationError, MachineError, SubmodelError
from mlembed_core.evaluate.costs import Costs, CountsParameters, submodel_costs
from mlembed_core.evaluate.encoder import StateStore, SubmodelEncoder
from mlembed_core.evaluate.questions import Questions, recording
from mlembed_core.evaluate.state import State, versions
from mlembed_core.progress import Reporter
from mlembed_core.spread import spread

FORMAT_VERSION = 2  # 2: languages as mteb writes them, scores of single questions, versions of all libraries
DIGITS = 6  # of the small git-tracked summary; the table has the scores as computed
DATALOADER_ROWS = 4096  # texts that mteb hands over at a time; our encoder makes its own batches of tokens
NO_METRICS = ("main_score",)  # a copy of one of the others
MANY_LANGUAGES = "mul"
MAX_LANGUAGES = 4  # more languages in one subset are written as `mul`


@dataclass(frozen=True)
class Contestant:
    """A model to score.

    Attributes:
        model: by one of mteb's protocols.
        setting: the row's ``setting``: a setting's name, or that of a control.
        submodel: None for what is no neural model.
        can_do: whether this model can be scored on a task at all.
    """

    model: Any
    setting: str
    submodel: Submodel | None = None
    costs: Costs | None = None
    can_do: Callable[[AbsTask], bool] = lambda _: True


@dataclass(frozen=True)
class Score:
    """One row of the table: one number that mteb computed."""

    setting: str
    suite: str
    submodel: str | None
    layers: int | None
    dim: int | None
    rank: int | None
    task: str
    task_type: str
    subset: str
    language: str
    split: str
    metric: str
    score: float | None
    main: bool
    bytes_fp32: int | None
    flops_per_token: int | None
    bytes_per_vector: int | None
    languages: tuple[str, ...]  # language and script, as mteb writes them: deu-Latn
    query: str | None = None  # in a row of a single question: what names it


_ARROW = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_(), "tuple[str,": pa.list_(pa.string())}
SCHEMA = pa.schema([(field.name, _ARROW[str(field.type).split(" ", maxsplit=1)[0]]) for field in fields(Score)])


@dataclass(frozen=True)
class Scores:
    """What came of a suite.

    Attributes:
        rows: one per number that mteb computed.
        questions: rows of single questions, in the same columns; empty where a suite does not keep them.
    """

    rows: list[Score]
    questions: pa.Table

    @property
    def table(self) -> pa.Table:
        """All of it, the averages first."""
        return pa.concat_tables([_table(self.rows), self.questions]).combine_chunks()


def _table(rows: Sequence[Score]) -> pa.Table:
    return pa.table({name: [getattr(row, name) for row in rows] for name in SCHEMA.names}, schema=SCHEMA)


def _scores(table: pa.Table) -> Scores:
    """The inverse of :attr:`Scores.table`."""
    single = pa.compute.is_valid(table["query"])
    columns = table.filter(pa.compute.invert(single)).to_pydict()
    columns["languages"] = list(map(tuple, columns["languages"]))
    return Scores([Score(*values) for values in zip(*columns.values(), strict=True)], table.filter(single))


class TrainedAxes(Protocol):
    """What :func:`resolve_submodels` needs of :class:`mlembed_core.model.encoder.TrainedAxes`."""

    @property
    def mrl_dims(self) -> tuple[int, ...] | None: ...
    @property
    def mll_layers(self) -> tuple[int, ...] | None: ...
    @property
    def mel_ranks(self) -> tuple[int, ...] | None: ...


def resolve_submodels(cuts: Sequence[SubmodelParams], shape: Shape, *, model: str, axes: TrainedAxes | None = None) -> list[Submodel]:
    """The submodels that ``evaluation.submodels`` names, for a model of this shape; two names of one submodel count once.

    Args:
        model: its folder, for messages.
        axes: what it was trained at; cuts at other sizes are scored all the same, and told.

    Raises:
        SubmodelError: a cut that the model does not have.
    """
    submodels = []
    for index, cut in enumerate(cuts):
        try:
            submodels.append(resolve_submodel(shape, layers=cut.layers, dim=cut.dim, rank=cut.rank))
        except SubmodelError as error:
            raise SubmodelError(f"evaluation.submodels[{index}] and {model}: {error}; leave this submodel out, or cut less") from None
    submodels = list(dict.fromkeys(submodels))
    untrained = [submodel.name for submodel in submodels if axes is not None and not _is_trained(submodel, shape, axes)]
    if untrained:
        print(f"{model} was not trained at the cuts {', '.join(untrained)}; they are scored all the same", file=sys.stderr, flush=True)
    return submodels


def _is_trained(submodel: Submodel, shape: Shape, axes: TrainedAxes) -> bool:
    cuts = (
        (submodel.dim, shape.dim, axes.mrl_dims),
        (submodel.layers, shape.layers, axes.mll_layers),
        (submodel.rank, shape.rank, axes.mel_ranks),
    )
    return all(size == full or size in (trained or ()) for size, full, trained in cuts)


def submodel_contestants(
    encoder: CountsParameters,
    store: StateStore,
    submodels: Sequence[Submodel],
    *,
    setting: str,
    revision: str,
    instructions: bool,
    prompts: dict[str, str] | None = None,
) -> list[Contestant]:
    """One contestant per submodel, all over one store."""
    return [
        Contestant(
            SubmodelEncoder(store, submodel, setting=setting, revision=revision, instructions=instructions, prompts=prompts),
            setting,
            submodel,
            submodel_costs(encoder, submodel),
        )
        for submodel in submodels
    ]


@dataclass(frozen=True)
class Loaded:
    """Models and the tasks to score them on, ready in this process.

    Attributes:
        after_task: called when all contestants are through with a task; drops what was kept for it.
    """

    tasks: Sequence[AbsTask]
    contestants: Sequence[Contestant]
    after_task: Callable[[], None] = lambda: None


def score_suite(
    suite: str,
    loaded: Loaded,
    *,
    num_threads: int,
    query_scores: bool = False,
    state: State | None = None,
    elsewhere: Callable[[], Loaded] | None = None,
) -> Scores:
    """Score all contestants on all tasks, task by task.

    Args:
        num_threads: of torch and of the linear algebra beneath scikit-learn; part of the result.
        query_scores: keep the score of every single question, where a task has such.
        state: where finished tasks are kept and found; None keeps nothing.
        elsewhere: makes the same in another process, for tasks to be spread as the environment says (``spread.py``); picklable. None:
            they stay in this process.

    Returns:
        Rows in the order of tasks, contestants, splits and subsets as mteb has them, metrics by name.

    Raises:
        EvaluationError: a model gave vectors that cannot be right.
        MachineError: a task's dataset cannot be loaded.
    """
    tasks, each = loaded.tasks, len(loaded.contestants)
    tables = {index: table for index, task in enumerate(tasks) if state is not None and (table := state.load(task, SCHEMA)) is not None}
    missing = [index for index in range(len(tasks)) if index not in tables]
    scorer = _Scorer(suite, num_threads, elsewhere, query_scores=query_scores, here=loaded)
    with Reporter(f"Scoring {suite}", len(tasks) * each, "scores", start=len(tables) * each) as progress:
        scorer.after_score = lambda task: progress.advance(note=task)
        found = spread(
            scorer,
            missing,
            description="tasks",
            total=len(missing),
            unit="tasks",
            processes=max(1, torch.cuda.device_count()),
            gpus_each=min(1, torch.cuda.device_count()),
            cpus_each=num_threads,
            only_here=elsewhere is None,
            shown=False,
        )
        for number, (table, told) in found:
            task = tasks[missing[number]]
            progress.advance(each - told, note=task.metadata.name)  # what another process has done
            tables[missing[number]] = table
            if state is not None:
                state.save(task, table)
    return _joined([_scores(tables[index]) for index in range(len(tasks))])


@dataclass
class _Scorer:
    """What scores one task after the other in one process. Sent to another, it leaves behind what is loaded and loads its own."""

    suite: str
    num_threads: int
    elsewhere: Callable[[], Loaded] | None
    query_scores: bool
    here: Loaded | None
    after_score: Callable[[str], None] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "here": None, "after_score": None}

    def __call__(self) -> Callable[[int], tuple[pa.Table, int]]:
        loaded = self.here
        if loaded is None:
            assert self.elsewhere is not None  # else nothing is spread
            loaded = self.elsewhere()
        torch.set_num_threads(self.num_threads)
        return partial(self._score, loaded)

    def _score(self, loaded: Loaded, index: int) -> tuple[pa.Table, int]:
        """The rows of a task, and how many contestants' scores were told here already."""
        task = loaded.tasks[index]
        parts, told = [], 0
        with threadpool_limits(limits=self.num_threads), tempfile.TemporaryDirectory(prefix="mlembed-") as scratch:
            _load(task)
            for number, contestant in enumerate(loaded.contestants):
                parts.append(_score_task(self.suite, task, contestant, Path(scratch) / str(number) if self.query_scores else None))
                if self.after_score is not None:
                    self.after_score(task.metadata.name)
                    told += 1
            loaded.after_task()
            if task.data_loaded:
                task.unload_data()
        return _joined(parts).table, told


def _joined(parts: Sequence[Scores]) -> Scores:
    return Scores(
        [row for part in parts for row in part.rows], pa.concat_tables([SCHEMA.empty_table(), *(part.questions for part in parts)])
    )


def summary(rows: Sequence[Score], systems: Mapping[str, tuple[str, Submodel | None]]) -> dict[str, dict[str, float]]:
    """``{name: {"average": …, task: main score}}``, for people and for ``dvc metrics``.

    A system that cannot do some task has no average here: it would be one over easier tasks.

    Args:
        systems: name → setting and submodel of the rows that it stands for.
    """
    found = {}
    for name, (setting, submodel) in systems.items():
        main = [row for row in rows if row.main and row.setting == setting and row.submodel == (submodel and submodel.name)]
        parts: dict[str, list[float]] = {}
        for row in main:
            if row.score is not None:
                parts.setdefault(row.task, []).append(row.score)
        scores = {task: fmean(values) for task, values in parts.items()}
        complete = all(row.score is not None for row in main)
        average = {"average": fmean(scores.values())} if scores and complete else {}
        found[name] = {key: round(value, DIGITS) for key, value in {**average, **scores}.items()}
    return found


def write_table(path: Path, scores: Scores, tasks: Sequence[AbsTask], *, facts: dict[str, str]) -> None:
    """The long table as parquet. Its metadata (key ``mlembed``) has the libraries' versions, the datasets' revisions and ``facts``."""
    metadata = {
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "datasets": {task.metadata.name: dataset_of(task) for task in tasks},
        **facts,
    }
    pq.write_table(scores.table.replace_schema_metadata({"mlembed": canonical_json(metadata)}), path, compression="zstd")


def dataset_of(task: AbsTask) -> str:
    """``path@revision`` of a task's data, wherever they lie on this machine."""
    dataset = task.metadata.dataset
    return f"{getattr(task, 'dataset_path', dataset['path'])}@{dataset['revision']}"


def write_summary(path: Path, found: dict[str, dict[str, float]]) -> None:
    """The summary as JSON, for ``dvc metrics`` and git."""
    write_json(path, found)


def _load(task: AbsTask) -> None:
    """Load a task's data once for all contestants. An aggregate has none of its own: mteb loads its parts."""
    if isinstance(task, AbsTaskAggregate):
        return
    try:
        task.load_data()
    except Exception as error:  # datasets and huggingface_hub raise a dozen kinds, not all of them theirs
        path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
        raise MachineError(
            f"task {task.metadata.name}: the dataset {path} at {revision} cannot be loaded ({type(error).__name__}: {error}). "
            f"With network access, `hf download --repo-type dataset {path} --revision {revision}` fetches it; then run this again. "
            "Suites of type local need no download."
        ) from error


def _score_task(suite: str, task: AbsTask, contestant: Contestant, scratch: Path | None) -> Scores:
    """One contestant on one task.

    Args:
        scratch: a folder of their own, for what single questions are read from; None where those are not kept.
    """
    if not contestant.can_do(task):
        row = _row(suite, task, contestant, "default", "test", task.metadata.bcp47_codes, task.metadata.main_score, None)
        return Scores([row], SCHEMA.empty_table())
    if scratch is None:
        return Scores(_evaluated(suite, task, contestant), SCHEMA.empty_table())
    with recording(task, scratch) as recorder:
        rows = _evaluated(suite, task, contestant, recorder.predictions)
        questions = [_question_rows(suite, task, contestant, part) for part in recorder.found()]
    return Scores(rows, pa.concat_tables([SCHEMA.empty_table(), *questions]))


def _evaluated(suite: str, task: AbsTask, contestant: Contestant, predictions: Path | None = None) -> list[Score]:
    with warnings.catch_warnings():
        # A label that is never predicted has no precision, which mteb counts as 0; a fit of at most 100 steps is mteb's choice; and
        # so is the copy of a tensor. A coordinate in which a class does not vary only matters to priors that nobody asks for.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="To copy construct from a tensor")
        warnings.filterwarnings("ignore", message="The task '.*' is superseded by")  # which version is asked is the suite's choice
        warnings.filterwarnings("ignore", message="self.within_class_std_dev_ has at least 1 zero")
        result = mteb.evaluate(
            contestant.model,
            task,
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
            prediction_folder=predictions,
            encode_kwargs={"batch_size": DATALOADER_ROWS, "show_progress_bar": False},
        )
    return [
        _row(suite, task, contestant, scores["hf_subset"], split, scores["languages"], metric, value)
        for task_result in result.task_results
        for split, subsets in task_result.scores.items()
        for scores in subsets
        for metric, value in sorted(_metrics(scores).items())
    ]


def _question_rows(suite: str, task: AbsTask, contestant: Contestant, part: Questions) -> pa.Table:
    """The rows of single questions: the columns of an average, but for question, language and score."""
    common = _row(suite, task, contestant, part.subset, part.split, (), part.metric, None)
    size = len(part.ids)
    columns = {name: pa.repeat(pa.scalar(getattr(common, name), SCHEMA.field(name).type), size) for name in SCHEMA.names}
    codes = [code.split("+") for code in part.codes]
    columns |= {
        "query": pa.array(part.ids, pa.string()),
        "score": pa.array(part.scores, pa.float64()),
        "language": pa.array([_language(code) for code in codes], pa.string()),
        "languages": pa.array(codes, pa.list_(pa.string())),
        "main": pa.repeat(pa.scalar(value=False), size),
    }
    return pa.table(columns, schema=SCHEMA)


def _language(codes: Sequence[str]) -> str:
    languages = [code.split("-")[0] for code in codes]
    return "+".join(languages) if len(languages) <= MAX_LANGUAGES else MANY_LANGUAGES


def _metrics(scores: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among what mteb writes down for a subset."""
    return {key: value for key, value in scores.items() if key not in NO_METRICS and isinstance(value, int | float)}


def _row(
    suite: str, task: AbsTask, contestant: Contestant, subset: str, split: str, codes: Sequence[str], metric: str, score: float | None
) -> Score:
    submodel, costs = contestant.submodel, contestant.costs
    main = metric == task.metadata.main_score
    if score is not None and not math.isfinite(score):
        if main:
            raise EvaluationError(
                f"{contestant.setting} {submodel.name if submodel else ''}: the main score {metric} of task {task.metadata.name} is "
                f"{score}; nothing was recorded"
            )
        score = None  # some metrics are not defined everywhere: nAUC of a perfect ranking
    return Score(
        setting=contestant.setting,
        suite=suite,
        submodel=submodel.name if submodel else None,
        layers=submodel.layers if submodel else None,
        dim=submodel.dim if submodel else None,
        rank=submodel.rank if submodel else None,
        task=task.metadata.name,
        task_type=task.metadata.type,
        subset=subset,
        language=_language(codes),
        split=split,
        metric=metric,
        score=None if score is None else float(score),
        main=main,
        bytes_fp32=costs.bytes_fp32 if costs else None,
        flops_per_token=costs.flops_per_token if costs else None,
        bytes_per_vector=costs.bytes_per_vector if costs else None,
        languages=tuple(codes),
    )
