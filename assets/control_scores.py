"""Asset ``control_scores``: what the models have to beat, a partition per suite."""

from __future__ import annotations

from assets.backbone import backbone
from assets.partitions import SUITES
from assets.raw_sources import raw_sources
from assets.stages import stage_asset
from assets.tokenizer import tokenizer

control_scores = stage_asset(
    "control_scores",
    stage="control",
    group="evaluation",
    description="The same tasks by systems that learnt nothing: the untrained backbone, TF-IDF, BM25.",
    kinds={"parquet"},
    deps=[backbone, raw_sources, tokenizer],
    partitions=SUITES,
    reaches_out=True,
)
