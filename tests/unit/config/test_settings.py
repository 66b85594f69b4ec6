"""What a setting may say of its terms."""

import pytest

from mlembed_core.config.base import Section, parse
from mlembed_core.config.data import Kind
from mlembed_core.config.settings import SettingParams, Settings
from mlembed_core.config.train import Objective
from mlembed_core.errors import ConfigError

SHARED = {Kind.RETRIEVAL: Objective(in_batch=True, num_hard_negatives=7), Kind.CLUSTERING: Objective(in_batch=False, num_hard_negatives=9)}


def setting(**values):
    return parse(SettingParams, values, origin="params.yaml")


def test_a_setting_changes_the_terms_of_the_kinds_that_it_names():
    own = setting(objectives={"retrieval": {"in_batch": False, "num_hard_negatives": 3}})
    assert own.objective_of(Kind.RETRIEVAL, SHARED) == Objective(in_batch=False, num_hard_negatives=3)
    assert own.objective_of(Kind.CLUSTERING, SHARED) is SHARED[Kind.CLUSTERING]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"self_distillation": 0.5}, "self_distillation=0.5 has no effect without mll"),
        ({"distillation": {"weight": 1}}, "distillation.teacher: missing"),
        ({"distillation": {"teacher": {"type": "local", "path": "x"}}}, "distillation.weight: missing"),
        ({"distillation": {"weight": 1, "teacher": {"type": "local", "path": "x", "sha256": "latest"}}}, r"sha256='latest'"),
        ({"distillation": {"weight": 1, "teacher": {"type": "hub", "repo": "a/b", "revision": "main"}}}, r"revision='main'"),
        ({"distillation": {"weight": 1, "teacher": {"type": "random"}}}, "'local', 'hub'"),
        ({"mel": {"rank": 8, "min_rank": 2}}, "min_rank=2 has no effect without sampled"),
    ],
)
def test_a_mistake_is_told(values, message):
    with pytest.raises(ConfigError, match=message):
        setting(**values)


def test_no_setting_takes_the_place_of_the_controls():
    class Named(Section):
        settings: Settings

    assert list(parse(Named, {"settings": {"control": {}}}, origin="params.yaml").settings) == ["control"]
    with pytest.raises(ConfigError, match=r"no setting can be called 'controls': scores/controls holds the scores of the controls"):
        parse(Named, {"settings": {"controls": {}}}, origin="params.yaml")
