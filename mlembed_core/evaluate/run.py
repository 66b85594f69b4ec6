"""One evaluation: models on a suite, with what names it and lets it go on after a kill; and the outs that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mteb.abstasks.abstask import AbsTask

from mlembed_core.artifacts import Workspace, writing
from mlembed_core.config.evaluate import EvaluationParams, Suite
from mlembed_core.config.grid import Submodel
from mlembed_core.evaluate.encoder import StateStore
from mlembed_core.evaluate.scoring import Contestant, Loaded, score_suite, submodel_contestants, summary, write_summary, write_table
from mlembed_core.evaluate.state import State, fingerprint


@dataclass(frozen=True)
class Job:
    """Which submodels of a model are scored, and how.

    Attributes:
        name: what the model is called in the table; mteb knows it as ``mlembed/<name>``.
        weights: the hash of its weights.
        evaluation: arithmetic and sizes; its list of submodels is not read here.
        query_scores: keep the score of every single question.
        instructions: put mteb's instructions before queries in mteb's own tasks.
        prompts: the model's own prompts by mteb's keys (task, type of task, ``query``, ``document``); None: the recipe's template.
    """

    name: str
    weights: str
    submodels: tuple[Submodel, ...]
    evaluation: EvaluationParams
    query_scores: bool
    instructions: bool = False
    prompts: dict[str, str] | None = None

    @property
    def fingerprint(self) -> str:
        """Names everything but the tasks that shapes the scores."""
        return fingerprint(
            name=self.name,
            weights=self.weights,
            submodels=[submodel.name for submodel in self.submodels],
            evaluation=self.evaluation.model_dump(mode="json", exclude={"submodels"}),
            query_scores=self.query_scores,
            instructions=self.instructions,
            prompts=self.prompts,
        )

    @property
    def systems(self) -> dict[str, tuple[str, Submodel | None]]:
        """What the summary calls each submodel, and whose rows these are."""
        return {submodel.name: (self.name, submodel) for submodel in self.submodels}

    def load(self, encoder: Any, tasks: Sequence[AbsTask]) -> Loaded:
        """All submodels as contestants over one encoding per rank.

        Args:
            encoder: an :class:`mlembed_core.model.encoder.Encoder` with the job's weights.
        """
        store = StateStore(encoder, self.submodels, batch_tokens=self.evaluation.batch_tokens)
        contestants = submodel_contestants(
            encoder, store, self.submodels, setting=self.name, revision=self.weights, instructions=self.instructions, prompts=self.prompts
        )
        return Loaded(tasks, contestants, store.clear)


@dataclass(frozen=True)
class Item:
    """What a stage scores: loaded here, with what names it.

    Attributes:
        systems: see :func:`mlembed_core.evaluate.scoring.summary`.
        weights, fingerprint: of the table's facts, and of the resume state.
    """

    loaded: Loaded
    systems: Mapping[str, tuple[str, Submodel | None]]
    weights: str
    fingerprint: str


def score_item(workspace: Workspace, folder: str, name: str, suite: Suite, num_threads: int, load: Callable[[], Item]) -> None:
    """Write ``scores/FOLDER/NAME.parquet`` and its summary ``.json``, going on where an earlier run was stopped.

    Args:
        folder: of the system in ``scores/``.
        name: of the suite.
        load: makes what is scored, here and in every other process that the tasks are spread over (see ``spread.py``).

    Raises:
        EvaluationError, MachineError: see :func:`mlembed_core.evaluate.scoring.score_suite`.
    """
    item = load()
    tasks, state = item.loaded.tasks, State(workspace.evaluations, item.fingerprint)
    scores = score_suite(
        name, item.loaded, num_threads=num_threads, query_scores=suite.query_scores, state=state, elsewhere=_LoadedBy(load)
    )
    table, digest = (workspace.scores / folder / f"{name}{suffix}" for suffix in (".parquet", ".json"))
    with writing(workspace, table) as table_draft, writing(workspace, digest) as digest_draft:
        write_table(table_draft, scores, tasks, facts={"weights": item.weights})
        write_summary(digest_draft, summary(scores.rows, item.systems))
    state.forget(tasks)


@dataclass(frozen=True)
class _LoadedBy:
    """Picklable: what another process calls."""

    load: Callable[[], Item]

    def __call__(self) -> Loaded:
        return self.load().loaded


def named(contestants: Sequence[Contestant]) -> dict[str, tuple[str, Submodel | None]]:
    """Systems of several settings: a setting's name alone where it has no submodels."""
    return {
        item.setting if item.submodel is None else f"{item.setting} {item.submodel.name}": (item.setting, item.submodel)
        for item in contestants
    }
