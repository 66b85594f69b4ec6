"""More sources than Dagster itself follows (it drops staleness behind 100 partitions or more): the pages still say what DVC says."""

import json
import os
import re
import shutil
import sys

import pandas as pd
import pytest

from benchmarks.scaled_workspace import make
from tests.integration.conftest import ROOT, run
from tests.integration.test_dagster import Servers, wait_until

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


BACKFILLED = int(os.environ.get("MLEMBED_TEST_SOURCES", "159"))  # the published collections
BACKFILL_PATIENCE_S = 60.0 * BACKFILLED
LAUNCH_BACKFILL = """mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) {
  __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
BACKFILL = """query($b: String!) { partitionBackfillOrError(backfillId: $b) { ... on PartitionBackfill { status numPartitions } } }"""
FAILED_RUNS = """{ runsOrError(filter: {statuses: [FAILURE]}) { ... on Runs { results { runId } } } }"""


@pytest.mark.slow
def test_a_backfill_of_all_sources(tmp_path):
    """Every source's files are there and none was read: one backfill, a run each, and DVC has them all on record."""
    folder = tmp_path / "workspace"
    make(ROOT, folder, sources=BACKFILLED, settings=1, suites=1)
    (folder / "pairs").mkdir()
    names = [f"source_{number:03}" for number in range(BACKFILLED)]
    for number, name in enumerate(names):
        texts = [f"text {number} {row}" for row in range(40)]
        columns = {"query": [f"query {text}" for text in texts], "passage": texts}
        columns |= {f"negative_{index}": [f"other {index} {text}" for text in texts] for index in range(1, 25)}
        pd.DataFrame(columns).to_parquet(folder / "pairs" / f"{name}.parquet")
    (folder / "dvc.lock").unlink()
    shutil.rmtree(folder / "data" / "sources")  # rows older than their files would be the sensor's matter, too
    servers = Servers(folder)
    try:
        params = {"assetSelection": [{"path": ["raw_sources"]}], "partitionNames": names}
        launched = servers.ask(LAUNCH_BACKFILL, p=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched

        def status():
            failed = [run["runId"] for run in servers.ask(FAILED_RUNS)["runsOrError"]["results"]]
            assert not failed, "\n".join(servers.logs(failed[0]))
            return servers.ask(BACKFILL, b=launched["backfillId"])["partitionBackfillOrError"]["status"]

        wait_until(lambda: status() not in {"REQUESTED", "CANCELING"}, BACKFILL_PATIENCE_S)
        assert status() == "COMPLETED_SUCCESS"
        assert {partition for asset, partition in servers.versions() if asset == "raw_sources"} == set(names)
    finally:
        servers.stop()
    changed = json.loads(run(folder, "dvc", "status", "--json").stdout)  # by name, each item would take DVC a second
    assert [item for item in changed if item.startswith("source@")] == []
