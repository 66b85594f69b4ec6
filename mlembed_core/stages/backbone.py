"""Stage ``backbone``: the weights that every setting starts from, as a checkpoint folder of the same form as a trained model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt

from mlembed_core.artifacts import Workspace, write_manifest, writing
from mlembed_core.config.base import Section
from mlembed_core.config.load import load
from mlembed_core.config.model import BackboneParams, Initialisation, RandomBackbone, RegistryBackbone
from mlembed_core.data.store import TrainingCache
from mlembed_core.model.checkpoint import num_parameters, pooling_of, tokenizer_facts, write_checkpoint
from mlembed_core.model.count_init import initialise_from_counts
from mlembed_core.model.network import Network
from mlembed_core.model.pack import Bucket, pack
from mlembed_core.model.prune import prune
from mlembed_core.model.resolve import check_positions, load_folder, resolve_backbone
from mlembed_core.registry.resolve import SCHEME, resolve

CALIBRATION_TOKENS = 8192  # of a forward pass


class Config(Section):
    """What this stage reads of the parameters."""

    backbone: BackboneParams
    seed: NonNegativeInt


def run(workspace: Workspace) -> None:
    """Write ``data/backbone/``."""
    config = load(workspace.params_file, Config)
    tokenizer = tokenizer_facts(workspace.tokenizer)
    pooling = config.backbone.pooling
    if isinstance(config.backbone, RegistryBackbone):
        folder = resolve(f"{SCHEME}{config.backbone.name}/{config.backbone.version}")
        model, pooling = load_folder(folder), pooling or pooling_of(folder)
    else:
        model = resolve_backbone(config.backbone, root=workspace.root, vocab_size=tokenizer.vocab_size, seed=config.seed)
    inputs = {"tokenizer": workspace.tokenizer}
    if config.backbone.prune is not None:
        cache = TrainingCache.open(workspace.cache, tokenizer=workspace.tokenizer)
        model = prune(model, config.backbone.prune, _calibration(cache, config.backbone.prune.num_texts))
        inputs["cache"] = workspace.cache
    check_positions(model, tokenizer.max_length)
    if isinstance(config.backbone, RandomBackbone) and config.backbone.initialisation is Initialisation.COUNTS:
        cache = TrainingCache.open(workspace.cache, tokenizer=workspace.tokenizer)
        initialise_from_counts(model, _pairs(cache), eos_id=tokenizer.eos_id, seed=config.seed)
        inputs["cache"] = workspace.cache
    network = Network(model, pooling=pooling)
    with writing(workspace, workspace.backbone) as draft:
        write_checkpoint(draft, network, tokenizer_folder=workspace.tokenizer, details={"setting": None})
        write_manifest(
            draft,
            stage="backbone",
            params=config.model_dump(mode="json"),
            inputs=inputs,
            counts={"parameters": num_parameters(network), "vocabulary": network.shape.vocab},
        )


def _calibration(cache: TrainingCache, num_texts: int) -> Iterator[Bucket]:
    """Training queries and passages in turn, evenly spaced over the sources' rows."""
    rows = np.concatenate([np.arange(source.train.start, source.train.stop) for source in cache.sources])
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), (num_texts + 1) // 2)).round().astype(np.int64)] if len(rows) else rows
    ids = np.stack([cache.query_ids(chosen), cache.passage_ids(chosen)], axis=1).flatten()[:num_texts]
    yield from pack([cache.tokens(int(text)) for text in ids], max_tokens=CALIBRATION_TOKENS)


def _pairs(cache: TrainingCache) -> Iterator[tuple[NDArray[np.integer], NDArray[np.integer]]]:
    for source in cache.sources:
        rows = np.arange(source.train.start, source.train.stop)
        for query, passage in zip(cache.query_ids(rows), cache.passage_ids(rows), strict=True):
            yield cache.tokens(int(query)), cache.tokens(int(passage))
