"""The reference's way of a training step, in plain code of our own: what the speed of ours is measured against.

Written from the facts in the papers and reports (arXiv 2605.15081, 2603.19223), and held to our loss and gradients by
``tests/parity/test_reference_way.py``: a stock model with gradient checkpointing, texts padded to the longest, the full product of
the factors at every step, the final norm over every token at every exit, one matrix product per dim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mlembed_core.model.low_rank import factorise


class ReferenceWay(nn.Module):
    """A stock decoder and the factors of its table."""

    def __init__(self, backbone: Any, *, rank: int) -> None:
        super().__init__()
        self.backbone = backbone
        u, v = factorise(backbone.get_input_embeddings().weight.detach(), rank)
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)
        backbone.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.train()

    def forward(self, texts: Sequence[NDArray[np.int64]], exits: Sequence[int]) -> list[Tensor]:
        """States of the last tokens after the exits, each (text, hidden)."""
        longest = max(map(len, texts))
        ids = torch.zeros(len(texts), longest, dtype=torch.long)
        mask = torch.zeros(len(texts), longest, dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.from_numpy(text)
            mask[row, : len(text)] = 1
        ids, mask = ids.to(self.u.device), mask.to(self.u.device)
        embedded = functional.embedding(ids, self.u @ self.v)
        output = self.backbone(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True, use_cache=False)
        layers = self.backbone.config.num_hidden_layers
        rows, last = torch.arange(len(texts), device=mask.device), mask.sum(dim=1) - 1
        return [
            (output.last_hidden_state if depth == layers else self.backbone.norm(output.hidden_states[depth]))[rows, last]
            for depth in exits
        ]


def reference_loss(states: Sequence[Tensor], *, num_rows: int, dims: Sequence[int], temperature: float) -> Tensor:
    """In-batch and hard-negative cross-entropy per exit and dim; texts are queries, positives, then each row's negatives."""
    total = states[0].new_zeros(())
    for exit_states in states:
        for order, dim in enumerate(reversed(dims), start=1):
            weight = 1 / (order * math.sqrt(dims[-1] / dim))
            vectors = functional.normalize(exit_states.float()[:, :dim], dim=1)
            queries, positives, negatives = vectors[:num_rows], vectors[num_rows : 2 * num_rows], vectors[2 * num_rows :]
            own = torch.cat([positives[:, None], negatives.view(num_rows, -1, dim)], dim=1)
            first = torch.zeros(num_rows, dtype=torch.long, device=own.device)
            in_batch = functional.cross_entropy(queries @ positives.T / temperature, torch.arange(num_rows, device=own.device))
            hard = functional.cross_entropy((own @ queries[:, :, None])[:, :, 0] / temperature, first)
            total = total + weight * (in_batch + hard)
    return total / len(states)
