"""How sure the differences in a report are, from the scores of single questions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mlembed_core.evaluate.bootstrap import Answers, Part, paired_bootstrap
from mlembed_core.evaluate.report.summarise import (
    DIGITS,
    Comparison,
    ControlSummary,
    SettingSummary,
    SubmodelSummary,
    SuiteSummary,
    whole_controls,
)

AnswersOf = Mapping[tuple[str, str], Mapping[Part, Answers]]  # (setting or control, submodel or "") → what it answered


def compare_settings(suite: SuiteSummary, answers: AnswersOf) -> list[Comparison]:
    """Each setting against the first at every cut that both have, and the uncut models against every control.

    Where one of two has not answered everything (BM25 ranks, and no more), the shared parts are compared. Nothing where the suite
    keeps no scores of single questions.

    Raises:
        EvaluationError: two systems were asked different questions.
    """
    found = []
    for ours, theirs in _pairs(suite):
        first, second = (answers.get((item.setting, item.name), {}) for item in (ours, theirs))
        if comparison := _compared(ours, theirs.setting, theirs.name, first, second):
            found.append(comparison)
    for setting in suite.settings:
        reference = setting.submodel(setting.reference)
        for control in whole_controls(suite):
            key = (control.name, control.submodel or "")
            if comparison := _compared(reference, *key, answers.get((reference.setting, reference.name), {}), answers.get(key, {})):
                found.append(comparison)
    return found


def _pairs(suite: SuiteSummary) -> Iterator[tuple[SubmodelSummary, SubmodelSummary]]:
    """Equal cuts of two settings: the same sizes, or whole on the axes where both are."""
    base = suite.settings[0]
    at = {_cut(item, base): item for item in base.submodels}
    for other in suite.settings[1:]:
        for item in other.submodels:
            if (same := at.get(_cut(item, other))) is not None:
                yield item, same


def _cut(item: SubmodelSummary, setting: SettingSummary) -> tuple[int | None, ...]:
    """Sizes by axis, None where whole: a table of full rank and a dense one are the same cut."""
    axes = ("layers", "dim", "rank")
    return tuple(None if getattr(item, axis) == getattr(setting.shape, axis) else getattr(item, axis) for axis in axes)


def _compared(
    ours: SubmodelSummary, other: str, submodel: str, first: Mapping[Part, Answers], second: Mapping[Part, Answers]
) -> Comparison | None:
    shared = [part for part in first if part in second]
    if not shared:
        return None
    result = paired_bootstrap({part: first[part] for part in shared}, {part: second[part] for part in shared})
    return Comparison(
        setting=ours.setting,
        submodel=ours.name,
        against=other,
        against_submodel=submodel or None,
        difference=round(result.difference, DIGITS),
        low=round(result.low, DIGITS),
        high=round(result.high, DIGITS),
        p_value=round(result.p_value, DIGITS),
        level=result.level,
        num_tasks=result.num_tasks,
        num_questions=result.num_questions,
    )


def comparison(suite: SuiteSummary, submodel: SubmodelSummary, against: str) -> Comparison | None:
    """The comparison of a submodel with a setting or control, where there is one."""
    return next((item for item in suite.comparisons if (item.setting, item.submodel, item.against) == (*_key(submodel), against)), None)


def _key(submodel: SubmodelSummary) -> tuple[str, str]:
    return submodel.setting, submodel.name


def against_control(suite: SuiteSummary, setting: SettingSummary, control: ControlSummary) -> Comparison | None:
    """The comparison of a setting's uncut model with a control."""
    return comparison(suite, setting.submodel(setting.reference), control.name)
