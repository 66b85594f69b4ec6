"""Dagster's graph is DVC's, and its code location loads none of the heavy libraries."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from dagster import AssetSelection

from assets import graph
from assets.partitions import PARAMS, WORKSPACE
from workflows.definitions import defs
from workflows.jobs import JOBS
from workflows.pipeline import PIPELINE

ROOT = Path(__file__).resolve().parents[2]
STAGES = graph.stages(WORKSPACE)
OF_STAGE = {this.stage: this for this in PIPELINE if this.stage}
HEAVY = {"torch", "transformers", "mteb", "mlflow", "sentence_transformers", "datasets", "accelerate"}


def paths(entries):
    """Paths of a list of deps or outs, which may carry options."""
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def folder(path):
    """``data/sources/${key}`` → ``data/sources``."""
    return re.split(r"/?\$\{", path)[0]


def stages_that_write(path):
    """The stages whose outs are ``path``, lie below it, or hold it."""
    found = set()
    for name, stage in STAGES.items():
        for out in map(folder, paths([*stage.get("outs", []), *stage.get("metrics", [])])):
            if f"{out}/".startswith(f"{folder(path)}/") or f"{folder(path)}/".startswith(f"{out}/"):
                found.add(name)
    return found


def test_every_stage_is_an_asset():
    assert set(OF_STAGE) == set(STAGES)


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_an_asset_stands_on_what_its_stage_reads(stage):
    expected = {above for dep in paths(STAGES[stage]["deps"]) if not dep.startswith("mlembed_core/") for above in stages_that_write(dep)}
    assert {dep.stage for dep in OF_STAGE[stage].deps} == expected


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_an_assets_partitions_are_the_stages_items(stage):
    templated = {"source": PARAMS.sources, "tokenize": PARAMS.sources, "train": PARAMS.settings, "control": PARAMS.suites}
    items = set(OF_STAGE[stage].items().values())
    if stage == "evaluate":
        assert items == {f"evaluate@{setting}-{suite}" for setting in PARAMS.settings for suite in PARAMS.suites}
    elif stage in templated:
        assert items == {f"{stage}@{key}" for key in templated[stage]}
    else:
        assert items == {stage}


def test_each_asset_stands_after_those_upstream_of_it():
    seen = set()
    for this in PIPELINE:
        assert {dep.name for dep in this.deps} <= seen
        seen.add(this.name)


def test_jobs_name_stages_that_exist():
    for job in JOBS:
        assert set(job.tags["mlembed/stages"].split()) <= set(STAGES)
    everything = next(job for job in JOBS if job.name == "everything")
    assert set(everything.tags["mlembed/stages"].split()) == set(STAGES)


@pytest.mark.filterwarnings("ignore:Parameter `include_sources`")  # Dagster's own, of its own parser
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("group:data", {"raw_sources", "tokenizer", "tokenized_corpus", "training_cache", "data_card"}),
        ("key:training_cache+ and group:model", {"backbone", "trained_model"}),
        ("+key:tokenizer", {"raw_sources", "tokenizer"}),
    ],
)
def test_selections_as_text_work(text, expected):
    """With DVC in the same environment they do not: its pin of antlr breaks Dagster's grammar (docs/decisions/0002)."""
    found = AssetSelection.from_string(text).resolve([this.definition for this in PIPELINE])
    assert {key.to_user_string() for key in found} == expected


def test_every_asset_says_what_it_is():
    for spec in defs.resolve_all_asset_specs():
        assert spec.description
        assert spec.owners
        assert spec.group_name in {"data", "model", "evaluation", "registry"}
        assert spec.code_version
        assert spec.kinds


def test_the_code_location_stays_light():
    code = "import sys, workflows.definitions; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "dagster" in loaded
    assert not HEAVY & set(loaded)
