"""Two systems compared for the gate: is one better, and is it worse anywhere by more than is allowed?

Everything is judged on single questions that both have answered (``evaluate/bootstrap.py``). With hundreds of languages some fall by
chance alone, so a fall counts against a version only where it is shown to exceed its bound, after Holm's correction for the number of
comparisons; a single comparison, the average, must be shown to be a gain (docs/decisions/0006).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlembed_core.config.gate import GateParams
from mlembed_core.evaluate.bootstrap import RESAMPLES, SEED, Difference, Part, bootstrap, pair
from mlembed_core.registry.tables import Scored

DIGITS = 4
MAX_NAMED = 5  # of what fell; the figures have all


@dataclass(frozen=True)
class Finding:
    """One question of the gate's, and the answer.

    Attributes:
        name: a predicate, as a check's.
        says: the answer in words, with its figures.
    """

    name: str
    passed: bool
    says: str
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One task or language: from what to what, and how likely that is if the true fall lies within the bound.

    Attributes:
        p_value: one-sided; ``corrected`` for all comparisons, None before that is known.
    """

    kind: str
    name: str
    before: float
    after: float
    questions: int
    bound: float
    p_value: float
    corrected: float = 1.0

    @property
    def change(self) -> float:
        return self.after - self.before

    def __str__(self) -> str:
        sure = f"p = {self.corrected:.2g}" if self.questions else "no single questions to test with"
        return f"{self.name} {self.before:.3f} → {self.after:.3f} ({self.change:+.3f}, allowed −{self.bound:g}; {sure})"

    def as_dict(self) -> dict[str, Any]:
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in asdict(self).items()}


def compare(candidate: Scored, other: Scored, gate: GateParams, *, name: str, drops: bool = True) -> list[Finding]:
    """All findings of ``candidate`` against ``other``.

    Args:
        name: of the finding about the average, e.g. ``beats_the_champion``.
        drops: also look at every task and language; False for a control, which is no predecessor.
    """
    comparable = _same_questions(candidate, other)
    if not comparable.passed:
        return [comparable]
    differences = pair(candidate.answers, other.answers)
    found = [comparable, _beats(candidate, other, differences, gate, name)]
    if drops:
        found += _drops(candidate, other, differences, gate)
    return found


def _same_questions(candidate: Scored, other: Scored) -> Finding:
    wrong = []
    for label in sorted(set(candidate.tasks) | set(other.tasks)):
        ours, theirs = candidate.datasets.get(label), other.datasets.get(label)
        if ours is None or theirs is None:
            wrong.append(f"{label} was scored for {candidate.name if theirs is None else other.name} alone")
        elif ours != theirs:
            wrong.append(f"{label}: {candidate.name} on {ours}, {other.name} on {theirs}")
        elif (candidate.tasks[label] is None) or (other.tasks[label] is None):
            wrong.append(f"{label} cannot be done by {candidate.name if candidate.tasks[label] is None else other.name}")
    if not wrong:
        for part in sorted(set(candidate.answers) | set(other.answers)):
            ours_ids, theirs_ids = (item.answers[part].ids if part in item.answers else () for item in (candidate, other))
            if ours_ids != theirs_ids:
                wrong.append(
                    f"{part.task} ({part.subset}, {part.split}): {len(ours_ids)} and {len(theirs_ids)} questions, not the same ones"
                )
    if not wrong and not candidate.answers:
        wrong.append("there are no scores of single questions; set query_scores: true in the suites")
    if wrong:
        advice = f"score both on today's data: `mlembed rescore {other.name}`, and `dvc repro` with `mlembed register` for the candidate"
        return Finding("asked_the_same_questions", passed=False, says=f"{_named(wrong)}; {advice}", figures={"differ": wrong})
    count = sum(len(answers.ids) for answers in candidate.answers.values())
    return Finding("asked_the_same_questions", passed=True, says=f"{len(candidate.tasks)} tasks, {count:,} questions")


def _beats(candidate: Scored, other: Scored, differences: Mapping[Part, NDArray[np.float64]], gate: GateParams, name: str) -> Finding:
    before, after = (fmean(score for score in item.tasks.values() if score is not None) for item in (other, candidate))
    sure = _bootstrap(differences, gate)
    p_value = one_sided(sure)
    passed = after - before >= gate.margin and p_value < 1 - gate.confidence
    figures = {"before": before, "after": after, "margin": gate.margin, "low": sure.low, "high": sure.high, "p_value": p_value}
    says = (
        f"average {before:.4f} ({other.name}) → {after:.4f} ({after - before:+.4f}; needed: at least {gate.margin:+g}, and p < "
        f"{1 - gate.confidence:.2g} that it is no gain; found: p = {p_value:.2g}, {gate.confidence:.0%} interval "
        f"{sure.low:+.4f} … {sure.high:+.4f})"
    )
    return Finding(name, passed, says, {key: round(value, 6) for key, value in figures.items()} | {"questions": sure.num_questions})


def one_sided(found: Difference) -> float:
    """The p-value of "it is no gain" from the two-sided one of "there is no difference"."""
    return found.p_value / 2 if found.difference > 0 else 1 - found.p_value / 2


def _drops(candidate: Scored, other: Scored, differences: Mapping[Part, NDArray[np.float64]], gate: GateParams) -> list[Finding]:
    comparisons = corrected([*_tasks(candidate, other, differences, gate), *_languages(candidate, other, differences, gate)])
    findings = []
    for kind, name in (("task", "no_task_drops"), ("language", "no_language_drops")):
        mine = [item for item in comparisons if item.kind == kind]
        fell = [item for item in mine if item.corrected < 1 - gate.confidence]
        fell.sort(key=lambda item: item.change)
        lowest = min(mine, key=lambda item: item.change)
        says = f"{len(fell)} of {len(mine)}: {_named(map(str, fell))}" if fell else f"none of {len(mine)}; the lowest: {lowest}"
        figures = {"compared": len(mine), "fell": [item.as_dict() for item in fell], "lowest": lowest.as_dict()}
        findings.append(Finding(name, not fell, says, figures))
    return findings


def _tasks(candidate: Scored, other: Scored, differences: Mapping[Part, NDArray[np.float64]], gate: GateParams) -> Iterable[Comparison]:
    for label, after in candidate.tasks.items():
        before = other.tasks[label]
        assert before is not None
        assert after is not None
        mine = {part: values for part, values in differences.items() if part.task == label}
        yield _comparison("task", label, before, after, mine, gate.max_task_drop, gate)


def _languages(candidate: Scored, other: Scored, differences: Mapping[Part, NDArray[np.float64]], gate: GateParams) -> Iterable[Comparison]:
    """A question counts for each of its languages; a pair of texts has two."""
    masks = {part: [set(label.split("+")) for label in candidate.languages[part]] for part in differences}
    counts = Counter(language for labels in masks.values() for label in labels for language in label)
    rare = {language for language, count in counts.items() if count < gate.min_questions}
    groups = {language: {language} for language in sorted(set(counts) - rare)}
    if rare:
        groups[f"{len(rare)} languages with fewer than {gate.min_questions} questions"] = rare
    for name, languages in groups.items():
        of_mine: dict[Part, NDArray[np.float64]] = {}
        scores: dict[str, dict[str, list[float]]] = {"before": defaultdict(list), "after": defaultdict(list)}
        for part, values in differences.items():
            mask = np.array([bool(label & languages) for label in masks[part]])
            if mask.any():
                of_mine[part] = values[mask]
                scores["before"][part.task].append(float(other.answers[part].scores[mask].mean()))
                scores["after"][part.task].append(float(candidate.answers[part].scores[mask].mean()))
        before, after = (fmean(fmean(values) for values in by_task.values()) for by_task in scores.values())
        yield _comparison("language", name, before, after, of_mine, gate.max_language_drop, gate)


def _comparison(
    kind: str, name: str, before: float, after: float, differences: Mapping[Part, NDArray[np.float64]], bound: float, gate: GateParams
) -> Comparison:
    """A task without single questions is judged by its score alone: beyond the bound it has fallen."""
    questions = sum(map(len, differences.values()))
    p_value = 1.0
    if before - after > bound:  # what lies within it needs no test
        shifted = {part: -values - bound for part, values in differences.items()}
        p_value = one_sided(_bootstrap(shifted, gate)) if questions else 0.0
    return Comparison(kind, name, before, after, questions, bound, p_value)


def corrected(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Holm's step-down correction: sure of all at once, and never weaker than Bonferroni's."""
    ordered = sorted(comparisons, key=lambda item: item.p_value)
    found, highest = [], 0.0
    for index, item in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - index) * item.p_value))
        found.append(Comparison(**{**asdict(item), "corrected": highest}))
    return found


def _bootstrap(differences: Mapping[Part, NDArray[np.float64]], gate: GateParams) -> Difference:
    return bootstrap(differences, level=gate.confidence, resamples=RESAMPLES, seed=SEED)


def _named(items: Iterable[str]) -> str:
    listed = list(items)
    more = f"; and {len(listed) - MAX_NAMED} more" if len(listed) > MAX_NAMED else ""
    return "; ".join(listed[:MAX_NAMED]) + more
