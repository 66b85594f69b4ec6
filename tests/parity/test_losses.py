"""Oracle: the loss and every gradient against the formula written out, one pair, one dim and one exit at a time, in float64."""

import itertools
import math

import pytest
import torch

from mlembed_core.losses.contrastive import contrastive_loss
from mlembed_core.losses.matryoshka import mrl_weights

HIDDEN = 16
ROWS = 5
TOLERANCE = 1e-9  # float64 rounding of sums over some thousand terms is about 1e-13


def cosine(a, b):
    return (a @ b) / (a.norm() * b.norm())


def naive_loss(queries, positives, negatives, *, dims, temperature, in_batch, excluded, absent):
    """REFERENCE: per exit, per MRL dim, hard-negative and in-batch cross-entropy; divided by the number of exits."""
    full = dims[-1]
    total = torch.zeros((), dtype=torch.float64)
    for exit_index, (order, dim) in itertools.product(range(len(queries)), enumerate(reversed(dims), start=1)):
        weight = 1 / (order * math.sqrt(full / dim))
        for row in range(len(queries[0])):
            query = queries[exit_index][row][:dim]
            own = cosine(query, positives[exit_index][row][:dim]) / temperature
            if in_batch:
                others = [
                    cosine(query, positives[exit_index][other][:dim]) / temperature
                    for other in range(len(positives[0]))
                    if other == row or excluded is None or not excluded[row][other]
                ]
                total = total + weight * (torch.stack(others).exp().sum().log() - own) / len(queries[0])
            if negatives is not None:
                others = [own] + [
                    cosine(query, negatives[exit_index][row][index][:dim]) / temperature
                    for index in range(negatives.shape[2])
                    if absent is None or not absent[row][index]
                ]
                total = total + weight * (torch.stack(others).exp().sum().log() - own) / len(queries[0])
    return total / len(queries)


def states(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("dims", [(16,), (8, 16), (4, 8, 12, 16)])
@pytest.mark.parametrize("exits", [1, 3])
@pytest.mark.parametrize(("in_batch", "hard"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradients_equal_the_naive_loops(dims, exits, in_batch, hard, masked):
    queries, positives = states(exits, ROWS, HIDDEN, seed=1), states(exits, ROWS, HIDDEN, seed=2)
    negatives = states(exits, ROWS, 3, HIDDEN, seed=3) if hard else None
    generator = torch.Generator().manual_seed(4)
    excluded = torch.rand(ROWS, ROWS, generator=generator) < 0.3 if masked else None
    absent = torch.rand(ROWS, 3, generator=generator) < 0.3 if masked else None
    if excluded is not None:
        excluded.fill_diagonal_(False)
    inputs = [tensor for tensor in (queries, positives, negatives) if tensor is not None]

    ours = contrastive_loss(
        queries,
        positives,
        dims=dims,
        temperature=0.05,
        num_rows=ROWS,
        items=positives if in_batch else None,
        targets=torch.arange(ROWS) if in_batch else None,
        excluded=excluded,
        negatives=negatives,
        absent=absent if hard else None,
    ).total
    naive = naive_loss(queries, positives, negatives, dims=dims, temperature=0.05, in_batch=in_batch, excluded=excluded, absent=absent)

    assert ours.item() == pytest.approx(naive.item(), rel=TOLERANCE)
    for mine, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(naive, inputs), strict=True):
        assert ((mine - expected).norm() / expected.norm()).item() < TOLERANCE


def test_weights_are_those_of_the_paper():
    # REFERENCE, MRL: for D = 1024.
    dims = [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [round(weight, 3) for weight in reversed(mrl_weights(dims))] == [1, 0.354, 0.167, 0.088, 0.05, 0.029, 0.018, 0.011]


def test_a_masked_item_has_no_influence():
    queries, positives = states(1, 2, HIDDEN, seed=1), states(1, 2, HIDDEN, seed=2)
    excluded = torch.tensor([[False, True], [True, False]])
    loss = contrastive_loss(
        queries, positives, dims=(16,), temperature=0.05, num_rows=2, items=positives, targets=torch.arange(2), excluded=excluded
    )
    assert loss.total.item() == 0  # nothing is left to be confused with


def test_autocast_takes_no_digits_from_the_loss():
    """The network runs in bfloat16, its states are float32 again: so is what is made of them."""
    queries, positives = (states(1, ROWS, HIDDEN, seed=seed).float() for seed in (1, 2))
    negatives = states(1, ROWS, 3, HIDDEN, seed=3).float()
    options = {"dims": (8, 16), "temperature": 0.05, "num_rows": ROWS, "items": positives, "targets": torch.arange(ROWS)}
    expected = contrastive_loss(queries, positives, **options, negatives=negatives).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(contrastive_loss(queries, positives, **options, negatives=negatives).total, expected)
