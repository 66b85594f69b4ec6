"""The report as one HTML page that needs nothing else: styles, pictures and script are inside, so that it works from a file.

What the page shows is worked out here and in the modules beside; ``template.html.jinja`` only lays it out. The script in it sorts and
filters the table and links its rows to the points; without script the page reads the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mlembed_core.config.language_names import language_name, script_name
from mlembed_core.evaluate.report import pictures, wording
from mlembed_core.evaluate.report.certainty import against_control
from mlembed_core.evaluate.report.languages import shown_systems
from mlembed_core.evaluate.report.origin import Origin
from mlembed_core.evaluate.report.origin import picture as origin_picture
from mlembed_core.evaluate.report.published import published
from mlembed_core.evaluate.report.read import Curve
from mlembed_core.evaluate.report.summarise import (
    Comparison,
    Cost,
    Group,
    Report,
    SettingSummary,
    SubmodelSummary,
    SuiteSummary,
    best_submodel,
    smallest_within,
    whole_controls,
)

TEMPLATE = Path(__file__).parent / "template.html.jinja"
MACHINE = ("processor", "device", "threads", "texts", "torch")  # what is said of where latency was measured
MAX_TASK_COLUMNS = 8  # of the table of submodels; suites with more tasks show averages per task type there


def render(
    report: Report,
    curves: Mapping[str, tuple[Curve, Curve]],
    origin: Origin,
    latency: Mapping[str, Any] | None = None,
    quantised: Mapping[str, Any] | None = None,
) -> str:
    """The page.

    Args:
        curves: (training, validation) loss per setting.
        origin: what the report was made from, so that two reports can be told apart.
        latency: what `mlembed latency` measured (machine, rows); None in the stage's out, which holds nothing measured.
        quantised: what `mlembed quantised` found (tasks, rows); None likewise.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(TEMPLATE.name).render(
        name=report.name,
        suites=[_suite(suite, number) for number, suite in enumerate(report.suites)],
        losses=_picture(pictures.losses(curves), "losses", "Training and validation loss by step"),
        elsewhere=_elsewhere(report),
        latency=None if latency is None else _latency(report, latency),
        quantised=None if quantised is None else _quantised(report, quantised),
        training=_training(report),
        validated=any(item.validation_loss is not None for item in report.training),
        hashes=origin.hashes,
        origin=_picture(origin_picture(origin), "origin", "What the report was made from"),
        num_colours=len(pictures.SETTING_COLOURS),
        light={name: colour for colour, name in pictures.CSS_NAMES.items()},
    )
    return page + "\n"


def _picture(picture: pictures.Picture, name: str, title: str) -> dict[str, Markup]:
    """Both widths of a picture; the style sheet shows one of them."""
    # Ours alone: names in it come from parameters that allow no markup.
    return {
        kind: Markup(pictures.svg(picture, width=width, name=f"{name}-{kind}", title=title))  # noqa: S704
        for kind, width in (("wide", pictures.WIDE), ("narrow", pictures.NARROW))
    }


def _suite(suite: SuiteSummary, number: int) -> dict[str, Any]:
    shapes = {setting.name: setting.shape for setting in suite.settings}
    best, small = best_submodel(suite), smallest_within(suite, wording.KEPT_SHARE)
    return {
        "id": f"suite-{number}",
        "name": suite.name,
        "benchmark": suite.benchmark,
        "num_tasks": len(suite.tasks),
        "cards": [
            _card("Highest average", best, shapes[best.setting]),
            _card(f"Smallest with at least {wording.percent(wording.KEPT_SHARE)} of it", small, shapes[small.setting]),
            *_control_card(suite, best),
        ],
        "findings": wording.findings(suite),
        "frontiers": [
            {
                "cost": cost.value,
                "label": pictures.COST_TITLES[cost][0],
                "picture": _picture(
                    pictures.frontier([suite], cost), f"frontier-{number}-{cost.value}", f"Quality against {pictures.COST_TITLES[cost][0]}"
                ),
            }
            for cost in Cost
        ],
        "retention": _picture(pictures.retention([suite]), f"retention-{number}", "What is left of the score after a cut"),
        "settings": [setting.name for setting in suite.settings],
        "table": _submodel_table(suite),
        "tasks": _task_table(suite),
        "certainty": _certainty_tables(suite),
        "spoken": [
            _group_table(suite, "script", suite.scripts, script_name),
            _group_table(suite, "language", suite.languages, language_name),
        ],
        "published": _published_table(suite),
        "command": wording.search_command(small, shapes[small.setting]),
        "python": wording.load_call(small, shapes[small.setting]),
    }


def _card(title: str, submodel: SubmodelSummary, shape: Any) -> dict[str, str]:
    return {
        "title": title,
        "number": wording.score(submodel.average),
        "note": f"{submodel.setting}, {wording.cut(submodel, shape)} · {wording.amount(submodel.bytes, Cost.BYTES)}",
    }


def _control_card(suite: SuiteSummary, best: SubmodelSummary) -> list[dict[str, str]]:
    """The control with the highest average, and who is ahead."""
    known = [(control.average, control) for control in whole_controls(suite) if control.average is not None]
    if not known:
        return []
    average, control = max(known, key=lambda item: item[0])
    difference = average - best.average
    note = f"{wording.control(control)}, {abs(difference):.3f} {'above' if difference > 0 else 'below'} our highest"
    return [{"title": "Best control", "number": wording.score(average), "note": note}]


def _submodel_table(suite: SuiteSummary) -> dict[str, Any]:
    """Columns and rows of the table of submodels; every cell with the number that it sorts by."""
    by_task = len(suite.tasks) <= MAX_TASK_COLUMNS
    types = list(dict.fromkeys(task.type for task in suite.tasks))
    members = {kind: [task.name for task in suite.tasks if task.type == kind] for kind in types}
    groups = (
        {wording.task(task.name): [task.name] for task in suite.tasks}
        if by_task
        else {wording.task_type(kind): members[kind] for kind in types}
    )
    top = max(submodel.average for submodel in suite.submodels)
    return {
        "groups": list(groups),
        "by_task": by_task,
        "rows": [
            _submodel_row(setting, index, submodel, groups, top)
            for index, setting in enumerate(suite.settings)
            for submodel in setting.submodels
        ],
    }


def _submodel_row(
    setting: SettingSummary, index: int, submodel: SubmodelSummary, groups: Mapping[str, list[str]], top: float
) -> dict[str, Any]:
    means = [sum(submodel.scores[task] for task in tasks) / len(tasks) for tasks in groups.values()]
    costs = [(wording.amount(submodel.cost(cost), cost), submodel.cost(cost)) for cost in Cost]
    return {
        "key": f"{setting.name}/{submodel.name}",
        "setting": setting.name,
        "colour": _colour(index),
        "cut": wording.cut(submodel, setting.shape),
        "size": f"{submodel.layers:06d}{submodel.dim:06d}{submodel.rank:06d}",
        "pareto": Cost.BYTES in submodel.pareto,
        "average": submodel.average,
        "share": max(0.0, submodel.average / top) if top > 0 else 0.0,
        "cells": [
            (wording.percent(submodel.retention), submodel.retention if submodel.retention is not None else -1),
            *costs,
            *((wording.score(mean), round(mean, 6)) for mean in means),
        ],
    }


def _task_table(suite: SuiteSummary) -> dict[str, Any]:
    """Scores by task of the uncut models beside the controls."""
    references = [(setting, setting.submodel(setting.reference)) for setting in suite.settings]
    controls = whole_controls(suite)
    keys = [task.name for task in suite.tasks]
    ours = {key: [reference.scores[key] for _, reference in references] for key in keys}
    theirs = {key: [control.scores[key] for control in controls] for key in keys}
    rows = [
        {
            "name": wording.task(task.name),
            "note": f"{wording.task_type(task.type)}, {task.metric}",
            "total": False,
            "cells": _cells(ours[task.name], theirs[task.name]),
        }
        for task in suite.tasks
    ]
    averages = _cells([reference.average for _, reference in references], [control.average for control in controls])
    rows.append({"name": "Average", "note": "", "total": True, "cells": averages})
    heads = [
        {"name": setting.name, "note": wording.cut(reference, setting.shape), "colour": _colour(index)}
        for index, (setting, reference) in enumerate(references)
    ]
    heads += [{"name": wording.control(control), "note": "control", "colour": None} for control in controls]
    return {"heads": heads, "rows": rows}


def _cells(ours: list[float], theirs: list[float | None]) -> list[dict[str, Any]]:
    best = max(value for value in [*ours, *theirs] if value is not None)
    cells = [{"text": wording.score(value), "best": value == best, "wins": False} for value in ours]
    return cells + [
        {"text": wording.score(value), "best": value == best, "wins": value is not None and value > max(ours)} for value in theirs
    ]


def _certainty_tables(suite: SuiteSummary) -> dict[str, Any] | None:
    """Differences with their intervals: of equal cuts from the first setting, and of uncut models from the controls."""
    if not suite.comparisons:
        return None
    first, *others = suite.settings
    cuts: dict[str, dict[str, Comparison]] = {}
    for setting in others:
        for item in suite.comparisons:
            if (item.setting, item.against) == (setting.name, first.name):
                cuts.setdefault(wording.cut(setting.submodel(item.submodel), setting.shape), {})[setting.name] = item
    controls = whole_controls(suite)
    against = {setting.name: {control.name: against_control(suite, setting, control) for control in controls} for setting in suite.settings}
    of = suite.comparisons[0]
    return {
        "level": wording.percent(of.level),
        "tasks": of.num_tasks,
        "all_tasks": of.num_tasks == len(suite.tasks),
        "questions": f"{of.num_questions:,}",
        "first": first.name,
        "others": [{"name": setting.name, "colour": _colour(index + 1)} for index, setting in enumerate(others)],
        "cuts": [(cut, [_sure(found.get(setting.name)) for setting in others]) for cut, found in cuts.items()],
        "controls": [wording.control(control) for control in controls],
        "against": [
            {
                "name": setting.name,
                "colour": _colour(index),
                "cells": [_sure(against[setting.name][control.name], tasks=len(suite.tasks)) for control in controls],
            }
            for index, setting in enumerate(suite.settings)
        ],
    }


def _sure(item: Comparison | None, tasks: int | None = None) -> dict[str, Any]:
    """A cell: the difference, its interval, and over how many tasks where not over all."""
    if item is None:
        return {"text": wording.NONE, "note": "", "certain": False}
    fewer = f", {item.num_tasks} tasks" if tasks not in (None, item.num_tasks) else ""
    return {"text": wording.difference(item.difference), "note": wording.interval(item) + fewer, "certain": item.certain}


def _group_table(suite: SuiteSummary, kind: str, groups: Sequence[Group], name: Callable[[str], str]) -> dict[str, Any]:
    """Scores by language or script, the best of a row marked: settings, the small submodel, controls."""
    known = {label for group in groups for label in group.scores}
    order = {label: index for index, label in enumerate(shown_systems(suite, wording.KEPT_SHARE))}
    systems = sorted(known & order.keys(), key=order.__getitem__)
    rows = []
    for group in groups:
        best = max(group.scores.values())
        cells = [{"text": wording.score(group.scores.get(label)), "best": group.scores.get(label) == best} for label in systems]
        rows.append(
            {"name": name(group.code), "code": group.code, "questions": group.num_questions, "tasks": group.num_tasks, "cells": cells}
        )
    return {"kind": kind, "systems": [wording.system(label) for label in systems], "rows": rows}


def _published_table(suite: SuiteSummary) -> dict[str, Any] | None:
    """What others report on this benchmark, our uncut models and the best beside them, highest first."""
    if suite.published is None:
        return None
    ours = {f"{setting.name}, uncut": setting.submodel(setting.reference).average for setting in suite.settings}
    theirs = {f"F2LLM-v2 {model}": score / 100 for model, score in zip(published().models, suite.published.scores, strict=True)}
    highest_first = sorted({**ours, **theirs}.items(), key=lambda item: -item[1])
    return {
        "rows": [{"name": name, "text": wording.score(value), "ours": name in ours} for name, value in highest_first],
        "source": published().source,
        "tasks": suite.published.tasks,
        "same": suite.published.tasks == len(suite.tasks),
    }


def _elsewhere(report: Report) -> dict[str, Any]:
    """Published scores on benchmarks that this report does not hold: for orientation, not to compare with."""
    here = {suite.benchmark for suite in report.suites}
    found = published()
    rows = [
        {"name": item.title, "note": f"{item.tasks} tasks", "cells": [wording.score(score / 100) for score in item.scores]}
        for item in found.benchmarks
        if item.benchmark not in here
    ]
    return {"source": found.source, "models": found.models, "rows": rows}


def _latency(report: Report, latency: Mapping[str, Any]) -> dict[str, Any]:
    """A row per measured submodel, beside what it scores on the first suite."""
    suite, known = report.suites[0], _places(report)
    rows = []
    for row in latency["rows"]:
        index, setting, item = known[row["setting"], row["submodel"]]
        cells = [wording.score(item.average), f"{row['one_ms']:.1f} ms", f"{row['slow_ms']:.1f} ms", f"{row['texts_per_second']:,.0f}"]
        rows.append({"cut": wording.cut(item, setting.shape), "setting": setting.name, "colour": _colour(index), "cells": cells})
    machine = ", ".join(f"{key} {latency['machine'][key]}" for key in MACHINE)
    return {"machine": machine, "suite": suite.name, "rows": rows}


def _quantised(report: Report, quantised: Mapping[str, Any]) -> dict[str, Any]:
    """A row per submodel and kind of vectors: bytes, scores, and what is left of the float32 average."""
    known, rows = _places(report), []
    whole: dict[tuple[str, str], float] = {}
    for row in quantised["rows"]:
        key = row["setting"], row["submodel"]
        index, setting, item = known[key]
        average = whole.setdefault(key, row["average"])  # float32 comes first
        cells = [row["vectors"], wording.amount(row["bytes_per_vector"], Cost.VECTOR), wording.score(row["average"])]
        cells += [wording.percent(row["average"] / average if average else None), *map(wording.score, row["scores"].values())]
        rows.append({"cut": wording.cut(item, setting.shape), "setting": setting.name, "colour": _colour(index), "cells": cells})
    return {"tasks": [wording.task(task) for task in quantised["tasks"]], "rows": rows}


def _places(report: Report) -> dict[tuple[str, str], tuple[int, SettingSummary, SubmodelSummary]]:
    """(setting, submodel) → number of the setting, the setting and the submodel, on the first suite."""
    settings = report.suites[0].settings
    return {(item.setting, item.name): (index, setting, item) for index, setting in enumerate(settings) for item in setting.submodels}


def _colour(index: int) -> int:
    return index % len(pictures.SETTING_COLOURS)


def _training(report: Report) -> list[dict[str, str]]:
    """What each setting was trained at, and how its loss ended."""
    settings = {setting.name: setting for setting in report.suites[0].settings}
    return [
        {
            "setting": item.setting,
            "steps": wording.NONE if item.num_steps is None else f"{item.num_steps:,}",
            "loss": wording.score(item.validation_loss),
            "dims": wording.sizes(settings[item.setting].mrl_dims),
            "layers": wording.sizes(settings[item.setting].mll_layers),
            "ranks": wording.sizes(settings[item.setting].mel_ranks) if settings[item.setting].mel_ranks else "dense table",
        }
        for item in report.training
    ]
