"""Asset ``mteb_scores``: scores of every submodel, a partition per setting and suite."""

from __future__ import annotations

from assets.partitions import SCORES
from assets.raw_sources import raw_sources
from assets.stages import stage_asset
from assets.trained_model import trained_model

mteb_scores = stage_asset(
    "mteb_scores",
    stage="evaluate",
    group="evaluation",
    description="What mteb measures of every submodel (layers, dim, rank) of a setting on one suite.",
    kinds={"parquet"},
    deps=[trained_model, raw_sources],
    partitions=SCORES,
    reaches_out=True,
)
