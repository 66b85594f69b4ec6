"""The stage's out: complete, with its manifest, and the same bytes whatever the run's surroundings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlembed_core.artifacts import Workspace, manifest_hash, read_manifest, sha256_file, verify_files
from mlembed_core.evaluate.report import wording
from mlembed_core.stages import report as stage

FILES = {"report.json", "frontier.png", "retention.png", "loss.png", "index.html"}
RUN = "from mlembed_core.artifacts import Workspace; from mlembed_core.stages.report import run; run(Workspace.find())"


def test_the_out_is_complete_and_says_what_it_was_made_from(finished: Workspace) -> None:
    manifest = read_manifest(finished.reports)
    verify_files(finished.reports)
    assert set(manifest["files"]) == FILES
    assert manifest["inputs"] == {f"models/{name}": manifest_hash(finished.models / name) for name in ("baseline", "3d")}
    assert manifest["counts"] == {"settings": 2, "suites": 1, "submodels": 10, "tasks": 2}
    assert manifest["details"]["scores"]["scores/3d/small.parquet"] == sha256_file(finished.scores / "3d" / "small.parquet")


def report_elsewhere(workspace: Workspace, **environment: str) -> dict[str, bytes]:
    """Run the stage in a process of its own, with a matplotlibrc around that would change every picture if it were read."""
    (workspace.root / "matplotlibrc").write_text(
        "font.size: 30\nlines.linewidth: 5\nxtick.major.pad: 20\naxes.labelweight: bold\nsvg.fonttype: path\n", encoding="utf-8"
    )
    subprocess.run([sys.executable, "-c", RUN], cwd=workspace.root, env=os.environ | environment, check=True, timeout=120)
    return {path.name: path.read_bytes() for path in workspace.reports.iterdir()}


def test_two_runs_anywhere_give_the_same_bytes(finished: Workspace, made_up: Any, tmp_path: Path) -> None:
    here = {path.name: path.read_bytes() for path in finished.reports.iterdir()}
    # A matplotlib folder of its own makes it look for fonts anew, in the order of another hash seed.
    surroundings = {"PYTHONHASHSEED": "1234", "TZ": "Asia/Tokyo", "LC_ALL": "C", "MPLBACKEND": "svg", "SOURCE_DATE_EPOCH": "1"}
    there = report_elsewhere(made_up.write(), **surroundings, MPLCONFIGDIR=str(tmp_path / "matplotlib"))
    assert set(here) == FILES | {"manifest.json"}
    assert [name for name in here if here[name] != there[name]] == []
    assert not any(str(finished.root).encode() in content for content in here.values())


def test_without_validation_there_is_a_report_too(made_up: Any) -> None:
    made_up.validation = False
    stage.run(made_up.write())
    assert "Validation" not in (made_up.workspace.reports / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1024, "1.02 kB"), (11_412_000, "11.4 MB"), (200e6, "200 MB"), (1e9, "1 GB"), (2.5e12, "2.5 TB")],
)
def test_quantities_have_three_digits_and_a_prefix(value: float, text: str) -> None:
    assert wording.quantity(value, "B") == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DocstringToCode", "Docstring to code"),
        ("CldrBitext", "Cldr bitext"),
        ("STS22.v2", "STS22.v2"),
        ("BUCC", "BUCC"),
        ("my_task", "my_task"),
    ],
)
def test_task_names_break_into_words(name: str, text: str) -> None:
    assert wording.task(name) == text
