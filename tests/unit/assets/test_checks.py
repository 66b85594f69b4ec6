"""The predicates as Dagster shows them, and what `dvc status` says beside them."""

from assets import checks
from mlembed_core.predicates import Verdict


def test_dvcs_word_is_passed_on():
    assert checks.verdict_of_status([]).passed
    said = checks.verdict_of_status(["changed deps: data/cache (modified)"])
    assert not said.passed
    assert "data/cache (modified)" in said.figures["dvc_says"].value


def test_what_blocks_is_an_error_and_the_rest_warns():
    assert checks.severity("source", "rows_are_present").value == "ERROR"
    assert checks.severity("train", "loss_fell").value == "WARN"
    assert checks.severity("source", checks.MATCHES_DVC).value == "WARN"


def test_figures_are_shown_as_dagster_takes_them():
    shown = checks.metadata(Verdict(passed=False, figures={"leaked": 1, "examples": ["zurich"]}))
    assert shown["leaked"] == 1
    assert shown["examples"].value == ["zurich"]
