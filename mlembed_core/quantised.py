"""What int8 and binary vectors cost in quality: the report's submodels on the retrieval tasks of local suites, with search as we have it.

The questions are those that mteb asks (``evaluate/tasks.py``), answered by :class:`mlembed_core.registry.quantise.QuantisedVectors`: what
``mlembed search --vectors int8`` does, with documents in fewer bits and the query's own floats. The float32 figure is that of the score
table; it is computed here too, so that all three are told by one rule.

It takes a pass over the models that the scores do not need, so it stands beside the report, not in it (``measured.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from mlembed_core.artifacts import Workspace
from mlembed_core.config.base import Section
from mlembed_core.config.evaluate import EvaluationParams, LocalSuite, Suites, TaskType
from mlembed_core.config.grid import Submodel
from mlembed_core.config.load import load
from mlembed_core.errors import ConfigError
from mlembed_core.evaluate.process import prepare_process
from mlembed_core.evaluate.report.summarise import SubmodelSummary
from mlembed_core.export.kinds import VectorType
from mlembed_core.measured import chosen_submodels, keep, page_file, read_report
from mlembed_core.progress import Reporter
from mlembed_core.registry.quantise import quantise

TOP = 10  # nDCG@10, the main score of retrieval tasks
BITS = {VectorType.FLOAT32: 32, VectorType.INT8: 8, VectorType.BINARY: 1}

Vectors = Float32[NDArray[Any], "text dim"]


class Config(Section):
    """What is read of the parameters."""

    evaluation: EvaluationParams
    suites: Suites


@dataclass(frozen=True)
class Questions:
    """A retrieval task: queries with their prompt in front, documents, and which of these answer each query."""

    queries: list[str]
    documents: list[str]
    answers: list[set[int]]


@dataclass(frozen=True)
class Quality:
    """Of one submodel with one kind of vectors: nDCG@10 by task."""

    setting: str
    submodel: str
    vectors: str
    bytes_per_vector: int
    average: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Measured:
    """What was measured, of which report, and where it is told."""

    report: str
    tasks: list[str]
    rows: list[Quality]
    page: Path

    def as_dict(self) -> dict[str, Any]:
        return {"report": self.report, "tasks": self.tasks, "rows": [asdict(row) for row in self.rows], "page": str(self.page)}

    @property
    def summary(self) -> str:
        lines = [f"| setting | submodel | vectors | bytes | {' | '.join(self.tasks)} | average |", "|---" * (5 + len(self.tasks)) + "|"]
        for row in self.rows:
            cells = " | ".join(f"{score:.3f}" for score in [*row.scores.values(), row.average])
            lines.append(f"| {row.setting} | {row.submodel} | {row.vectors} | {row.bytes_per_vector:,} | {cells} |")
        return "\n".join([*lines, f"nDCG@{TOP}. The report with these figures: {self.page}"])


def measure(workspace: Workspace, *, every: bool = False) -> Measured:
    """Score the report's submodels with their vectors in fewer bits.

    Args:
        every: all of them; else those that are uncut or on a Pareto line.

    Raises:
        ArtifactError: there is no report, a model of it, or no source.
        ConfigError: no suite has a retrieval task on local sources.
    """
    report, digest = read_report(workspace)
    config = load(workspace.params_file, Config)
    tasks = _tasks(workspace, config.suites)
    chosen = chosen_submodels(report, every=every)
    rows: list[Quality] = []
    with Reporter("quantised vectors", len(chosen), "submodels") as progress:
        for setting in dict.fromkeys(item.setting for item in chosen):
            of_setting = [item for item in chosen if item.setting == setting]
            rows += _score(workspace, setting, of_setting, tasks, config.evaluation)
            progress.advance(len(of_setting), note=setting)
    done = Measured(digest, list(tasks), rows, page_file(workspace))
    keep(workspace, "quantised", done.as_dict())
    return done


def _tasks(workspace: Workspace, suites: Suites) -> dict[str, Questions]:
    wanted = {
        name: params
        for suite in suites.values()
        if isinstance(suite, LocalSuite)
        for name, params in suite.tasks.items()
        if params.type is TaskType.RETRIEVAL
    }
    if not wanted:
        raise ConfigError(
            f"suites: none has a retrieval task on a local source (there are: {', '.join(suites)}), and quantised vectors are measured on "
            "those; add one (type: local, tasks: {NAME: {type: retrieval, source: …}})"
        )
    prepare_process(workspace.work, offline=True)
    from mlembed_core.evaluate.tasks import local_task  # after its environment is prepared
    from mlembed_core.prompts import query_prompt

    found = {}
    for name, params in wanted.items():
        task: Any = local_task(name, params, workspace.sources)
        data, prompt = task.content["default"]["test"], query_prompt(task.metadata.prompt)
        place = {document: number for number, document in enumerate(data["corpus"]["id"])}
        answers = [{place[document] for document in data["relevant_docs"][query]} for query in data["queries"]["id"]]
        found[name] = Questions([prompt + text for text in data["queries"]["text"]], list(data["corpus"]["text"]), answers)
    return found


def _score(
    workspace: Workspace, setting: str, chosen: Sequence[SubmodelSummary], tasks: Mapping[str, Questions], evaluation: EvaluationParams
) -> list[Quality]:
    """All kinds of vectors of a setting's submodels, from one encoding per rank as in the evaluation."""
    import torch

    from mlembed_core.evaluate.encoder import StateStore
    from mlembed_core.model.encoder import Encoder, unit_vectors, usual_device

    torch.set_num_threads(evaluation.num_threads)
    encoder = Encoder.from_folder(workspace.models / setting, precision=evaluation.precision).to(usual_device())
    submodels = [Submodel(item.layers, item.dim, item.rank) for item in chosen]
    store = StateStore(encoder, submodels, batch_tokens=evaluation.batch_tokens)
    scores: dict[tuple[Submodel, VectorType], dict[str, float]] = {(each, kind): {} for each in submodels for kind in VectorType}
    for name, task in tasks.items():
        for submodel in submodels:
            queries, documents = (unit_vectors(store.states(texts, submodel), submodel.dim) for texts in (task.queries, task.documents))
            for kind in VectorType:
                scores[submodel, kind][name] = ndcg(queries, documents, task.answers, kind)
        store.clear()
    return [
        Quality(setting, submodel.name, kind.value, -(-submodel.dim * BITS[kind] // 8), fmean(of_tasks.values()), of_tasks)
        for (submodel, kind), of_tasks in scores.items()
    ]


def ndcg(queries: Vectors, documents: Vectors, answers: Sequence[set[int]], kind: VectorType) -> float:
    """Mean nDCG@10 where a document either answers a query or does not, computed by what mteb computes it with.

    Args:
        queries, documents: unit vectors; the documents' are stored as ``kind``.
        answers: rows of ``documents`` by query, none empty.
    """
    from pytrec_eval import RelevanceEvaluator

    stored = None if kind is VectorType.FLOAT32 else quantise(documents, kind)
    found: dict[str, dict[str, float]] = {}
    for number, query in enumerate(queries):
        rows = np.argsort(-(documents @ query), kind="stable")[:TOP] if stored is None else stored.search(query, TOP)[0]
        # Places, not scores, which it would put in order anew: equal ones by name.
        found[str(number)] = {str(row): float(-place) for place, row in enumerate(rows)}
    right = {str(number): {str(row): 1 for row in rows} for number, rows in enumerate(answers)}
    scores = RelevanceEvaluator(right, {f"ndcg_cut.{TOP}"}).evaluate(found)
    return fmean(of_query[f"ndcg_cut_{TOP}"] for of_query in scores.values())
