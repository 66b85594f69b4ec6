"""Which in-batch items are masked: by text, by label, by similarity; never a row's own positive."""

import pytest
import torch

from mlembed_core.losses.false_negatives import same_label, same_text, similar

ROWS = torch.arange(4)


def pairs(mask):
    return {tuple(pair) for pair in mask.nonzero().tolist()}


def test_the_same_text_is_no_negative():
    mask = same_text(
        torch.tensor([10, 11, 12, 13]),
        ROWS,
        item_ids=torch.tensor([20, 20, 10, 23]),  # rows 0 and 1 share a positive; row 2's positive is row 0's query
        item_query_ids=torch.tensor([10, 11, 12, 13]),
    )
    assert pairs(mask) == {(0, 1), (1, 0), (0, 2)}


def test_the_positives_of_an_equal_query_are_no_negatives():
    queries = torch.tensor([10, 11, 10, 13])
    assert pairs(same_text(queries, ROWS, torch.tensor([20, 21, 22, 23]), queries)) == {(0, 2), (2, 0)}


def test_the_same_label_is_no_negative_and_no_label_is_none():
    labels = torch.tensor([-1, 5, -1, 5], dtype=torch.int32)
    assert pairs(same_label(labels, ROWS, labels)) == {(1, 3), (3, 1)}


@pytest.mark.parametrize(("margin", "expected"), [(0.0, {(0, 1), (0, 2)}), (0.1, {(0, 2)}), (0.5, set())])
def test_an_item_more_similar_than_the_positive_by_the_margin_is_no_negative(margin, expected):
    """Cosines of the only query with its own positive and two others: 0.6, 0.65, 0.95."""
    cosines = torch.tensor([0.6, 0.65, 0.95], dtype=torch.float64)
    items = 3 * torch.stack([cosines, (1 - cosines**2).sqrt()], dim=1)
    query = torch.tensor([[7.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mask = similar(query, torch.tensor([0]), items, margin=margin)
    assert pairs(mask) == expected


def test_a_share_of_the_rows_is_judged_by_its_own_positives():
    """The second process of two: its rows' positives stand behind the others'."""
    generator = torch.Generator().manual_seed(0)
    queries, items = torch.randn(4, 8, generator=generator), torch.randn(4, 8, generator=generator)
    whole = similar(queries, ROWS, items, margin=0.05)
    assert whole.any()
    assert torch.equal(similar(queries[2:], ROWS[2:], items, margin=0.05), whole[2:])
