"""A copy of the working tree with the tiny preset, the pipeline done in it by `dvc repro`: once for all integration tests."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# The executables of this environment first, as an activated shell has them.
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "HF_HUB_OFFLINE": "1",
}


def run(folder, *command, check=True, **variables):
    # The copy's code, not that of the tree which the environment was installed from.
    environment = {**ENVIRONMENT, "PYTHONPATH": str(folder), **variables}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    if check:
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done


def copy_of_the_tree(target):
    """What git would commit now, as a repository of its own, with the tiny preset in place."""
    for name in run(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("scores/", "dvc.lock")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, target / name)
    run(target, "git", "init", "--quiet")
    run(target, "mlembed", "preset", "tiny")
    return target


@pytest.fixture(scope="session")
def workspace(tmp_path_factory):
    folder = copy_of_the_tree(tmp_path_factory.mktemp("workspace"))
    run(folder, "dvc", "repro")
    return folder
