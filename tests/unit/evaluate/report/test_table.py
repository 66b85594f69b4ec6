"""The terminal's table, and the command that prints it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from rich.console import Console

from mlembed_core import cli
from mlembed_core.artifacts import Workspace
from mlembed_core.evaluate.report import table
from mlembed_core.evaluate.report.summarise import Report


@pytest.fixture(scope="module")
def found(finished: Workspace) -> Report:
    return Report.load(finished.reports / "report.json")


def printed(report: Report, width: int) -> str:
    stream = io.StringIO()
    table.show(report, Console(file=stream, width=width))
    return stream.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_sizes_scores_and_controls_stand_side_by_side(found: Report, width: int) -> None:
    lines = [" ".join(line.split()) for line in printed(found, width).splitlines()]
    assert "cut weights vector baseline 3d" in lines
    assert "1 layer 600 B 64 B 0.350 70 % 0.450 112 %" in lines
    assert "task baseline 3d untrained char TF-IDF BM25" in lines
    assert "Beta search 0.600 0.500 0.300 ▲ 0.700 0.550" in lines
    assert "Alpha bitext 0.400 0.300 0.200 0.350 –" in lines
    assert "Average 0.500 0.400 0.250 ▲ 0.525 –" in lines
    assert max(map(len, lines)) <= width


def test_it_says_what_to_type_next(found: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert "source .venv/bin/activate" in printed(found, 80)
    monkeypatch.setenv("VIRTUAL_ENV", "somewhere")
    text = printed(found, 80)
    assert "activate" not in text
    assert 'mlembed search "what you look for" --model models/3d --layers 1' in text
    assert "reports/index.html" in text


def test_a_large_grid_is_cut_to_what_matters(found: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_SUBMODELS", 5)
    text = printed(found, 80)
    assert "10 submodels in all" in text
    assert "rank 4" not in text
    assert "uncut" in text


def test_many_tasks_become_means_per_type(found: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_TASKS", 1)
    lines = [" ".join(line.split()) for line in printed(found, 80).splitlines()]
    assert "Bitext mining (1) 0.400 0.300 0.200 0.350 –" in lines


def run_summary(*arguments: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["mlembed", "summary", *arguments])
        with pytest.raises(SystemExit) as leave:
            cli.main()
    return int(leave.value.code or 0)


def test_the_command_prints_the_table_or_json(
    found: Report, finished: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.root)
    assert run_summary() == 0
    assert "made_up on small (2 tasks)" in capsys.readouterr().out
    assert run_summary("--json") == 0
    assert json.loads(capsys.readouterr().out) == found.to_json()


def test_without_a_report_the_command_says_how_to_make_one(
    made_up: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made_up.write().root)
    assert run_summary() == 5
    assert "reports/report.json does not exist. `dvc repro` makes it" in capsys.readouterr().err
