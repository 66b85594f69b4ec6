"""One set of weights out of the last checkpoints of a run: their average, or a walk along the sphere from one to the next.

Qwen3-Embedding gains from slerp over checkpoints of one run (arXiv 2506.05176). Whether a run of ours does is asked of its held-out
rows: the loop keeps the merged weights only where their loss is lower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mlembed_core.config.train import MergeMethod

NEARLY_PARALLEL = 1e-6  # of the sine of the angle: below, slerp is the straight line


def merge(states: Sequence[Mapping[str, Tensor]], method: MergeMethod) -> dict[str, Tensor]:
    """The weights between ``states``, each counting the same.

    Args:
        states: of one network, in the order of their steps. Slerp takes them one by one: after k of them the next has weight 1 / (k + 1).
    """
    merged = {name: value.double() for name, value in states[0].items()}
    for count, state in enumerate(states[1:], start=1):
        share = 1 / (count + 1)
        for name, value in merged.items():
            between = slerp if method is MergeMethod.SLERP else torch.lerp
            merged[name] = between(value, state[name].double(), share)
    return {name: value.to(states[0][name].dtype) for name, value in merged.items()}


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """From ``start`` (share 0) to ``end`` (share 1) along the arc between them, as one long vector each (Shoemake 1985).

    Lengths are interpolated by the same weights as directions, as is usual for weights of networks.
    """
    lengths = start.norm() * end.norm()
    if lengths == 0:
        return torch.lerp(start, end, share)
    angle = torch.arccos((start.flatten() @ end.flatten() / lengths).clamp(-1, 1))
    sine = torch.sin(angle)
    if sine < NEARLY_PARALLEL:
        return torch.lerp(start, end, share)
    return (torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end) / sine
