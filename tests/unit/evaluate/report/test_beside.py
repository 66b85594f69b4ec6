"""What stands beside the averages: how sure differences are, languages and scripts, published scores. Values by hand from conftest.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.config.load import read_yaml
from mlembed_core.errors import EvaluationError
from mlembed_core.evaluate.report.origin import Origin
from mlembed_core.evaluate.report.page import render
from mlembed_core.evaluate.report.published import published, published_on
from mlembed_core.evaluate.report.summarise import Report, SuiteSummary


@pytest.fixture(scope="module")
def suite(finished: Workspace) -> SuiteSummary:
    return Report.load(finished.reports / "report.json").suites[0]


def test_equal_cuts_and_controls_are_compared_by_single_questions(suite: SuiteSummary) -> None:
    found = {(item.setting, item.submodel, item.against): item for item in suite.comparisons}
    # BetaSearch alone has questions; those of a system differ from its mean as those of any other, so that nothing varies.
    expected = {
        ("3d", "l2-d16-r16", "baseline"): -0.1,
        ("3d", "l2-d4-r16", "baseline"): 0.1,
        ("3d", "l1-d16-r16", "baseline"): 0.1,
        ("3d", "l2-d16-r4", "baseline"): 0.2,
        ("3d", "l1-d4-r16", "baseline"): 0.3,
        ("baseline", "l2-d16-r16", "untrained"): 0.3,
        ("baseline", "l2-d16-r16", "char_tfidf"): -0.1,
        ("baseline", "l2-d16-r16", "bm25"): 0.05,
        ("3d", "l2-d16-r16", "untrained"): 0.2,
        ("3d", "l2-d16-r16", "char_tfidf"): -0.2,
        ("3d", "l2-d16-r16", "bm25"): -0.05,
    }
    assert {key: item.difference for key, item in found.items()} == pytest.approx(expected)
    for item in found.values():
        assert (item.low, item.high) == pytest.approx((item.difference, item.difference))
        assert item.certain
        assert (item.num_tasks, item.num_questions, item.level) == (1, 5, 0.95)


def test_languages_are_means_over_the_tasks_that_ask_in_them(suite: SuiteSummary) -> None:
    rows = {row.code: row for row in suite.languages}
    assert list(rows) == ["eng", "rus", "deu", "fra"]  # by number of questions; AlphaBitext has subsets alone
    # eng: BetaSearch .6 − .05 over three questions, AlphaBitext both subsets; rus: .6 + .075; deu: the one subset.
    assert rows["eng"].scores["baseline"] == pytest.approx((0.55 + 0.4) / 2)
    assert rows["rus"].scores["baseline"] == pytest.approx(0.675)
    assert rows["deu"].scores["baseline"] == pytest.approx(0.5)
    assert (rows["eng"].num_questions, rows["eng"].num_tasks) == (3, 2)
    assert (rows["deu"].num_questions, rows["deu"].num_tasks) == (0, 1)
    assert set(rows["rus"].scores) == {"baseline", "3d", "3d l1-d16-r16", "untrained", "char_tfidf", "bm25"}
    assert "bm25" not in rows["eng"].scores  # it has no bitext
    assert {row.code: row.scores["3d"] for row in suite.scripts} == pytest.approx({"Latn": (0.45 + 0.3) / 2, "Cyrl": 0.575})


def test_questions_that_differ_are_no_pairs(made_up: Any, compare: Any) -> None:
    workspace = made_up.write()
    path = made_up.table("3d")
    frame = pd.read_parquet(path)
    frame.loc[frame["query"] == "q4", "query"] = "q5"
    frame.to_parquet(path)
    with pytest.raises(EvaluationError, match=r"different questions on BetaSearch \(default, test\)"):
        compare(workspace)


def test_without_single_questions_the_page_goes_without(made_up: Any, compare: Any) -> None:
    workspace = made_up.write()
    for name in ("baseline", "3d", "controls"):
        frame = pd.read_parquet(made_up.table(name))
        frame[frame["query"].isna()].to_parquet(made_up.table(name))
    report = compare(workspace)
    assert report.suites[0].comparisons == []
    page = render(report, {}, Origin())
    assert "How sure the differences are" not in page
    assert "Question by question" not in page
    assert report.suites[0].languages[0].code == "eng"


def test_the_copy_of_the_published_scores_has_their_own_means() -> None:
    """The report's last row: means over the 17 benchmarks."""
    means = [71.72, 71.23, 70.27, 68.88, 66.45, 64.38, 60.16, 57.62]
    columns = zip(*(item.scores for item in published().benchmarks), strict=True)
    assert [sum(column) / 17 for column in columns] == pytest.approx(means, abs=0.006)
    assert [len(item.scores) for item in published().benchmarks] == [8] * 17


def test_published_scores_stand_beside_the_same_benchmark_only(suite: SuiteSummary) -> None:
    assert suite.published is None
    catalogue = read_yaml(Path(__file__).parents[4] / "configs" / "suites" / "published.yaml")["suites"]
    assert [item.benchmark for item in published().benchmarks] == [item["benchmark"] for item in catalogue.values()]
    english = suite.model_copy(update={"benchmark": "MTEB(eng, v2)"})
    english = english.model_copy(update={"published": published_on(english)})
    page = render(Report(name="made_up", suites=[english], training=[]), {}, Origin())
    assert "F2LLM-v2 0.6B" in page
    assert "of 41 tasks there and 2 here: compare with care" in page
    assert "16 benchmarks" in page  # the others, apart
    assert "Not comparable with the numbers above" in page
