"""More sources than Dagster itself follows (it drops staleness behind 100 partitions or more): the pages still say what DVC says."""

import json
import re
import sys

import pytest

from benchmarks.scaled_workspace import make
from tests.integration.conftest import ROOT, run

SOURCES = 101
SETTINGS, SUITES = ("baseline", "mrl"), ("suite_00", "suite_01")
CHANGED = "source_042"
# In a process of the workspace's own: three looks of the sensor and one without its memory.
LOOKS = """
import json, sys
from pathlib import Path
from dagster import AssetCheckKey, AssetKey, DagsterInstance, build_sensor_context
from assets import graph
from assets.importing import import_outs
from assets.partitions import WORKSPACE
from workflows.pipeline import PIPELINE
from workflows.sensors import dvc_state

home, changed = sys.argv[1:]
keys = [AssetCheckKey(AssetKey(this.name), "matches_dvc") for this in PIPELINE]
looks = []
with DagsterInstance.local_temp(home) as instance:
    cursor = None
    def look():
        global cursor
        context = build_sensor_context(instance=instance, cursor=cursor)
        said = dvc_state(context).skip_message
        cursor = context.cursor
        infos = instance.event_log_storage.get_asset_check_partition_info(keys)
        answers = [(info.check_key.asset_key.to_user_string(), info.partition_key, info.latest_execution_status.value) for info in infos]
        looks.append({"said": said, "answers": answers})
    look()
    look()
    looks.append(str(import_outs(instance, PIPELINE, status=graph.status(WORKSPACE))))
    before = Path(changed).read_bytes()
    Path(changed).write_bytes(before + b"\\n")
    look()
    Path(changed).write_bytes(before)
    look()
print(json.dumps(looks))
"""


@pytest.mark.slow
def test_one_source_of_a_hundred_changed_by_hand(tmp_path):
    folder = tmp_path / "workspace"
    make(ROOT, folder, sources=SOURCES, settings=len(SETTINGS), suites=len(SUITES))
    file = folder / "data" / "sources" / CHANGED / "rows.parquet"
    (tmp_path / "home").mkdir()
    said = run(folder, sys.executable, "-c", LOOKS, str(tmp_path / "home"), str(file)).stdout
    first, unchanged, again, changed, mended = json.loads(said.splitlines()[-1])

    num_items = 2 * SOURCES + len(SETTINGS) + len(SETTINGS) * len(SUITES) + len(SUITES) + 5
    told = re.search(rf"{num_items} materialisations, (\d+) check results; DVC calls 0 items changed", first["said"])
    assert told
    assert int(told[1]) > num_items  # matches_dvc of every item, and the predicates of those that have some
    assert {state for *_, state in first["answers"]} == {"SUCCEEDED"}
    assert "no file of the workspace has changed" in unchanged["said"]
    assert again == "0 materialisations, 0 check results"

    of_suites = {("control_scores", suite) for suite in SUITES}
    of_settings = {("mteb_scores", f"{setting}|{suite}") for setting in SETTINGS for suite in SUITES}
    failed = {(asset, partition) for asset, partition, state in changed["answers"] if state == "FAILED"}
    of_data = {("raw_sources", CHANGED), ("tokenized_corpus", CHANGED), ("tokenizer", None), ("data_card", None)}
    assert failed == of_data | of_suites | of_settings
    assert f"0 materialisations, {len(failed)} check results" in changed["said"]

    assert {state for *_, state in mended["answers"]} == {"SUCCEEDED"}
    assert len(mended["answers"]) == num_items
