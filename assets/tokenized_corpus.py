"""Asset ``tokenized_corpus``: token ids, a partition per source."""

from __future__ import annotations

from assets.partitions import SOURCES
from assets.raw_sources import raw_sources
from assets.stages import stage_asset
from assets.tokenizer import tokenizer

tokenized_corpus = stage_asset(
    "tokenized_corpus",
    stage="tokenize",
    group="data",
    description="One source as token ids: rows with their queries inline, every document once. Test rows never get in.",
    kinds={"parquet"},
    deps=[raw_sources, tokenizer],
    partitions=SOURCES,
)
