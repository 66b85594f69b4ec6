"""All assets of the pipeline, each after those upstream of it."""

from __future__ import annotations

from assets.backbone import backbone
from assets.control_scores import control_scores
from assets.data_card import data_card
from assets.frontier_report import frontier_report
from assets.mteb_scores import mteb_scores
from assets.raw_sources import raw_sources
from assets.registered_model import registered_model
from assets.stages import StageAsset
from assets.tokenized_corpus import tokenized_corpus
from assets.tokenizer import tokenizer
from assets.trained_model import trained_model
from assets.training_cache import training_cache

PIPELINE: tuple[StageAsset, ...] = (
    raw_sources,
    tokenizer,
    tokenized_corpus,
    training_cache,
    data_card,
    backbone,
    trained_model,
    control_scores,
    mteb_scores,
    frontier_report,
    registered_model,
)
