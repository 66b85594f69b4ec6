"""What is measured beside the report, each kind in a file of ``.work/measured``, and the report's page once more with all of it inside.

None of it stands in an out: a time is no function of the inputs, and what takes another pass over the models is asked for when it is
wanted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlembed_core.artifacts import Workspace, read_json, sha256_file, write_json
from mlembed_core.config.load import load
from mlembed_core.evaluate.report import page
from mlembed_core.evaluate.report.summarise import Cost, Report, SubmodelSummary
from mlembed_core.stages import report as stage

REPORT = "report.json"
KINDS = ("latency", "quantised")  # as :func:`mlembed_core.evaluate.report.page.render` calls them


def read_report(workspace: Workspace) -> tuple[Report, str]:
    """The report, and the hash that says which one it is.

    Raises:
        ArtifactError: there is none, or it is damaged.
    """
    path = workspace.reports / REPORT
    return Report.load(path), sha256_file(path)


def chosen_submodels(report: Report, *, every: bool) -> list[SubmodelSummary]:
    """Each submodel once, whatever the number of suites: all, or those that are uncut or on a Pareto line."""
    found: dict[tuple[str, str], SubmodelSummary] = {}
    for suite in report.suites:
        for item in suite.submodels:
            if every or item.full or any(cost in item.pareto for cost in Cost):
                found.setdefault((item.setting, item.name), item)
    return list(found.values())


def page_file(workspace: Workspace) -> Path:
    """Where the page with what was measured stands."""
    return workspace.measured("report").with_suffix(".html")


def keep(workspace: Workspace, kind: str, told: dict[str, Any]) -> None:
    """Write what was measured, and the page with it and with the other kinds that were measured of the same report.

    Args:
        kind: one of ``KINDS``.
        told: JSON-able; under ``report`` the report's hash.
    """
    file = workspace.measured(kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, told)
    report, digest = read_report(workspace)
    known = {name: read_json(path) for name in KINDS if (path := workspace.measured(name)).is_file()}
    config = load(workspace.params_file, stage.Config)
    text = page.render(
        report,
        stage.read_curves(workspace, config),
        stage.origin_of(workspace, config),
        **{name: values for name, values in known.items() if values.get("report") == digest},
    )
    page_file(workspace).write_text(text, encoding="utf-8")
