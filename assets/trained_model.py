"""Asset ``trained_model``: a checkpoint, a partition per 3D-ML setting."""

from __future__ import annotations

from assets.backbone import backbone
from assets.partitions import SETTINGS
from assets.stages import stage_asset
from assets.tokenizer import tokenizer
from assets.training_cache import training_cache

trained_model = stage_asset(
    "trained_model",
    stage="train",
    group="model",
    description="The checkpoint of one 3D-ML setting, with its loss curve. Launched through accelerate.",
    kinds={"pytorch", "safetensors"},
    deps=[backbone, training_cache, tokenizer],
    partitions=SETTINGS,
    expensive=True,
)
