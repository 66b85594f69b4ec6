"""Oracle: the distillation term and its gradients against plain loops over exits, texts and dimensions, in float64."""

import pytest
import torch

from mlembed_core.losses.distillation import Role, distillation_loss
from tests.parity.test_losses import HIDDEN, ROWS, TOLERANCE, states

WIDE = 24  # of the teacher


def unit(vector):
    return vector / vector.square().sum().sqrt()


def naive_mse(student, teacher, absent=None):
    """Mean over the texts that are there and over dimensions; the teacher cut to the student's width, then normalised."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for text in range(len(student)):
        if absent is not None and absent[text]:
            continue
        count += 1
        mine, other = unit(student[text]), unit(teacher[text][: len(student[text])])
        for dim in range(len(mine)):
            total = total + (mine[dim] - other[dim]) ** 2 / len(mine)
    return total / count


@pytest.mark.parametrize("exits", [1, 3])
@pytest.mark.parametrize("width", [HIDDEN, WIDE])
@pytest.mark.parametrize("with_negatives", [False, True])
def test_loss_and_gradients_equal_the_naive_loops(exits, width, with_negatives):
    students = [states(exits, ROWS, HIDDEN, seed=1), states(exits, ROWS, HIDDEN, seed=2)]
    teachers = [states(ROWS, width, seed=3), states(ROWS, width, seed=4)]
    roles = [Role(student, teacher, ROWS) for student, teacher in zip(students, teachers, strict=True)]
    absent = None
    if with_negatives:
        absent = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(5)) < 0.3
        students.append(states(exits, ROWS, 3, HIDDEN, seed=6))
        teachers.append(states(ROWS, 3, width, seed=7))
        roles.append(Role(students[2], teachers[2], int((~absent).sum()), absent))

    ours = distillation_loss(roles, num_exits=exits)
    naive = torch.zeros((), dtype=torch.float64)
    for exit_index in range(exits):
        for role in range(2):
            naive = naive + naive_mse(students[role][exit_index], teachers[role])
        if absent is not None:
            naive = naive + naive_mse(students[2][exit_index].flatten(0, 1), teachers[2].flatten(0, 1), absent.flatten())
    naive = naive / exits

    assert ours.item() == pytest.approx(naive.item(), rel=TOLERANCE)
    for mine, expected in zip(torch.autograd.grad(ours, students), torch.autograd.grad(naive, students), strict=True):
        assert ((mine - expected).norm() / expected.norm()).item() < TOLERANCE


def test_a_teacher_gets_no_gradient():
    student, teacher = states(1, ROWS, HIDDEN, seed=1), states(ROWS, WIDE, seed=2)
    distillation_loss([Role(student, teacher, ROWS)], num_exits=1).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_a_student_that_says_the_same_has_no_loss():
    teacher = states(ROWS, HIDDEN, seed=2)
    assert distillation_loss([Role(5 * teacher[None], teacher, ROWS)], num_exits=1).item() == pytest.approx(0, abs=1e-30)


def test_padding_among_negatives_has_no_gradient():
    student, teacher = states(1, ROWS, 2, HIDDEN, seed=1), states(ROWS, 2, HIDDEN, seed=2)
    absent = torch.zeros(ROWS, 2, dtype=torch.bool)
    absent[0, 1] = True
    distillation_loss([Role(student, teacher, 2 * ROWS - 1, absent)], num_exits=1).backward()
    assert student.grad is not None
    assert not student.grad[0, 0, 1].any()
    assert student.grad[0, 0, 0].any()
