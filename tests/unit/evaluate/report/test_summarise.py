"""The numbers of report.json, against values worked out by hand from the made-up scores of conftest.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import ArtifactError
from mlembed_core.evaluate.report.summarise import Cost, Report, SubmodelSummary, pareto_line, whole_controls


@pytest.fixture(scope="module")
def values(finished: Workspace) -> Any:
    return json.loads((finished.reports / "report.json").read_text(encoding="utf-8"))


def submodels(values: Any) -> dict[str, Any]:
    return {f"{item['setting']} {item['name']}": item for setting in values["suites"][0]["settings"] for item in setting["submodels"]}


def controls(values: Any) -> dict[str, Any]:
    return {item["name"]: item for item in values["suites"][0]["controls"]}


def test_settings_and_tasks_keep_the_order_of_the_parameters(values: Any) -> None:
    suite = values["suites"][0]
    assert [setting["name"] for setting in suite["settings"]] == ["baseline", "3d"]
    assert [task["name"] for task in suite["tasks"]] == ["BetaSearch", "AlphaBitext"]
    assert [task["metric"] for task in suite["tasks"]] == ["ndcg_at_10", "accuracy"]


def test_a_task_is_the_mean_of_its_subsets_and_the_average_the_mean_of_its_tasks(values: Any) -> None:
    found = submodels(values)
    assert found["baseline l2-d16-r16"]["scores"] == {"BetaSearch": 0.6, "AlphaBitext": 0.4}
    averages = {name: item["average"] for name, item in found.items()}
    assert averages == {
        "baseline l2-d16-r16": 0.5,
        "baseline l2-d4-r16": 0.25,
        "baseline l1-d16-r16": 0.35,
        "baseline l2-d16-r4": 0.2,
        "baseline l1-d4-r16": 0.1,
        "3d l2-d16-r16": 0.4,
        "3d l2-d4-r16": 0.35,
        "3d l1-d16-r16": 0.45,
        "3d l2-d16-r4": 0.3,
        "3d l1-d4-r16": 0.4,
    }


def test_retention_is_the_share_of_the_uncut_average_of_the_same_setting(values: Any) -> None:
    found = submodels(values)
    assert found["baseline l2-d4-r16"]["retention"] == 0.5  # .25 / .50
    assert found["3d l2-d4-r16"]["retention"] == 0.875  # .35 / .40
    assert found["3d l1-d16-r16"]["retention"] == 1.125  # .45 / .40: a cut may score higher
    assert found["3d l2-d16-r16"]["retention"] == 1.0
    assert found["3d l2-d16-r16"]["full"] is True


def test_costs_come_from_the_score_table(values: Any) -> None:
    item = submodels(values)["3d l1-d4-r16"]
    assert (item["bytes"], item["flops_per_token"], item["bytes_per_vector"]) == (600, 100, 16)


def test_pareto_members_are_named_per_cost_cheapest_first(values: Any) -> None:
    pareto = values["suites"][0]["pareto"]
    names = {cost: [f"{item['setting']} {item['submodel']}" for item in line] for cost, line in pareto.items()}
    # bytes: 600 → .45 (3d, 1 layer); 700 has nothing better; 1000 → .50 (baseline, uncut)
    assert names["bytes"] == ["3d l1-d16-r16", "baseline l2-d16-r16"]
    assert names["flops_per_token"] == ["3d l1-d16-r16", "baseline l2-d16-r16"]
    # bytes per vector: 16 → .40 (3d, 1 layer, dim 4); 64 → .50
    assert names["bytes_per_vector"] == ["3d l1-d4-r16", "baseline l2-d16-r16"]
    assert submodels(values)["3d l1-d4-r16"]["pareto"] == ["bytes_per_vector"]
    assert submodels(values)["baseline l2-d4-r16"]["pareto"] == []


def test_a_control_without_a_task_has_no_average(values: Any) -> None:
    bm25 = controls(values)["bm25"]
    assert bm25["scores"] == {"BetaSearch": 0.55, "AlphaBitext": None}
    assert bm25["average"] is None
    assert controls(values)["char_tfidf"]["average"] == 0.525
    assert controls(values)["untrained"]["submodel"] == "l2-d16-r16"
    assert controls(values)["char_tfidf"]["submodel"] is None


def test_where_a_control_wins_is_said_per_setting(values: Any) -> None:
    wins = {name: item["wins"] for name, item in controls(values).items()}
    assert wins["char_tfidf"] == {
        "baseline": {"average": 0.025, "BetaSearch": 0.1},  # .525 − .5, .7 − .6; AlphaBitext .35 < .4
        "3d": {"average": 0.125, "BetaSearch": 0.2, "AlphaBitext": 0.05},  # .525 − .4, .7 − .5, .35 − .3
    }
    assert wins["bm25"] == {"baseline": {}, "3d": {"BetaSearch": 0.05}}
    assert wins["untrained"] == {"baseline": {}, "3d": {}}


@pytest.mark.parametrize("scores", [[None, 0.5], [float("nan"), 0.5]])
def test_a_control_with_half_a_task_has_no_score_there(made_up: Any, compare: Any, scores: list[float | None]) -> None:
    made_up.controls["bm25"] = {"BetaSearch": [0.55], "AlphaBitext": scores}
    bm25 = controls(compare(made_up.write()).to_json())["bm25"]
    assert bm25["scores"]["AlphaBitext"] is None
    assert bm25["average"] is None


def test_a_control_that_lacks_a_subset_has_no_score_on_the_task(made_up: Any, compare: Any) -> None:
    workspace = made_up.write()
    table = pd.read_parquet(made_up.table("controls"))
    table[(table["setting"] != "char_tfidf") | (table["subset"] != "fra-eng")].to_parquet(made_up.table("controls"))
    tfidf = controls(compare(workspace).to_json())["char_tfidf"]
    assert tfidf["scores"] == {"BetaSearch": 0.7, "AlphaBitext": None}
    assert tfidf["average"] is None


def test_an_untrained_model_scored_at_several_cuts_stands_for_its_largest(
    made_up: Any, compare: Any, rows_of: Any, write_table: Any
) -> None:
    workspace = made_up.write()
    rows = [row for sizes in ((1, 4, 16), (2, 16, 16), (2, 4, 16)) for row in rows_of("untrained", sizes, made_up.controls["untrained"])]
    write_table(made_up.table("controls"), rows)
    suite = compare(workspace).suites[0]
    assert len(suite.controls) == 3
    assert [control.submodel for control in whole_controls(suite)] == ["l2-d16-r16"]


def test_without_the_uncut_model_nothing_is_called_retention(made_up: Any, compare: Any) -> None:
    made_up.params = made_up.params.replace("[{}, ", "[")
    made_up.settings = {
        name: {sizes: tasks for sizes, tasks in table.items() if sizes != (2, 16, 16)} for name, table in made_up.settings.items()
    }
    values = compare(made_up.write()).to_json()
    assert {item["retention"] for item in submodels(values).values()} == {None}
    assert values["suites"][0]["settings"][0]["reference"] == "l2-d16-r4"  # all layers, all dims


def test_training_shows_the_validation_loss_of_the_full_model(values: Any) -> None:
    # Full model, step 40: source 0: 2 − 1, source 1: 3 − 1; mean 1.5.
    assert values["training"][0] == {"setting": "baseline", "num_steps": 40, "validation_loss": 1.5}


def submodel(name: str, size: int, average: float) -> SubmodelSummary:
    return SubmodelSummary.model_validate(
        {
            "setting": "a",
            "name": name,
            "layers": 1,
            "dim": 1,
            "rank": 1,
            "full": False,
            "average": average,
            "retention": None,
            "bytes": size,
            "flops_per_token": 1,
            "bytes_per_vector": 1,
            "pareto": [],
            "scores": {},
        }
    )


def test_pareto_line_drops_what_is_beaten_and_keeps_exact_ties() -> None:
    members = [
        submodel("large and worse", 30, 0.4),
        submodel("best", 20, 0.6),
        submodel("best again", 20, 0.6),
        submodel("as large, worse", 20, 0.5),
        submodel("small", 10, 0.5),
        submodel("larger, as good as small", 15, 0.5),
    ]
    assert [item.name for item in pareto_line(members, Cost.BYTES)] == ["small", "best", "best again"]


def test_report_json_is_read_back_as_written(finished: Workspace) -> None:
    path = finished.reports / "report.json"
    assert Report.load(path).to_json() == json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "version None"),
        ('{"version": 99}', "version 99, this code reads 2"),
        ('{"version": 2, "name": "a", "suites": []}', "training: Field required"),
    ],
)
def test_a_damaged_report_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message) as error:
        Report.load(path)
    assert str(path) in str(error.value)
