"""Asset ``backbone``: the weights that every setting starts from."""

from __future__ import annotations

from assets.stages import stage_asset
from assets.tokenizer import tokenizer
from assets.training_cache import training_cache

backbone = stage_asset(
    "backbone",
    stage="backbone",
    group="model",
    description="The weights that every setting starts from: from a configuration, initialised from counts, or pretrained.",
    kinds={"pytorch", "safetensors"},
    deps=[training_cache, tokenizer],
    reaches_out=True,
)
