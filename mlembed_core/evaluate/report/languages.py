"""Scores by language (ISO 639-3) and by script (ISO 15924).

A question of a local task has a language and a script of its own; a subset of one of mteb's tasks those that mteb names. Within a
language, questions are averaged by task and tasks count alike, as in the suite's average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

from mlembed_core.evaluate.report.read import LanguageScore
from mlembed_core.evaluate.report.summarise import DIGITS, Group, SuiteSummary, smallest_within, whole_controls

MANY = "mul"
ScoresOf = Mapping[tuple[str, str], Iterable[LanguageScore]]  # (setting or control, submodel or "") → scores by task and code


def shown_systems(suite: SuiteSummary, share: float) -> dict[str, tuple[str, str]]:
    """The systems that stand in these tables, label → (setting, submodel): uncut models, the smallest good one, and the controls."""
    found = {setting.name: (setting.name, setting.reference) for setting in suite.settings}
    small = smallest_within(suite, share)
    if (small.setting, small.name) not in found.values():
        found[f"{small.setting} {small.name}"] = (small.setting, small.name)
    return found | {control.name: (control.name, control.submodel or "") for control in whole_controls(suite)}


def by_language(systems: Mapping[str, tuple[str, str]], scores: ScoresOf) -> list[Group]:
    """A row per language, those with most questions first."""
    return _grouped(systems, scores, lambda code: code.partition("-")[0])


def by_script(systems: Mapping[str, tuple[str, str]], scores: ScoresOf) -> list[Group]:
    """A row per script, those with most questions first."""
    return _grouped(systems, scores, lambda code: code.partition("-")[2] or "Zyyy")


def _grouped(systems: Mapping[str, tuple[str, str]], scores: ScoresOf, key: Callable[[str], str]) -> list[Group]:
    found = {label: _of_system(scores.get(system, ()), key) for label, system in systems.items()}
    first = next(iter(found.values()))  # an uncut model of ours: it has done every task
    rows = []
    for name, tasks in first.items():
        # A system that lacks a task of this language has no mean here: it would be one over other tasks.
        complete = {label: groups[name] for label, groups in found.items() if set(groups.get(name, {})) == set(tasks)}
        rows.append(
            Group(
                code=name,
                num_questions=sum(questions for _, questions in tasks.values()),
                num_tasks=len(tasks),
                scores={label: round(fmean(score for score, _ in of_tasks.values()), DIGITS) for label, of_tasks in complete.items()},
            )
        )
    return sorted(rows, key=lambda row: (row.code == MANY, -row.num_questions, -row.num_tasks, row.code))


def _of_system(entries: Iterable[LanguageScore], key: Callable[[str], str]) -> dict[str, dict[str, tuple[float, int]]]:
    """Group → task → (mean over its questions or subsets, number of questions)."""
    sums: dict[str, dict[str, list[float]]] = {}
    for entry in entries:
        total = sums.setdefault(key(entry.code), {}).setdefault(entry.task, [0.0, 0.0, 0.0])
        total[0] += entry.mean * entry.count
        total[1] += entry.count
        total[2] += entry.count if entry.single else 0
    return {
        group: {task: (weighted / count, int(questions)) for task, (weighted, count, questions) in tasks.items()}
        for group, tasks in sums.items()
    }
