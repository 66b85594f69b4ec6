"""dvc.yaml tells the truth about its stages: code, parameters, commands."""

import importlib
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from mlembed_core.config.params import Params
from tests.contract.stage_code import PACKAGE, ROOT, stage_code, stages_in

STAGES = stages_in(YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8")))
FIX = "run `python -m tests.contract.stage_code --write`"


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_closure_of_the_imports(stage):
    listed = [dep for dep in STAGES[stage]["deps"] if dep.startswith(f"{PACKAGE}/")]
    assert listed == stage_code(stage), FIX


@pytest.mark.parametrize("stage", STAGES)
def test_parameters_are_the_sections_that_the_stage_reads(stage):
    listed = {path.split(".")[0] for entry in STAGES[stage]["params"] for path in entry["configs/params.yaml"]}
    config = importlib.import_module(f"{PACKAGE}.stages.{stage}").Config
    assert listed == set(config.model_fields)
    assert listed <= set(Params.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_is_one_command_named_like_it(stage):
    assert STAGES[stage]["cmd"].split()[:2] == ["mlembed", stage]


@pytest.mark.parametrize("stage", STAGES)
def test_every_file_that_a_stage_imports_is_listed(stage):
    """The static closure against a real interpreter: importing a stage loads no module of ours that the list lacks."""
    ours = f"[m.__file__ for n, m in sys.modules.items() if n.startswith('{PACKAGE}.')]"
    code = f"import sys, {PACKAGE}.stages.{stage}; print(*{ours}, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = {line.removeprefix(f"{ROOT}/") for line in done.stdout.splitlines() if line.startswith(str(ROOT))}
    assert loaded <= set(STAGES[stage]["deps"]), FIX
