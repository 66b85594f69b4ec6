"""The sampler: a pure function of seed and step that gives every row its turn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from mlembed_core.config.data import Kind
from mlembed_core.data.sampler import MAX_ROWS_IN_ORDER, Batch, Sampler
from mlembed_core.data.store import CachedSource, OwnNegatives
from mlembed_core.errors import ConfigError, DataError


def sources(*sizes: int, validation: int = 3) -> tuple[CachedSource, ...]:
    """Sources a, b, … with so many training rows, each followed by validation rows."""
    made, first = [], 0
    for name, size in zip("abcdefg", sizes, strict=False):
        middle = first + size
        made.append(CachedSource(name, Kind.RETRIEVAL, range(first, middle), range(middle, middle + validation), num_negatives=0))
        first = middle + validation
    return tuple(made)


def all_batches(sampler: Sampler) -> list[Batch]:
    return [sampler.batch(step) for step in range(sampler.num_steps)]


def rows_of(batches: list[Batch]) -> list[int]:
    return [int(row) for batch in batches for row in batch.rows]


SIZES = (100, 7, 32, 1)


class TestEpochs:
    def test_an_epoch_has_every_training_row_exactly_once(self) -> None:
        sampler = Sampler(sources(*SIZES), batch_size=16, batch_size_of={"c": 5}, seed=3)
        assert sorted(rows_of(all_batches(sampler))) == [row for source in sources(*SIZES) for row in source.train]

    def test_every_epoch_has_every_row_once_in_another_order(self) -> None:
        three = Sampler(sources(*SIZES), batch_size=16, seed=3, num_epochs=3)
        length = three.num_steps // 3
        epochs = [rows_of([three.batch(step) for step in range(start, start + length)]) for start in (0, length, 2 * length)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
        assert epochs[0] != epochs[1] != epochs[2]

    def test_batches_are_of_one_source_and_full_but_for_the_last_of_it(self) -> None:
        batches = all_batches(Sampler(sources(*SIZES), batch_size=16, batch_size_of={"c": 5}, seed=3))
        for batch in batches:
            assert set(batch.rows.tolist()) <= set(batch.source.train)
            assert batch.rows.dtype == np.int64
        sizes = {name: sorted((len(b.rows) for b in batches if b.source.name == name), reverse=True) for name in "abcd"}
        assert sizes == {"a": [16] * 6 + [4], "b": [7], "c": [5] * 6 + [2], "d": [1]}

    def test_sources_are_mixed(self) -> None:
        names = [batch.source.name for batch in all_batches(Sampler(sources(640, 640), batch_size=16, seed=1))]
        assert 5 < sum(left != right for left, right in pairwise(names)) < 79

    def test_a_number_of_steps_may_end_within_an_epoch_or_go_past_it(self) -> None:
        epoch = all_batches(Sampler(sources(*SIZES), batch_size=16, seed=3))
        longer = all_batches(Sampler(sources(*SIZES), batch_size=16, seed=3, num_steps=len(epoch) + 4))
        assert len(longer) == len(epoch) + 4
        assert rows_of(longer[: len(epoch)]) == rows_of(epoch)

    def test_an_epoch_of_a_large_source_has_every_row_once_and_the_next_one_another_order(self) -> None:
        size = MAX_ROWS_IN_ORDER + 1000
        sampler = Sampler(sources(size, 50), batch_size=512, seed=3, num_epochs=2)
        half = sampler.num_steps // 2
        epochs = [[sampler.batch(step) for step in range(start, start + half)] for start in (0, half)]
        rows = [np.concatenate([batch.rows for batch in epoch if batch.source.name == "a"]) for epoch in epochs]
        assert all(np.array_equal(np.sort(order), np.arange(size)) for order in rows)
        assert (rows[0] == rows[1]).sum() < 10


class TestWeights:
    def test_sources_come_by_weight_and_those_without_one_never(self) -> None:
        sampler = Sampler(sources(50, 50, 50, 50), batch_size=8, weights={"a": 3, "b": 1, "c": 0}, seed=5, num_steps=4000)
        drawn = Counter(batch.source.name for batch in all_batches(sampler))
        assert set(drawn) == {"a", "b"}
        assert abs(drawn["a"] / 4000 - 0.75) < 0.03  # 4 standard deviations

    def test_a_temperature_lies_between_equal_shares_and_shares_by_size(self) -> None:
        for power, share in ((0.0, 1 / 2), (0.5, 3 / 4), (1.0, 9 / 10)):
            sampler = Sampler(sources(900, 100), batch_size=8, weights=f"size^{power:g}", seed=5, num_steps=4000)
            drawn = Counter(sampler.batch(step).source.name for step in range(4000))
            assert abs(drawn["a"] / 4000 - share) < 0.03  # 4 standard deviations
        assert [source.name for source in sampler.sources_in_use] == ["a", "b"]

    def test_a_pass_goes_through_the_rows_before_any_comes_again(self) -> None:
        sampler = Sampler(sources(64, 40), batch_size=16, weights={"a": 1, "b": 1}, seed=5, num_steps=60)
        of_a = [batch for batch in all_batches(sampler) if batch.source.name == "a"]
        for start in range(0, len(of_a) - 3, 4):
            assert sorted(rows_of(of_a[start : start + 4])) == list(range(64))
        assert rows_of(of_a[:4]) != rows_of(of_a[4:8])

    def test_all_batches_of_a_source_have_one_size_and_no_row_is_left_out_for_ever(self) -> None:
        sampler = Sampler(sources(37, 5), batch_size=16, weights={"a": 1, "b": 1}, seed=5, num_steps=200)
        batches = all_batches(sampler)
        assert {(batch.source.name, len(batch.rows)) for batch in batches} == {("a", 16), ("b", 5)}
        assert all(len(set(batch.rows.tolist())) == len(batch.rows) for batch in batches)
        assert set(rows_of(batches)) == {row for source in sources(37, 5) for row in source.train}

    def test_a_longer_run_starts_like_a_shorter_one(self) -> None:
        short, long = (Sampler(sources(50, 70), batch_size=8, weights={"a": 3, "b": 1}, seed=5, num_steps=steps) for steps in (30, 90))
        assert rows_of(all_batches(short)) == rows_of([long.batch(step) for step in range(30)])

    def test_without_a_number_of_steps_a_run_is_as_long_as_the_passes(self) -> None:
        assert Sampler(sources(64, 40), batch_size=16, weights={"a": 1, "b": 5}, seed=5, num_epochs=2).num_steps == 2 * (4 + 2)
        assert Sampler(sources(64, 40), batch_size=16, weights={"a": 1}, seed=5).num_steps == 4


@pytest.mark.parametrize("weights", [None, {"a": 2.0, "c": 1.0}], ids=["epochs", "weights"])
class TestPureFunction:
    def make(self, weights: dict[str, float] | None, seed: int = 11) -> Sampler:
        return Sampler(sources(*SIZES), batch_size=8, weights=weights, seed=seed, num_steps=80)

    def test_a_step_does_not_depend_on_those_asked_before(self, weights: dict[str, float] | None) -> None:
        forwards = [batch.rows.tolist() for batch in all_batches(self.make(weights))]
        sampler = self.make(weights)
        backwards = [sampler.batch(step).rows.tolist() for step in reversed(range(80))]
        assert forwards == backwards[::-1]
        assert self.make(weights).batch(57).rows.tolist() == forwards[57]

    def test_seeds_differ(self, weights: dict[str, float] | None) -> None:
        assert rows_of(all_batches(self.make(weights))) != rows_of(all_batches(self.make(weights, seed=12)))
        assert rows_of(all_batches(self.make(weights, seed=-1)))  # any integer is a seed

    def test_another_process_draws_the_same(self, weights: dict[str, float] | None) -> None:
        script = (
            "from mlembed_core.config.data import Kind\n"
            "from mlembed_core.data.sampler import Sampler\n"
            "from mlembed_core.data.store import CachedSource\n"
            f"sources = {[(s.name, s.train, s.validation) for s in sources(*SIZES)]!r}\n"
            "sources = [CachedSource(n, Kind.RETRIEVAL, t, v, num_negatives=0) for n, t, v in sources]\n"
            f"sampler = Sampler(sources, batch_size=8, weights={weights!r}, seed=11, num_steps=80)\n"
            "print([sampler.batch(step).rows.tolist() for step in range(80)])\n"
        )
        here = str([batch.rows.tolist() for batch in all_batches(self.make(weights))])
        environment = os.environ | {"PYTHONHASHSEED": "99"}
        there = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=60)
        assert there.stdout.strip() == here

    def test_a_step_outside_the_run_is_an_error(self, weights: dict[str, float] | None) -> None:
        for step in (-1, 80):
            with pytest.raises(IndexError, match=f"step {step} is none of the run's 0 … 79"):
                self.make(weights).batch(step)


class TestNegatives:
    """Rows 0 … 5 have 0, 1, 2, 3, 8 and 24 negatives; the texts are numbered from 100."""

    counts = np.array([0, 1, 2, 3, 8, 24])

    def source(self) -> CachedSource:
        offsets = np.concatenate([[0], np.cumsum(self.counts)])
        table = OwnNegatives(offsets, np.arange(100, 100 + offsets[-1]))
        return CachedSource("a", Kind.RETRIEVAL, range(6), range(6, 6), num_negatives=24, own_negatives=table)

    def draw(self, step: int, k: int, seed: int = 2) -> np.ndarray:
        sampler = Sampler([self.source()], batch_size=6, seed=seed, num_steps=400)
        return sampler.negatives(step, Batch(self.source(), np.arange(6)), k)

    @pytest.mark.parametrize("k", [1, 7, 30])
    def test_each_row_gets_its_own_without_repeats_then_minus_one(self, k: int) -> None:
        drawn = self.draw(0, k)
        assert drawn.shape == (6, k)
        table = self.source().own_negatives
        assert table is not None
        for row, texts in enumerate(drawn):
            real = texts[texts >= 0]
            assert len(real) == min(k, self.counts[row])
            assert len(set(real.tolist())) == len(real)
            assert set(real.tolist()) <= set(table.of(row).tolist())
            assert (texts[len(real) :] == -1).all()

    def test_draws_change_with_step_and_seed_alone(self) -> None:
        assert self.draw(5, 7).tolist() == self.draw(5, 7).tolist()
        assert self.draw(5, 7).tolist() != self.draw(6, 7).tolist()
        assert self.draw(5, 7).tolist() != self.draw(5, 7, seed=3).tolist()

    def test_every_negative_comes_equally_often(self) -> None:
        seen = Counter(text for step in range(400) for text in self.draw(step, 7)[5].tolist())
        assert len(seen) == 24
        expected = 400 * 7 / 24
        assert all(abs(count - expected) < 5 * np.sqrt(expected) for count in seen.values())

    def test_rows_without_any_give_only_minus_one(self) -> None:
        sampler = Sampler([self.source()], batch_size=6, seed=0)
        assert sampler.negatives(0, Batch(self.source(), np.array([0])), 2).tolist() == [[-1, -1]]


def test_a_weight_for_an_unknown_source_names_it() -> None:
    with pytest.raises(ConfigError, match=r"train\.source_weights\.nope: .*it has: a, b"):
        Sampler(sources(8, 8), batch_size=4, weights={"nope": 1}, seed=0)


def test_weights_without_a_positive_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"train\.source_weights: no weight is above 0"):
        Sampler(sources(8, 8), batch_size=4, weights={"a": 0}, seed=0)


def test_a_source_in_use_without_rows_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="source b has no training rows"):
        Sampler(sources(8, 0), batch_size=4, seed=0)
    assert Sampler(sources(8, 0), batch_size=4, weights={"a": 1}, seed=0).num_steps == 2
