"""Paired bootstrap: against a plain loop, against what is known in closed form, and what it refuses."""

import numpy as np
import pytest

from mlembed_core.errors import EvaluationError
from mlembed_core.evaluate.bootstrap import Answers, Part, bootstrap, pair, paired_bootstrap

A, B1, B2 = Part("A", "default", "test"), Part("B", "deu", "test"), Part("B", "fra", "test")


def made(differences, shift=0.3):
    """Two systems whose scores differ by ``differences``; the second has its questions in another order."""
    first, second = {}, {}
    for part, values in differences.items():
        ids = [f"q{index}" for index in range(len(values))]
        base = np.linspace(0, shift, len(values))
        first[part] = Answers(tuple(ids), base + np.array(values))
        second[part] = Answers(tuple(reversed(ids)), base[::-1].copy())
    return first, second


def test_tasks_count_alike_and_so_do_the_parts_of_a_task():
    differences = {A: [0.1] * 50, B1: [0.4] * 5, B2: [0.2] * 500}
    found = paired_bootstrap(*made(differences))
    assert found.difference == pytest.approx((0.1 + (0.4 + 0.2) / 2) / 2)
    assert (found.low, found.high) == pytest.approx((found.difference, found.difference))  # nothing varies
    assert (found.num_tasks, found.num_questions) == (2, 555)
    assert found.certain


def test_the_interval_is_that_of_a_plain_loop():
    generator = np.random.default_rng(0)
    differences = {A: generator.normal(0.02, 0.3, 200), B1: generator.choice([-1.0, 0.0, 1.0], 90, p=[0.2, 0.5, 0.3])}
    found = paired_bootstrap(*made(differences))
    means = [np.mean([generator.choice(values, len(values)).mean() for values in differences.values()]) for _ in range(4000)]
    low, high = np.quantile(means, [0.025, 0.975])
    # The ends of either vary by about .03 of the width; four of those, for both.
    assert found.low == pytest.approx(low, abs=0.12 * (high - low))
    assert found.high == pytest.approx(high, abs=0.12 * (high - low))
    # As good as normal at this size: half a width is 1.96 standard errors of a stratified mean.
    error = np.sqrt(sum(np.var(values) / len(values) for values in differences.values())) / 2
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.06)


def test_pairing_is_sharper_than_the_averages_and_by_question_not_by_place():
    hard = np.random.default_rng(1).uniform(0, 1, 300)
    ids = tuple(f"q{index}" for index in range(300))
    first, second = {A: Answers(ids, hard + 0.01)}, {A: Answers(ids[::-1], hard[::-1].copy())}
    assert paired_bootstrap(first, second).low == pytest.approx(0.01)
    assert pair(first, second)[A] == pytest.approx(0.01)


def test_without_a_difference_zero_lies_inside_and_p_is_one():
    found = paired_bootstrap(*made({A: [0.0] * 20}))
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert not found.certain


def test_p_values_of_equal_systems_are_uniform():
    """Of 200 comparisons with nothing behind them about a twentieth look certain: less than .12, four standard errors away."""
    generator = np.random.default_rng(2)
    found = [bootstrap({A: generator.normal(0, 1, 100)}, level=0.95, resamples=400, seed=3) for _ in range(200)]
    assert 0.0 < np.mean([item.p_value < 0.05 for item in found]) < 0.12
    assert 0.0 < np.mean([item.certain for item in found]) < 0.12


def test_the_same_scores_give_the_same_numbers_whatever_their_order():
    differences = {A: list(np.random.default_rng(4).normal(size=40)), B1: [0.5, -0.5, 0.25]}
    first, second = made(differences)
    turned = dict(reversed(first.items())), dict(reversed(second.items()))
    assert paired_bootstrap(first, second) == paired_bootstrap(*turned)


def test_other_way_round_is_the_negative():
    first, second = made({A: list(np.random.default_rng(5).normal(0.3, 1, 60))})
    ours, theirs = paired_bootstrap(first, second), paired_bootstrap(second, first)
    assert theirs.difference == pytest.approx(-ours.difference)
    assert theirs.low == pytest.approx(-ours.high, abs=0.05)


def test_chunks_of_draws_change_nothing_but_memory(monkeypatch):
    differences = {A: np.random.default_rng(6).normal(size=50)}
    whole = bootstrap(differences, level=0.95, resamples=1000, seed=1)
    monkeypatch.setattr("mlembed_core.evaluate.bootstrap.MAX_DRAWS", 50 * 7)
    found = bootstrap(differences, level=0.95, resamples=1000, seed=1)
    assert (found.low, found.high, found.p_value) == pytest.approx((whole.low, whole.high, whole.p_value), rel=1e-12)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({A: [1.0]}, {A: [1.0], B1: [1.0]}, "only one of the two systems has scores of single questions on B"),
        ({A: [1.0, 0.0]}, {A: [1.0]}, r"different questions on A \(default, test\): 2 and 1"),
        ({}, {}, "query_scores: true"),
        ({A: [float("nan")]}, {A: [1.0]}, "not finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, message):
    ours, theirs = (
        {part: Answers(tuple(map(str, range(len(values)))), np.array(values)) for part, values in side.items()} for side in (first, second)
    )
    with pytest.raises(EvaluationError, match=message):
        paired_bootstrap(ours, theirs)
