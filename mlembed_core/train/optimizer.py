"""AdamW and the learning rate's course (REFERENCE: AdamW β (0.9, 0.98), warm-up, then cosine or constant with a floor)."""

from __future__ import annotations

import math

import torch
from torch import nn

from mlembed_core.config.train import Schedule, TrainParams


def make_optimizer(network: nn.Module, params: TrainParams) -> torch.optim.AdamW:
    """Fused AdamW over all parameters."""
    return torch.optim.AdamW(
        network.parameters(), lr=params.learning_rate, betas=params.betas, weight_decay=params.weight_decay, fused=True
    )


def learning_rate(step: int, num_steps: int, params: TrainParams) -> float:
    """The rate of a step (counted from 0): linear warm-up, then the schedule down to ``min_learning_rate`` at the end."""
    warmup = max(1, round(params.warmup_fraction * num_steps))
    if step < warmup:
        return params.learning_rate * (step + 1) / warmup
    if params.schedule is Schedule.CONSTANT:
        return params.learning_rate
    progress = (step - warmup) / max(1, num_steps - warmup)
    return params.min_learning_rate + (params.learning_rate - params.min_learning_rate) * (1 + math.cos(math.pi * progress)) / 2
