"""The loss of held-out rows at every exit and dim that a setting trains."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mlembed_core.config.axes import Axes
from mlembed_core.data.store import CachedSource, TrainingCache
from mlembed_core.losses.matryoshka import prefix_cosines
from mlembed_core.model.network import Network
from mlembed_core.model.pack import pack

ROWS = 64  # of each source; more only makes the curve smoother


@torch.no_grad()
def validate(
    network: Network, cache: TrainingCache, sources: Sequence[CachedSource], *, axes: Axes, temperature: float
) -> list[dict[str, Any]]:
    """In-batch cross-entropy over each source's held-out rows, the token table at its full rank.

    Deterministic: always the first rows of a source's held-out part. A source without two of them is left out.

    Returns:
        Rows ``{source, layers, dim, loss}``, one per source, exit and dim.
    """
    network.eval()
    rows = [row for source in sources for row in _losses(network, cache, source, axes, temperature)]
    network.train()
    return rows


def _losses(network: Network, cache: TrainingCache, source: CachedSource, axes: Axes, temperature: float) -> Iterable[dict[str, Any]]:
    held_out = np.arange(source.validation.start, min(source.validation.stop, source.validation.start + ROWS))
    queries, passages = cache.query_ids(held_out), cache.passage_ids(held_out)
    _, firsts = np.unique(passages, return_index=True)  # a passage that stands twice would be its own false negative
    firsts.sort()
    count = len(firsts)
    if count < 2:
        return
    device = next(network.parameters()).device
    texts = [cache.tokens(int(text)) for text in [*queries[firsts], *passages[firsts]]]
    states = network([bucket.to(device) for bucket in pack(texts, joined=network.joins_texts)], axes.mll_layers, None).float()
    targets = torch.arange(count, device=device).repeat(len(axes.mrl_dims))
    for layers, exit_states in zip(axes.mll_layers, states, strict=True):
        logits = prefix_cosines(exit_states[:count], exit_states[count:], axes.mrl_dims) / temperature
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="none").view(-1, count).mean(dim=1)
        for dim, loss in zip(axes.mrl_dims, losses, strict=True):
            yield {"source": source.name, "layers": layers, "dim": dim, "loss": float(loss)}
