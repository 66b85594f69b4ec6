"""When an asset refuses to start, and what its failures say."""

import subprocess
import sys
from pathlib import Path

import pytest
from dagster import AssetCheckEvaluation, AssetKey, AssetMaterialization, DagsterInstance, Failure
from dagster._core.errors import DagsterPipesExecutionError

from assets.backbone import backbone
from assets.graph import HASH_DIGITS
from assets.importing import OUT_OF_DATE
from assets.partitions import SOURCES
from assets.registered_model import registered_model
from assets.runner import REASON_FILE, reason_of
from assets.stages import ENTRY_TAG, refuse_on_failed_checks, run_item
from assets.trained_model import trained_model
from mlembed_core.errors import DataError, MachineError

PARTITION = SOURCES.get_partition_keys()[0]


def evaluation(asset, name, *, passed, partition=None):
    return AssetCheckEvaluation(asset_key=AssetKey(asset), check_name=name, passed=passed, metadata={}, partition=partition)


@pytest.fixture
def instance():
    with DagsterInstance.ephemeral() as instance:
        yield instance


def test_no_training_starts_on_data_that_failed_a_check(instance):
    refuse_on_failed_checks(instance, trained_model)  # nothing is known: nothing stands against it
    instance.report_runless_asset_event(evaluation("raw_sources", "rows_are_present", passed=False, partition=PARTITION))
    with pytest.raises(Failure) as caught:
        refuse_on_failed_checks(instance, trained_model)
    assert f"raw_sources[{PARTITION}]: rows_are_present" in caught.value.description
    assert not caught.value.allow_retries


def test_a_pass_and_a_warning_stand_against_nothing(instance):
    instance.report_runless_asset_event(evaluation("raw_sources", "rows_are_present", passed=True, partition=PARTITION))
    instance.report_runless_asset_event(evaluation("raw_sources", "matches_dvc", passed=False, partition=PARTITION))
    refuse_on_failed_checks(instance, trained_model)


def test_the_backbone_is_upstream_of_a_training_and_a_registration_of_nothing(instance):
    assert {"raw_sources", "tokenizer", "tokenized_corpus", "training_cache", "backbone"} == set(trained_model.upstream())
    assert "registered_model" not in registered_model.upstream()
    instance.report_runless_asset_event(evaluation("backbone", "vectors_are_finite", passed=False))
    refuse_on_failed_checks(instance, backbone)
    with pytest.raises(Failure, match="backbone: vectors_are_finite"):
        refuse_on_failed_checks(instance, trained_model)


class Ended:
    """Stands for the Pipes client of a runner that ended with a status."""

    def __init__(self, status, reason=None):
        self.status, self.reason = status, reason

    def run(self, *, env, **_):
        if self.reason is not None:
            Path(env[REASON_FILE]).write_text(self.reason)
        if self.status:
            raise DagsterPipesExecutionError(f"External execution process failed with code {self.status}")


def test_only_what_the_machine_or_a_server_did_is_tried_again():
    run_item(None, Ended(0), ["repro"])
    for status, again in ((MachineError.exit_code, True), (DataError.exit_code, False), (255, False)):
        with pytest.raises(Failure, match=f"ended with status {status}") as caught:
            run_item(None, Ended(status), ["repro", "--single-item", "cache"])
        assert caught.value.allow_retries is again


def test_a_failure_says_what_the_command_said():
    with pytest.raises(
        Failure, match=r"^rows.parquet is damaged. Run `dvc checkout`.\n\(`mlembed register 3d` ended with status 5"
    ) as caught:
        run_item(None, Ended(5, "rows.parquet is damaged. Run `dvc checkout`."), ["--", "mlembed", "register", "3d"])
    assert caught.value.metadata["status"].value == 5


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            ["> mlembed cache", "mlembed: the cache is damaged", "  by hand", "ERROR: failed to reproduce"],
            "the cache is damaged\n  by hand",
        ),
        (["mlembed: warning: not tracked", "mlembed: the loss is nan"], "the loss is nan"),
        (["mlembed: warning: not tracked", "ERROR: Unable to acquire lock"], "ERROR: Unable to acquire lock"),
        (["Running stage 'cache'"], ""),
    ],
)
def test_the_reason_is_the_last_message_of_ours(lines, reason):
    assert reason_of(lines) == reason


def test_the_runner_passes_on_the_status_of_the_stage():
    """DVC itself always leaves with 255; which status the stage ended with stands in its message."""
    code = (
        "import sys; from assets.runner import run\n"
        "class Pipes:\n"
        "    class log:\n"
        "        info = warning = staticmethod(print)\n"
        "words = 'ERROR: failed to reproduce: failed to run: mlembed source x, exited with 4'\n"
        "sys.exit(run([sys.executable, '-c', f'print({words!r}); raise SystemExit(255)'], Pipes))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "exited with 4" in done.stdout


def test_dagster_takes_what_is_said_of_an_item_that_is_out_of_date():
    AssetMaterialization("models", tags={ENTRY_TAG: f"{'0' * HASH_DIGITS}{OUT_OF_DATE}"})  # it refuses most signs in a tag
