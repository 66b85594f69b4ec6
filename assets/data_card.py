"""Asset ``data_card``: what the training data are."""

from __future__ import annotations

from assets.raw_sources import raw_sources
from assets.stages import stage_asset
from assets.tokenized_corpus import tokenized_corpus
from assets.training_cache import training_cache

data_card = stage_asset(
    "data_card",
    stage="card",
    group="data",
    description="Rows, tokens, languages, scripts, kinds, licences, lengths, and what was dropped: JSON, a picture and one page.",
    kinds={"html"},
    deps=[raw_sources, tokenized_corpus, training_cache],
)
