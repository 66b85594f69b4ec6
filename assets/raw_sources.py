"""Asset ``raw_sources``: checked text rows, a partition per source."""

from __future__ import annotations

from assets.partitions import SOURCES
from assets.stages import stage_asset

raw_sources = stage_asset(
    "raw_sources",
    stage="source",
    group="data",
    description="Text rows of one source, checked, with a `split` column: query, passage, negatives, language, label.",
    kinds={"parquet"},
    partitions=SOURCES,
)
