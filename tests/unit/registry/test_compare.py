"""What the gate says of two score tables: gains that are shown, falls that are shown, and everything that cannot be compared."""

from pathlib import Path

import numpy as np
import pytest

from mlembed_core.config.gate import GateParams
from mlembed_core.config.grid import Shape
from mlembed_core.errors import ArtifactError
from mlembed_core.registry.compare import Comparison, compare, corrected
from mlembed_core.registry.tables import read_scored
from tests.unit.registry.scores import questions, write_table

SHAPE = Shape(layers=2, dim=16, rank=8, vocab=300)
GATE = GateParams(margin=0.01, max_task_drop=0.02, max_language_drop=0.05)


def scored(path: Path, name, tasks, **options):
    write_table(path / name / "suite.parquet", tasks, weights=name, **options)
    return read_scored(name, {"suite": path / name / "suite.parquet"}, cuts=[{}], shape=SHAPE)


def found(findings):
    return {finding.name: finding for finding in findings}


def answers(path, **tasks_of):
    """Two systems: ``before`` and ``after`` as task → questions."""
    return [scored(path, name, tasks_of[name]) for name in ("after", "before")]


def test_a_clear_gain_passes(tmp_path):
    after, before = answers(tmp_path, before={"A": questions(1, 400, 0.5)}, after={"A": questions(1, 400, 0.6)})
    said = found(compare(after, before, GATE, name="beats"))
    assert all(finding.passed for finding in said.values())
    assert said["beats"].figures["before"] == pytest.approx(before.tasks["suite/A"])
    assert said["beats"].figures["p_value"] < 0.01


def test_a_gain_below_the_margin_does_not(tmp_path):
    after, before = answers(tmp_path, before={"A": questions(1, 4000, 0.5)}, after={"A": questions(1, 4000, 0.508)})
    said = found(compare(after, before, GATE, name="beats"))["beats"]
    assert not said.passed
    assert said.figures["p_value"] < 0.05  # it is a gain, only too small a one
    assert "at least +0.01" in said.says


def test_a_gain_by_chance_does_not(tmp_path):
    """Of forty questions five are answered better and three worse: 0.05 on average, and nothing that forty questions can show."""
    labels, before_ = ["eng"] * 40, np.repeat([0.0, 1.0], 20)
    after_ = before_.copy()
    after_[:5], after_[20:23] = 1.0, 0.0
    after, before = answers(tmp_path, before={"A": (labels, before_)}, after={"A": (labels, after_)})
    said = found(compare(after, before, GATE, name="beats"))["beats"]
    assert after.tasks["suite/A"] - before.tasks["suite/A"] >= GATE.margin
    assert not said.passed


def test_a_task_that_falls_is_named_with_its_figures(tmp_path):
    after, before = answers(
        tmp_path,
        before={"A": questions(1, 400, 0.3), "B": questions(2, 400, 0.8)},
        after={"A": questions(1, 400, 0.7), "B": questions(2, 400, 0.6)},
    )
    said = found(compare(after, before, GATE, name="beats"))
    assert said["beats"].passed
    assert not said["no_task_drops"].passed
    assert "suite/B 0.797 → 0.590" in said["no_task_drops"].says
    assert "suite/A" not in said["no_task_drops"].says
    assert said["no_task_drops"].figures["fell"][0]["corrected"] < 0.05


def test_a_language_that_falls_behind_a_gain_is_named(tmp_path):
    languages = ("deu", "fra", "swa")
    labels, right = questions(1, 900, 0.5, languages)
    better = np.where(np.array(labels) == "swa", 0.0, 1.0)
    after, before = answers(tmp_path, before={"A": (labels, right)}, after={"A": (labels, better)})
    said = found(compare(after, before, GATE, name="beats"))
    assert said["beats"].passed
    assert said["no_task_drops"].passed
    assert not said["no_language_drops"].passed
    assert "1 of 3: swa" in said["no_language_drops"].says


def test_languages_with_few_questions_are_judged_together(tmp_path):
    labels, right = [f"l{index:03d}" for index in range(300)], np.ones(300)
    after, before = answers(tmp_path, before={"A": (labels, right)}, after={"A": (labels, np.arange(300) % 2.0)})
    said = found(compare(after, before, GATE, name="beats"))["no_language_drops"]
    assert said.figures["compared"] == 1
    assert not said.passed
    assert "300 languages with fewer than 20 questions" in said.says


def test_many_languages_fall_by_chance_and_none_is_blamed(tmp_path):
    """200 languages of 25 questions, answered alike in truth: some fall by far more than the bound."""
    labels = [f"l{index % 200:03d}" for index in range(5000)]
    before_, after_ = ((np.random.default_rng(seed).random(5000) < 0.5).astype(float) for seed in (1, 2))
    after, before = answers(tmp_path, before={"A": (labels, before_)}, after={"A": (labels, after_)})
    said = found(compare(after, before, GATE, name="beats"))["no_language_drops"]
    assert said.figures["lowest"]["after"] - said.figures["lowest"]["before"] < -0.3
    assert said.figures["lowest"]["p_value"] < 0.05  # alone it would have been
    assert said.passed


def test_a_task_without_single_questions_is_judged_by_its_score(tmp_path):
    gain = {"before": questions(1, 400, 0.5), "after": questions(1, 400, 0.8)}
    scores = {"before": 0.5, "after": 0.45}
    after, before = (scored(tmp_path, name, {"A": gain[name]}, alone={"Clusters": scores[name]}) for name in ("after", "before"))
    said = found(compare(after, before, GATE, name="beats"))
    assert said["beats"].figures["after"] == pytest.approx((after.tasks["suite/A"] + 0.45) / 2, abs=1e-6)
    assert "suite/Clusters 0.500 → 0.450" in said["no_task_drops"].says


@pytest.mark.parametrize(
    ("tasks", "data", "part"),
    [
        ({"A": questions(1, 50, 0.5), "B": questions(2, 50, 0.5)}, "1", "suite/B was scored for before alone"),
        ({"A": questions(1, 50, 0.5)}, "2", "suite/A: after on local/A@1, before on local/A@2"),
        ({"A": questions(1, 49, 0.5)}, "1", "50 and 49 questions, not the same"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_way_out(tmp_path, tasks, data, part):
    after = scored(tmp_path, "after", {"A": questions(1, 50, 0.9)})
    before = scored(tmp_path, "before", tasks, data=data)
    (said,) = compare(after, before, GATE, name="beats")
    assert not said.passed
    assert part in said.says
    assert "mlembed rescore before" in said.says


def test_a_table_without_the_cut_names_what_to_do(tmp_path):
    write_table(tmp_path / "suite.parquet", {"A": questions(1, 5, 0.5)}, weights="w")
    with pytest.raises(ArtifactError, match="version 3 was not scored at l2-d8-r8. Add it to evaluation.submodels"):
        read_scored("version 3", {"suite": tmp_path / "suite.parquet"}, cuts=[{"dim": 8}], shape=SHAPE)


def test_a_table_of_an_older_form_is_named(tmp_path):
    (tmp_path / "suite.parquet").write_bytes(b"PAR1 half of it")
    with pytest.raises(ArtifactError, match=r"suite\.parquet is damaged, or a score table of an older form"):
        read_scored("x", {"suite": tmp_path / "suite.parquet"}, cuts=[{}], shape=SHAPE)


def test_holms_correction_is_the_textbook_one():
    """Worked by hand: p = .01, .04, .03, .005 of four → .03, .06, .06, .02."""
    items = [Comparison("task", str(p), 0, 0, 9, 0, p) for p in (0.01, 0.04, 0.03, 0.005)]
    assert {item.p_value: round(item.corrected, 9) for item in corrected(items)} == {0.01: 0.03, 0.04: 0.06, 0.03: 0.06, 0.005: 0.02}
