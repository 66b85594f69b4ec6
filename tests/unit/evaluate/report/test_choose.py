"""Limits in, a submodel out, with the command that exports it."""

from __future__ import annotations

import json

import pytest

from mlembed_core import cli
from mlembed_core.artifacts import Workspace
from mlembed_core.errors import SubmodelError
from mlembed_core.evaluate.report.choose import Limits, choose
from mlembed_core.evaluate.report.summarise import Report

# Sizes and averages stand in conftest.py: baseline uncut has .50 and 1000 bytes, 3d with one layer .45 and 600.


@pytest.fixture(scope="module")
def found(finished: Workspace) -> Report:
    return Report.load(finished.reports / "report.json")


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        (Limits(), ("baseline", "l2-d16-r16")),
        (Limits(max_mb=0.0007), ("3d", "l1-d16-r16")),
        (Limits(min_score=0.9), ("3d", "l1-d16-r16")),
        (Limits(min_score=0.8), ("3d", "l1-d4-r16")),  # as small as with 16 dims, and a shorter vector
        (Limits(min_score=0.91), ("baseline", "l2-d16-r16")),
        (Limits(max_mb=0.0007, setting="baseline"), ("baseline", "l1-d16-r16")),
        (Limits(max_vector_bytes=16, max_mb=0.001), ("3d", "l1-d4-r16")),
    ],
)
def test_the_smallest_that_is_good_enough_or_the_best_that_is_small_enough(
    found: Report, limits: Limits, expected: tuple[str, str]
) -> None:
    answer = choose(found, limits)
    assert (answer.submodel.setting, answer.submodel.name) == expected
    assert answer.share == pytest.approx(answer.submodel.average / 0.5)


def test_a_cut_table_is_exported_in_factors(found: Report) -> None:
    answer = choose(found, Limits(max_mb=0.0007, min_score=0.6, setting="3d"))
    assert answer.command == "mlembed export models/3d --layers 1 --dim 4 --rank 16"
    small = found.model_copy(deep=True)
    small.suites[0].settings[1].submodels[:] = [item for item in small.suites[0].settings[1].submodels if item.rank == 4]
    assert choose(small, Limits(setting="3d")).command == "mlembed export models/3d --layers 2 --dim 16 --rank 4 --format factorised"


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        (Limits(max_mb=0.0006, min_score=0.95), ["of this size is 3d l1-d16-r16", "good enough is baseline l2-d16-r16", "90.0%"]),
        (Limits(max_mb=0.0001), ["the smallest scored is 3d l1-d4-r16"]),
        (Limits(min_score=0.95, setting="3d"), ["the best scored is 3d l1-d16-r16"]),
        (Limits(setting="mrl"), ["no setting 'mrl'", "baseline, 3d"]),
    ],
)
def test_limits_that_nothing_meets(found: Report, limits: Limits, parts: list[str]) -> None:
    with pytest.raises(SubmodelError) as raised:
        choose(found, limits)
    assert all(part in str(raised.value) for part in parts), raised.value


def test_an_unknown_suite(found: Report) -> None:
    with pytest.raises(SubmodelError, match="no suite 'large'; give --suite with one of: small"):
        choose(found, Limits(), suite="large")


def test_the_command(finished: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(finished.root)
    monkeypatch.setattr("sys.argv", ["mlembed", "choose", "--min-score", "0.9", "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code
    answer = json.loads(capsys.readouterr().out)
    assert (answer["setting"], answer["name"], answer["command"]) == (
        "3d",
        "l1-d16-r16",
        "mlembed export models/3d --layers 1 --dim 16 --rank 16",
    )
