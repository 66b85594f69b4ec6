"""The report on a terminal of 80 columns or more: sizes and averages side by side, tasks against controls, the findings, and what to
type next.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlembed_core.evaluate.report import wording
from mlembed_core.evaluate.report.summarise import Cost, Report, SubmodelSummary, SuiteSummary, smallest_within, whole_controls

MAX_SUBMODELS = 40  # rows of one table; with more, only what is uncut or on the Pareto line is shown
MAX_KEPT = 4  # settings beside which there is room for what a cut keeps
MAX_TASKS = 12  # rows of one table; with more, averages per task type are shown


def show(report: Report, console: Console | None = None) -> None:
    """Print the report.

    Args:
        console: where to; None: standard output.
    """
    console = console or Console()
    for suite in report.suites:
        console.print()
        console.print(_submodel_table(report.name, suite))
        console.print()
        console.print(_task_table(suite))
        console.print()
        findings = Table.grid(padding=(0, 1))
        for sentence in wording.findings(suite):
            findings.add_row("•", Text(sentence))
        console.print(findings)
    console.print()
    console.print("Next", style="bold")
    for what, command in next_steps(report):
        console.print(Text(f"  {what}:", style="dim"))
        console.print(Text(f"    {command}"), soft_wrap=True)


def next_steps(report: Report) -> list[tuple[str, str]]:
    """What a person may want to do with these results, each with what to type."""
    suite = report.suites[0]
    small = smallest_within(suite, wording.KEPT_SHARE)
    shape = next(setting.shape for setting in suite.settings if setting.name == small.setting)
    steps = [
        ("look at everything in a browser", "reports/index.html"),
        (f"search with {small.setting}, {wording.cut(small, shape)}", wording.search_command(small, shape)),
        ("see the graph, the runs, their curves and the registered models (Dagster and MLflow)", "make ui"),
        ("make a registered model the champion, through the gate", "mlembed promote"),
        ("change a parameter and run what depends on it", "edit configs/params.yaml, then: dvc repro"),
    ]
    if "VIRTUAL_ENV" not in os.environ:
        steps.insert(0, ("have this clone's commands at hand", "source .venv/bin/activate"))
    return steps


def _submodel_table(name: str, suite: SuiteSummary) -> Table:
    """A row per cut, a column per setting: the average, and what of the uncut average it is."""
    shapes = {setting.name: setting.shape for setting in suite.settings}
    rows: dict[tuple[str, int, int], dict[str, SubmodelSummary]] = {}
    for submodel in suite.submodels:
        key = (wording.cut(submodel, shapes[submodel.setting]), submodel.bytes, submodel.bytes_per_vector)
        rows.setdefault(key, {})[submodel.setting] = submodel
    if len(suite.submodels) > MAX_SUBMODELS:
        rows = {key: entries for key, entries in rows.items() if any(item.full or Cost.BYTES in item.pareto for item in entries.values())}

    with_kept = len(suite.settings) <= MAX_KEPT
    caption = f"average{', and its share of the uncut one' if with_kept else ''}; bold: nothing smaller is as good"
    if sum(map(len, rows.values())) < len(suite.submodels):
        caption += f"\n{len(suite.submodels)} submodels in all: reports/index.html"
    table = _table(f"{name} on {suite.name} ({len(suite.tasks)} tasks)", caption)
    table.add_column("cut", no_wrap=True)
    for heading in ("weights", "vector"):
        table.add_column(heading, justify="right", no_wrap=True)
    for setting in suite.settings:
        table.add_column(setting.name, justify="right", no_wrap=True)
    for (cut, weights, vector), entries in rows.items():
        cells = [_average(entries.get(setting.name), with_kept=with_kept) for setting in suite.settings]
        table.add_row(cut, wording.amount(weights, Cost.BYTES), wording.amount(vector, Cost.VECTOR), *cells)
    return table


def _average(submodel: SubmodelSummary | None, *, with_kept: bool) -> Text:
    if submodel is None:
        return Text("")
    kept = f" {wording.percent(submodel.retention):>6}" if with_kept else ""
    return Text(f"{wording.score(submodel.average)}{kept}", style="bold" if Cost.BYTES in submodel.pareto else "")


def _task_table(suite: SuiteSummary) -> Table:
    """A row per task, the uncut models beside the controls."""
    controls = whole_controls(suite)
    references = [setting.submodel(setting.reference) for setting in suite.settings]
    table = _table("by task", "▲ a control scores higher than every uncut model; – it has no score there")
    table.add_column("task")
    for heading in [*(setting.name for setting in suite.settings), *map(wording.control, controls)]:
        table.add_column(heading, justify="right")
    for heading, tasks in _groups(suite).items():
        ours = [_mean([reference.scores[task] for task in tasks]) for reference in references]
        theirs = [_mean([control.scores[task] for task in tasks]) for control in controls]
        table.add_row(heading, *_cells(ours, theirs))
    table.add_section()
    table.add_row("Average", *_cells([reference.average for reference in references], [control.average for control in controls]))
    return table


def _cells(ours: Sequence[float | None], theirs: Sequence[float | None]) -> list[Text]:
    highest = max(value for value in ours if value is not None)
    cells = [Text(wording.score(value)) for value in ours]
    for value in theirs:
        wins = value is not None and value > highest
        cells.append(Text(f"▲ {wording.score(value)}" if wins else wording.score(value), style="yellow" if wins else ""))
    return cells


def _groups(suite: SuiteSummary) -> dict[str, list[str]]:
    """Rows of scores: the tasks, or with many of them their types. Heading → tasks behind it."""
    if len(suite.tasks) <= MAX_TASKS:
        return {wording.task(task.name): [task.name] for task in suite.tasks}
    groups: dict[str, list[str]] = {}
    for task in suite.tasks:
        groups.setdefault(wording.task_type(task.type), []).append(task.name)
    return {f"{kind} ({len(tasks)})": tasks for kind, tasks in groups.items()}


def _mean(scores: Sequence[float | None]) -> float | None:
    """None where a score is missing: a mean of the others would compare with nothing."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if len(known) == len(scores) else None


def _table(title: str, caption: str) -> Table:
    return Table(
        box=box.SIMPLE_HEAD,
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        caption_style="dim",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
