"""How sure a difference of two systems is: paired bootstrap over single questions, stratified over tasks.

Both systems answered the same questions, and most of what varies is how hard a question is; so questions are drawn again with both
answers, in pairs, within each part (subset and split) of each task. A difference is averaged as the suite's scores are: over the questions
of a part, over the parts of a task, over tasks. Tasks count alike, however many questions they ask.

Everything here is a function of the scores alone: the draws come from a fixed seed, so that a report is the same bytes every time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mlembed_core.errors import EvaluationError

LEVEL = 0.95
RESAMPLES = 10_000  # of which 250 lie beyond each end of a 95 % interval: its ends are good to about a 30th of its width
SEED = 17
MAX_DRAWS = 2**22  # counts held at a time: 32 MB


class Part(NamedTuple):
    """Where questions belong: they are averaged within a part, parts within a task."""

    task: str
    subset: str
    split: str


@dataclass(frozen=True)
class Answers:
    """One system's scores of the questions of one part; ``ids`` name the questions, in any order."""

    ids: tuple[str, ...]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """First system less second, with the interval and the two-sided p-value of "there is none".

    Attributes:
        level: share of resamples between ``low`` and ``high``.
        num_tasks, num_questions: what it stands on.
    """

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


def paired_bootstrap(
    first: Mapping[Part, Answers],
    second: Mapping[Part, Answers],
    *,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Difference:
    """Difference of two systems' averages over the tasks that ask single questions.

    Raises:
        EvaluationError: the two did not answer the same questions, or none at all.
    """
    return bootstrap(pair(first, second), level=level, resamples=resamples, seed=seed)


def pair(first: Mapping[Part, Answers], second: Mapping[Part, Answers]) -> dict[Part, NDArray[np.float64]]:
    """First less second, question by question.

    Raises:
        EvaluationError: the two did not answer the same questions, or none at all.
    """
    if set(first) != set(second):
        odd = ", ".join(sorted({part.task for part in set(first) ^ set(second)}))
        raise EvaluationError(f"only one of the two systems has scores of single questions on {odd}: compare what both have answered")
    differences = {}
    for part, ours in first.items():
        theirs = second[part]
        place = {name: index for index, name in enumerate(theirs.ids)}
        if len(place) != len(theirs.ids) or sorted(ours.ids) != sorted(place):
            raise EvaluationError(
                f"the two systems were asked different questions on {part.task} ({part.subset}, {part.split}): {len(ours.ids)} and "
                f"{len(theirs.ids)}, not the same ones. Score both on one version of the data."
            )
        differences[part] = ours.scores - theirs.scores[[place[name] for name in ours.ids]]
    return differences


def bootstrap(differences: Mapping[Part, NDArray[np.float64]], *, level: float, resamples: int, seed: int) -> Difference:
    """Interval and p-value of the stratified mean of paired ``differences``.

    The interval is that of percentiles. The p-value is twice the smaller share of resamples on one side of zero, counted with one more
    resample that equals zero, so that it never claims more than the resamples can show.

    Raises:
        EvaluationError: there are no questions, or a score is not finite.
    """
    if not differences:
        raise EvaluationError("there are no scores of single questions to compare; set `query_scores: true` in the suite")
    parts_of: dict[str, list[Part]] = defaultdict(list)
    for part in sorted(differences):
        if not len(differences[part]) or not np.isfinite(differences[part]).all():
            raise EvaluationError(f"{part.task} ({part.subset}, {part.split}): no questions, or a difference that is not finite")
        parts_of[part.task].append(part)
    generator = np.random.default_rng(seed)
    observed = 0.0
    resampled = np.zeros(resamples)
    for parts in parts_of.values():
        weight = 1 / (len(parts_of) * len(parts))
        for part in parts:
            observed += weight * float(differences[part].mean())
            resampled += weight * _resampled_means(differences[part], resamples, generator)
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    side = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return Difference(
        difference=observed,
        low=float(low),
        high=float(high),
        p_value=min(1.0, 2 * (side + 1) / (resamples + 1)),
        level=level,
        num_tasks=len(parts_of),
        num_questions=sum(map(len, differences.values())),
    )


def _resampled_means(differences: NDArray[np.float64], resamples: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Means of ``resamples`` draws with replacement.

    How often each distinct value is drawn is multinomial, and a ranking's score takes few values: exact, and far less to draw than the
    questions themselves.
    """
    values, counts = np.unique(differences, return_counts=True)
    shares = counts / counts.sum()
    size = max(1, MAX_DRAWS // len(values))
    drawn = [generator.multinomial(len(differences), shares, size=min(size, resamples - start)) for start in range(0, resamples, size)]
    return np.concatenate([found @ values for found in drawn]) / len(differences)
