"""One evaluation: a model's submodels on a suite, from one encoding per rank, with what names it and lets it go on after a kill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mteb.abstasks.abstask import AbsTask

from mlembed_core.config.evaluate import EvaluationParams
from mlembed_core.config.grid import Submodel
from mlembed_core.evaluate.encoder import StateStore
from mlembed_core.evaluate.scoring import Scores, score_suite, submodel_contestants
from mlembed_core.evaluate.state import State, fingerprint


@dataclass(frozen=True)
class Job:
    """What is scored, and how.

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


def evaluate(job: Job, encoder: Any, suite: str, tasks: Sequence[AbsTask], state: State | None) -> Scores:
    """Score the job's submodels on ``tasks``.

    Args:
        encoder: an :class:`mlembed_core.model.encoder.Encoder` with the job's weights.
        suite: the rows' ``suite``.

    Raises:
        EvaluationError, MachineError: see :func:`mlembed_core.evaluate.scoring.score_suite`.
    """
    store = StateStore(encoder, job.submodels, batch_tokens=job.evaluation.batch_tokens)
    contestants = submodel_contestants(
        encoder, store, job.submodels, setting=job.name, revision=job.weights, instructions=job.instructions, prompts=job.prompts
    )
    return score_suite(
        suite,
        tasks,
        contestants,
        num_threads=job.evaluation.num_threads,
        after_task=store.clear,
        query_scores=job.query_scores,
        state=state,
    )
