"""Asset ``tokenizer``: one for all sources."""

from __future__ import annotations

from assets.raw_sources import raw_sources
from assets.stages import stage_asset

tokenizer = stage_asset(
    "tokenizer",
    stage="tokenizer",
    group="data",
    description="The tokenizer, trained on the sources or taken from a folder or the hub. It appends EOS itself.",
    kinds={"json"},
    deps=[raw_sources],
    reaches_out=True,
)
