"""The score of every single question of a task, where the main score is the mean of such: what paired comparisons stand on.

Two models are compared far more sharply question by question than by their averages, since most of what varies is how hard a question
is. mteb computes the scores here too: per-query measures of a ranking reach us through the method that it offers for a task's own
metrics, and neighbours and predicted labels through its prediction files. Tasks whose main score is no mean over questions (clustering,
correlations, average precision of pairs) have none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mteb.abstasks import AbsTaskBitextMining, AbsTaskClassification, AbsTaskRetrieval
from mteb.abstasks.abstask import AbsTask
from numpy.typing import NDArray

from mlembed_core.artifacts import read_json
from mlembed_core.evaluate.tasks import is_local, question_code

# mteb's names of a ranking's measures, and those of the library that computes them for each query.
RANKING_MEASURES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}
ACCURACY = "accuracy"  # the share of questions answered right: the mean that bitext mining and classification are made of


@dataclass(frozen=True)
class Questions:
    """The scores of one part of a task.

    Attributes:
        ids: what names a question, equal for all models.
        codes: language and script of each question, ``deu-Latn``.
        scores: of each question; their mean is the metric of this subset and split.
    """

    subset: str
    split: str
    metric: str
    ids: list[str]
    codes: list[str]
    scores: NDArray[np.float64]


@dataclass
class Recorder:
    """Collects what one model answers to the questions of one task.

    Attributes:
        predictions: the folder that mteb shall write predictions to; None where they are not needed.
    """

    task: AbsTask
    predictions: Path | None = None
    rankings: list[Questions] = field(default_factory=list)

    def found(self) -> list[Questions]:
        """The questions' scores, after mteb is through with the task."""
        if self.predictions is None:
            return self.rankings
        path = self.predictions / self.task.prediction_file_name
        saved = read_json(path) if path.is_file() else {}
        return [
            _answered(self.task, subset, split, answer)
            for subset, splits in saved.items()
            if subset != "mteb_model_meta" and _data(self.task, subset) is not None
            for split, answer in splits.items()
        ]


@contextmanager
def recording(task: AbsTask, folder: Path) -> Iterator[Recorder]:
    """Record the questions' scores of one model while mteb evaluates it on ``task``.

    Args:
        folder: a scratch folder of this model and task.
    """
    if isinstance(task, AbsTaskRetrieval):
        recorder = Recorder(task)
        with _watching(task, recorder):
            yield recorder
    else:
        yield Recorder(task, folder if _answers_one_by_one(task) else None)


def _answers_one_by_one(task: Any) -> bool:
    """Whether mteb's prediction file of a task has an answer for each question, right or wrong."""
    if isinstance(task, AbsTaskClassification):
        plain = isinstance(task.input_column_name, str) and not task.is_cross_validation
        return plain and task.metadata.main_score == ACCURACY
    return isinstance(task, AbsTaskBitextMining) and not task.parallel_subsets


@contextmanager
def _watching(task: Any, recorder: Recorder) -> Iterator[None]:
    """Let a retrieval task's own metrics, which mteb asks for with every query's measures at hand, pass by the recorder."""
    measure = _measure(task.metadata.main_score)
    if measure is None:
        yield
        return
    own = task.task_specific_scores

    def noted(scores: dict[str, dict[str, float]], *rest: Any, hf_split: str, hf_subset: str, **more: Any) -> dict[str, float]:
        ids = sorted(scores)
        values = np.array([scores[query][measure] for query in ids])
        recorder.rankings.append(
            Questions(hf_subset, hf_split, task.metadata.main_score, ids, _codes_of_queries(task, hf_subset, hf_split, ids), values)
        )
        return own(scores, *rest, hf_split=hf_split, hf_subset=hf_subset, **more)  # type: ignore[no-any-return]

    task.task_specific_scores = noted
    try:
        yield
    finally:
        del task.task_specific_scores


def _measure(main_score: str) -> str | None:
    """``ndcg_cut_10`` for ``ndcg_at_10``; None where the main score is no mean over queries."""
    match = re.fullmatch(r"(\w+)_at_(\d+)", main_score)
    return f"{RANKING_MEASURES[match[1]]}_{match[2]}" if match and match[1] in RANKING_MEASURES else None


def _codes_of_queries(task: Any, subset: str, split: str, ids: Sequence[str]) -> list[str]:
    if not is_local(task.metadata):
        return [_code_of_subset(task, subset)] * len(ids)
    queries = task.dataset[subset][split]["queries"]
    codes = dict(zip(queries["id"], _codes_of_texts(task, subset, list(queries["text"])), strict=True))
    return [codes[query] for query in ids]


def _codes_of_texts(task: Any, subset: str, texts: Sequence[str]) -> list[str]:
    if not is_local(task.metadata):
        return [_code_of_subset(task, subset)] * len(texts)
    known = task.__dict__.setdefault("_question_codes", {})  # of one task for all its models
    for text in texts:
        if text not in known:
            known[text] = question_code(task, text)
    return [known[text] for text in texts]


def _code_of_subset(task: Any, subset: str) -> str:
    codes = task.metadata.hf_subsets_to_langscripts.get(subset, task.metadata.languages)
    return "+".join(codes) if len(codes) <= 2 else "mul-Zyyy"


def _data(task: Any, subset: str) -> Any:
    """The data of a subset by split, None where a task keeps it in another form than most."""
    return task.dataset.get(subset, task.dataset if subset == "default" else None)


def _answered(task: Any, subset: str, split: str, answer: Any) -> Questions:
    data = _data(task, subset)[split]
    if isinstance(task, AbsTaskBitextMining):
        texts = list(data["sentence1"])
        gold = [right for _, right in data["gold"]] if "gold" in data else range(len(texts))
        (neighbours,) = answer.values()
        correct = np.array([found["corpus_id"] for found in neighbours]) == np.array(gold)
        scores = correct.astype(np.float64)
    else:
        texts = [str(text) for text in data[task.input_column_name]]
        labels = np.array(data[task.label_column_name])
        scores = np.mean([np.array(predicted) == labels for predicted in answer], axis=0)  # over the fits that mteb averages
    ids = [str(index) for index in range(len(texts))]
    return Questions(subset, split, ACCURACY, ids, _codes_of_texts(task, subset, texts), scores)
