"""A whole pipeline disturbed while it runs: it always ends, after plain re-runs, with the bytes of the undisturbed run."""

import json
import os
import shutil

import pytest

from tests.faults.injector import Injector, clean, small_disk

NUM_FAULTS = int(os.environ.get("MLEMBED_TEST_FAULTS", "50"))
SEED = int(os.environ.get("MLEMBED_TEST_FAULTS_SEED", "8"))
DISK = "400m"


@pytest.fixture
def copy(workspace, tmp_path):
    """A copy of the finished pipeline, on a small disk of its own where that can be had."""
    with small_disk(tmp_path / "copy", DISK) as folder:
        shutil.copytree(workspace, folder, symlinks=True, dirs_exist_ok=True)
        for path in folder.glob("mlflow.db*"):
            path.unlink()
        yield folder


def test_a_stage_whose_dvc_is_killed_goes_too_and_is_made_again(copy):
    """The short run: one fault of fifty."""
    injector, item = Injector(copy, seed=1), "tokenize@python_topics"
    injector.killed(item, None, "dvc", "repro", "--single-item", item)
    injector.wait_until_gone()
    status, output = injector.repro("--single-item", item)
    assert status == 0, output
    assert clean(injector.lock) == injector.expected


@pytest.mark.slow
def test_fifty_faults_and_not_one_byte_lost(copy):
    injector = Injector(copy, SEED)
    # Each kind at least three times, the rest by chance.
    kinds = injector.faults * 3 + injector.draw.choices(injector.faults, k=max(0, NUM_FAULTS - 3 * len(injector.faults)))
    injector.draw.shuffle(kinds)
    outcomes = []
    for number, fault in enumerate(kinds[:NUM_FAULTS], start=1):
        outcomes.append(injector.inflict(fault))
        print(number, json.dumps(outcomes[-1].__dict__), flush=True)
    bitten = sum(outcome.bit for outcome in outcomes)
    print(f"{len(outcomes)} faults, {bitten} of them in mid-work, all recovered; plain re-runs: {sum(o.reruns for o in outcomes)}")
    assert bitten > len(outcomes) / 2
