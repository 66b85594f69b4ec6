"""Missing, damaged and contradictory inputs: each is refused by name, and an earlier report stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from mlembed_core.errors import ArtifactError
from mlembed_core.evaluate.bootstrap import Part
from mlembed_core.evaluate.report.read import read_answers, read_loss_curve, read_scores, read_validation_curve
from mlembed_core.stages import report as stage


def fails(made_up: Any, *expected: str) -> None:
    with pytest.raises(ArtifactError) as error:
        stage.run(made_up.workspace)
    for text in expected:
        assert text in str(error.value)


@pytest.mark.parametrize(("setting", "command"), [("3d", "mlembed evaluate 3d small"), ("controls", "mlembed control small")])
def test_a_missing_table_is_named_with_the_command_that_makes_it(made_up: Any, setting: str, command: str) -> None:
    made_up.write()
    made_up.table(setting).unlink()
    fails(made_up, str(made_up.table(setting)), "does not exist", command)


@pytest.mark.parametrize("size", [0, 4, 1000])
def test_a_truncated_table_is_named(made_up: Any, size: int) -> None:
    made_up.write()
    path = made_up.table("baseline")
    path.write_bytes(path.read_bytes()[:size])
    fails(made_up, str(path), "not a readable parquet file", "mlembed evaluate baseline small")


def test_a_damaged_table_leaves_the_earlier_report_intact(made_up: Any) -> None:
    workspace = made_up.write()
    stage.run(workspace)
    before = {path.name: path.read_bytes() for path in workspace.reports.iterdir()}
    made_up.table("3d").write_bytes(b"PAR1 no more")
    fails(made_up, str(made_up.table("3d")))
    assert {path.name: path.read_bytes() for path in workspace.reports.iterdir()} == before


def change(made_up: Any, setting: str, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = made_up.table(setting)
    edit(pd.read_parquet(path)).to_parquet(path)


def test_a_table_without_a_column_is_named(made_up: Any) -> None:
    made_up.write()
    change(made_up, "3d", lambda table: table.drop(columns=["metric", "bytes_fp32"]))
    fails(made_up, str(made_up.table("3d")), "lacks the column(s) metric, bytes_fp32")


def test_answers_are_the_rows_of_single_questions_by_submodel_and_part(made_up: Any) -> None:
    made_up.write()
    found = read_answers(made_up.table("3d"), made_by="…")
    assert list(found) == [("3d", name) for name in ("l2-d16-r16", "l2-d4-r16", "l1-d16-r16", "l2-d16-r4", "l1-d4-r16")]
    (part, answers), *rest = found["3d", "l2-d4-r16"].items()
    assert not rest
    assert part == Part("BetaSearch", "default", "test")
    assert answers.ids == ("q0", "q1", "q2", "q3", "q4")
    assert answers.scores.mean() == pytest.approx(0.4)
    controls = read_answers(made_up.table("controls"), made_by="…")
    assert ("char_tfidf", "") in controls
    change(made_up, "3d", lambda table: table[table["query"].isna()])
    assert read_answers(made_up.table("3d"), made_by="…") == {}


def test_a_table_without_main_scores_is_refused(made_up: Any) -> None:
    made_up.write()
    change(made_up, "3d", lambda table: table[~table["main"]])
    fails(made_up, str(made_up.table("3d")), "holds no main score")


def test_a_table_of_another_setting_is_refused(made_up: Any) -> None:
    made_up.write()
    made_up.table("3d").write_bytes(made_up.table("baseline").read_bytes())
    fails(made_up, str(made_up.table("3d")), "column setting holds baseline, expected only 3d")


def test_a_submodel_that_the_parameters_name_must_be_scored(made_up: Any) -> None:
    made_up.settings["3d"] = {sizes: tasks for sizes, tasks in made_up.settings["3d"].items() if sizes != (2, 4, 16)}
    made_up.write()
    fails(made_up, str(made_up.table("3d")), "no scores of the submodel(s) l2-d4-r16")


def test_a_task_that_the_parameters_name_must_be_scored(made_up: Any) -> None:
    made_up.write()
    change(made_up, "baseline", lambda table: table[table["task"] != "AlphaBitext"])
    fails(made_up, str(made_up.table("baseline")), "AlphaBitext", "suites.small.tasks")


def test_a_setting_without_a_score_is_refused(made_up: Any) -> None:
    made_up.write()
    hole = {"submodel": "l1-d16-r16", "task": "BetaSearch"}
    change(made_up, "3d", lambda table: table.assign(score=table["score"].mask((table[list(hole)] == pd.Series(hole)).all(axis=1))))
    fails(made_up, str(made_up.table("3d")), "l1-d16-r16 has no score on BetaSearch")


def test_scores_over_other_subsets_are_not_compared(made_up: Any) -> None:
    made_up.write()
    change(made_up, "3d", lambda table: table[table["subset"] != "fra-eng"])
    fails(made_up, str(made_up.table("3d")), "AlphaBitext", "cannot be compared")


def test_scores_by_another_metric_are_not_compared(made_up: Any) -> None:
    made_up.write()
    change(made_up, "controls", lambda table: table.assign(metric=table["metric"].replace("accuracy", "f1")))
    fails(made_up, str(made_up.table("controls")), "scored on AlphaBitext by f1, the settings by accuracy")


def test_two_main_metrics_of_one_task_are_refused(made_up: Any) -> None:
    made_up.write()
    change(made_up, "3d", lambda table: table.assign(main=True))
    fails(made_up, str(made_up.table("3d")), "column metric holds several values")


def test_a_language_in_several_rows_does_not_weigh_a_subset_twice(made_up: Any) -> None:
    made_up.write()
    path = made_up.table("baseline")
    table = pd.read_parquet(path)
    twice = table[table["subset"] == "deu-eng"].assign(language="deu-Latn")
    pd.concat([table, twice]).to_parquet(path)
    first = read_scores(path, suite="small", setting="baseline", made_by="x")[0]
    assert first.tasks["AlphaBitext"].value == pytest.approx(0.4)  # (.5 + .3) / 2, not (.5 + .5 + .3) / 3


def test_a_model_without_its_facts_is_named(made_up: Any) -> None:
    workspace = made_up.write()
    path = workspace.models / "3d" / "mlembed.json"
    path.write_text('{"shape": {"layers": 2}}', encoding="utf-8")
    fails(made_up, str(path), "no proper shape", "mlembed train 3d")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a proper CSV file"),
        ("step,source\n1,a\n", "lacks the column(s) loss"),
        ("step,loss\n1,much\n", "not a proper CSV file"),
    ],
)
def test_a_damaged_curve_is_named(made_up: Any, text: str, message: str) -> None:
    workspace = made_up.write()
    path = workspace.models / "3d" / "loss_curve.csv"
    path.write_text(text, encoding="utf-8")
    fails(made_up, str(path), message, "mlembed train 3d")


def test_curves(made_up: Any) -> None:
    folder = made_up.write().models / "3d"
    assert read_loss_curve(folder / "loss_curve.csv").losses == (4.0, 3.5, 3.0, 2.5, 2.0)
    validation = read_validation_curve(folder / "validation_curve.csv")
    assert (validation.steps, validation.losses) == ((0, 40), (2.5, 1.5))
