"""The computed order: a permutation for every size, another for every key, and without a pattern that a test of rank would see."""

from __future__ import annotations

import numpy as np
import pytest

from mlembed_core.data.permutation import Permutation


def order(size: int, seed: int = 1) -> np.ndarray:
    return Permutation(size, np.random.default_rng(seed)).at(np.arange(size))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 17, 64, 65, 1000, 40_000])
def test_every_number_stands_once(size: int) -> None:
    assert np.array_equal(np.sort(order(size)), np.arange(size))


def test_parts_are_parts_of_the_whole() -> None:
    assert np.array_equal(Permutation(50_000, np.random.default_rng(1)).at(np.arange(700, 1212)), order(50_000)[700:1212])


def test_orders_of_other_keys_have_nothing_in_common() -> None:
    size = 40_000
    first, second = order(size), order(size, seed=2)
    assert (first == second).sum() < 10  # one is expected by chance
    for numbers in (first, second):
        for other in (np.arange(size), np.roll(numbers, 1)):
            assert abs(np.corrcoef(numbers, other)[0, 1]) < 5 / np.sqrt(size)  # 5 standard deviations
    # Of batches of 512, how many rows come from each tenth of the source: as in a fair draw (chi-squared, 9 degrees of freedom each).
    counts = np.stack([np.bincount(batch * 10 // size, minlength=10) for batch in first[: 78 * 512].reshape(78, 512)])
    chi_squared = ((counts - 51.2) ** 2 / 51.2).sum()
    assert 78 * 9 - 5 * np.sqrt(2 * 78 * 9) < chi_squared < 78 * 9 + 5 * np.sqrt(2 * 78 * 9)
