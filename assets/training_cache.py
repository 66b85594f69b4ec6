"""Asset ``training_cache``: all tokenised sources, memory-mapped."""

from __future__ import annotations

from assets.stages import stage_asset
from assets.tokenized_corpus import tokenized_corpus
from assets.tokenizer import tokenizer

training_cache = stage_asset(
    "training_cache",
    stage="cache",
    group="data",
    description="All sources joined for training: memory-mapped tokens and offsets, training rows and held-out rows.",
    kinds={"numpy"},
    deps=[tokenized_corpus, tokenizer],
)
