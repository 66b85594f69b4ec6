"""The tutorial's commands, taken from its page and run in its order, on the tiny preset and a stack with ports of its own."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import ENVIRONMENT, run
from tests.integration.test_stack import Team, homes, pytestmark  # noqa: F401  # a fixture, and where there is no PostgreSQL

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial.md"
# What the page says, and what is done here instead: the workspace is made by a fixture, its environment is that of the tests.
INSTEAD = {
    "make demo": "true",
    ". .venv/bin/activate": "true",
    "make stack-native": "START THE STACK",
    "extends: embedded": "extends: tiny",
    "source_weights: {modules: 2}": "num_steps: 60",  # in the tiny preset's 12 steps no loss falls, which the gate asks for
}


def shell(folder, script):
    identity = {f"GIT_{who}_{what}": "ada@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**ENVIRONMENT, **identity, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def team(workspace, tmp_path, homes):  # noqa: F811
    folder = tmp_path / "copy"
    shutil.copytree(workspace, folder, symlinks=True)
    (folder / ".env").write_text(run(folder, sys.executable, "-m", "workflows.stack", "secrets").stdout)
    team = Team(folder, homes / "tutorial")
    yield team
    if team.servers and team.servers.process.poll() is None:
        team.stop()


def test_the_tutorial(team):
    text = PAGE.read_text()
    for says, does in INSTEAD.items():
        assert says in text
        text = text.replace(says, does)
    for says, name in (("localhost:5000", "MLFLOW_PORT"), ("PGPORT=5433", "POSTGRES_PORT")):
        assert says in text
        text = text.replace(says, re.sub(r"\d+$", team.variables[name], says))
    ((file, preset),) = re.findall(r"```yaml\n# (\S+)\n(.*?)```", text, flags=re.DOTALL)
    (team.folder / file).write_text(preset)
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    start = blocks.index("START THE STACK\n")
    said = shell(team.folder, "\n".join(blocks[:start]))
    assert "evaluate@3d-mine" in said  # the new source is scored
    team.start()
    said = shell(team.folder, "\n".join(blocks[start + 1 :]))
    assert "champion none → 1" in said or "champion none → 2" in said
    assert "refused, for the reasons above" in said or "passes the gate" in said
    assert "modules has no champion" not in said
    assert len(re.findall(r"^ +\d  [+-]\d\.\d+  module \w+", said, flags=re.MULTILINE)) == 6  # three hits of two searches
