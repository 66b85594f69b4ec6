"""Asset ``frontier_report``: all scores compared."""

from __future__ import annotations

from assets.control_scores import control_scores
from assets.mteb_scores import mteb_scores
from assets.stages import stage_asset
from assets.trained_model import trained_model

frontier_report = stage_asset(
    "frontier_report",
    stage="report",
    group="evaluation",
    description="Quality against bytes on disk, FLOPs and bytes per vector: JSON, pictures and one self-contained page.",
    kinds={"html"},
    deps=[mteb_scores, control_scores, trained_model],
)
