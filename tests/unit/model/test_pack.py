"""Length buckets: every text once, padded on the right, in few rectangles."""

import numpy as np
import pytest
import torch

from mlembed_core.model.pack import BUCKET_COST_TOKENS, pack


def lists(lengths):
    return [np.arange(length) + 1000 * row for row, length in enumerate(lengths)]


@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], [48, 1, 7, 9, 48, 30, 2], list(range(1, 200)), [5] * 50 + [500]])
def test_every_text_stands_once_and_whole(lengths):
    ids = lists(lengths)
    seen = {}
    for bucket in pack(ids, pad_id=-7):
        for row, last, text in zip(bucket.ids.numpy(), bucket.last.numpy(), bucket.order.numpy(), strict=True):
            seen[int(text)] = row[: last + 1]
            assert (row[last + 1 :] == -7).all()
    assert sorted(seen) == list(range(len(lengths)))
    for text, found in seen.items():
        np.testing.assert_array_equal(found, ids[text])


def test_padding_and_number_of_rectangles_are_least():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 12, size=400)  # few levels: every plan can be tried
    buckets = pack(lists(lengths))
    cost = sum(bucket.ids.numel() + BUCKET_COST_TOKENS for bucket in buckets)
    levels = np.unique(lengths)
    best = np.inf
    for choice in range(2 ** (len(levels) - 1)):
        tops = [level for position, level in enumerate(levels[:-1]) if choice >> position & 1] + [levels[-1]]
        total, below = 0, 0
        for top in tops:
            total += int(((lengths > below) & (lengths <= top)).sum()) * int(top) + BUCKET_COST_TOKENS
            below = top
        best = min(best, total)
    assert cost == best


def test_a_bound_on_tokens_holds():
    buckets = pack(lists([10] * 100), max_tokens=64)
    assert max(bucket.ids.numel() for bucket in buckets) <= 64


def test_a_text_without_tokens_is_refused():
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        pack(lists([3, 0, 2]))


def test_joined_texts_stand_one_behind_the_other_shortest_first():
    ids = lists([3, 1, 4])
    (row,) = pack(ids, joined=True)
    np.testing.assert_array_equal(row.ids, np.concatenate([ids[1], ids[0], ids[2]])[None])
    assert row.cu_seq_lens.tolist() == [0, 1, 4, 8]
    assert row.positions.tolist() == [[0, 0, 1, 2, 0, 1, 2, 3]]
    assert (row.rows.tolist(), row.first.tolist(), row.last.tolist()) == ([0, 0, 0], [0, 1, 4], [0, 3, 7])
    assert row.lengths.tolist() == [1, 3, 4]
    assert row.order.tolist() == [1, 0, 2]
    assert row.mask is None


def test_joined_texts_are_bounded_too():
    rows = pack(lists([3, 4, 2, 20, 1]), joined=True, max_tokens=8)
    assert [row.lengths.tolist() for row in rows] == [[1, 2, 3], [4], [20]]
    assert torch.cat([row.order for row in rows]).tolist() == [4, 2, 0, 1, 3]


def test_a_rectangle_knows_its_padding():
    (bucket,) = pack(lists([3, 1]))
    assert bucket.mask.tolist() == [[True, False, False], [True, True, True]]
    assert bucket.positions.tolist() == [[0, 1, 2]]
    (full,) = pack(lists([3, 3]))
    assert full.mask is None


@pytest.mark.parametrize("joined", [False, True])
def test_means_leave_padding_out(joined):
    (bucket,) = pack(lists([3, 1, 2]), joined=joined, pad_id=77)
    means = bucket.means(bucket.ids[:, :, None].double())
    assert means[:, 0].tolist() == [[1, 1000, 2000.5][text] for text in bucket.order.tolist()]
