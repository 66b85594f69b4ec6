"""Partitions: the items of ``configs/params.yaml`` at the time when the code location was loaded. After ``mlembed preset``, reload it."""

from __future__ import annotations

from collections.abc import Mapping

from dagster import MultiPartitionKey, MultiPartitionsDefinition, PartitionsDefinition, StaticPartitionsDefinition

from mlembed_core.artifacts import Workspace
from mlembed_core.config.load import load_all
from mlembed_core.config.params import Params

WORKSPACE = Workspace.find()
PARAMS = load_all(WORKSPACE.params_file, Params)

SOURCES = StaticPartitionsDefinition(sorted(PARAMS.sources))
SETTINGS = StaticPartitionsDefinition(list(PARAMS.settings))
SUITES = StaticPartitionsDefinition(list(PARAMS.suites))
SCORES = MultiPartitionsDefinition({"setting": SETTINGS, "suite": SUITES})


def item_of(stage: str, partitions: PartitionsDefinition | None, key: str | None) -> str:
    """DVC's name for a stage's item: ``train@3d``, of two axes ``evaluate@3d-embedded``."""
    if partitions is None or key is None:
        return stage
    return f"{stage}@{'-'.join(_dimensions(partitions, key).values())}"


def _dimensions(partitions: PartitionsDefinition, key: str) -> Mapping[str, str]:
    """Axis → value, in the order in which ``dvc.yaml`` names them. Read from the key's dimensions, never by cutting its text."""
    if not isinstance(partitions, MultiPartitionsDefinition):
        return {"item": key}
    multi = key if isinstance(key, MultiPartitionKey) else partitions.get_partition_key_from_str(key)
    return {name: multi.keys_by_dimension[name] for name in ("setting", "suite")}
