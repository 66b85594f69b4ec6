"""Distillation: mean squared error between a student's unit vectors and a teacher's (ML-Embed, arXiv 2605.15081, KD).

Letters: ``exit`` E, ``text`` the texts of one role (queries, positives, or the negatives of all rows), ``hidden`` D of the student,
``wide`` the teacher's hidden size, at least D. Vectors are cut, then normalised, as everywhere in the recipe.

The same term with the last exit as the teacher of the earlier ones is self-distillation (Zhang et al., Be Your Own Teacher,
arXiv 1905.08094).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mlembed_core.losses.matryoshka import MIN_NORM


@dataclass(frozen=True)
class Role:
    """Texts of one role, seen by student and teacher.

    Attributes:
        student: states at the exits, not normalised.
        teacher: states of the same texts, not normalised; carries no gradient.
        num_texts: how many such texts the *global* batch has; this process's share is a sum divided by it.
        absent: padding among the texts.
    """

    student: Float[Tensor, "exit *text hidden"]
    teacher: Float[Tensor, "*text wide"]
    num_texts: int
    absent: Bool[Tensor, "*text"] | None = None


def distillation_loss(roles: Sequence[Role], *, num_exits: int) -> Float[Tensor, ""]:
    """Σ over roles and exits of MSE(student, teacher), divided by the number of exits.

    An MSE is the mean over texts and dimensions of the squared difference of unit vectors.

    Args:
        roles: at least one.
        num_exits: of the model; more than the students have where early exits follow the last one.
    """
    return torch.stack([_squared_error(role) / max(role.num_texts, 1) for role in roles]).sum() / num_exits


def _squared_error(role: Role) -> Float[Tensor, ""]:
    """Σ over exits and texts of the mean over dimensions."""
    hidden = role.student.shape[-1]
    errors = (_unit(role.student) - _unit(role.teacher[..., :hidden].detach())).square().mean(dim=-1)
    if role.absent is not None:
        errors = errors.masked_fill(role.absent, 0)
    return errors.sum()


def _unit(vectors: Float[Tensor, "*rest hidden"]) -> Float[Tensor, "*rest hidden"]:
    lengths: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / lengths.clamp_min(MIN_NORM)
