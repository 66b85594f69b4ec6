"""Which rows make up the batch of a step: a pure function of the seed and the step.

Nothing is consumed, so nothing has to be saved: every process of a run draws the same batches, and a run resumed at step s goes on
with batch s. A batch holds rows of one source only (homogeneous, as in ML-Embed, arXiv 2605.15081, data section).

Randomness is NumPy's PCG64, seeded by (purpose, seed, …); the package is pinned, and the draws with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from mlembed_core.data.permutation import Permutation
from mlembed_core.data.store import CachedSource
from mlembed_core.errors import ConfigError, DataError

Int64 = NDArray[np.int64]

# Of more rows the order is not kept but computed: with 159 sources of so many the kept ones take 40 MB in every process.
MAX_ROWS_IN_ORDER = 2**15


class Purpose(IntEnum):
    """Keeps the streams of one seed apart. Arbitrary numbers, large so that no other use of the seed hits them."""

    BATCH_ORDER = 0x5A17_0001
    SOURCE_OF_STEP = 0x5A17_0002
    ROW_ORDER = 0x5A17_0003
    NEGATIVES = 0x5A17_0004


@dataclass(frozen=True)
class Batch:
    """The rows of one step, over all processes.

    Attributes:
        rows: row numbers of the cache, no row twice.
    """

    source: CachedSource
    rows: Int64


class Sampler:
    """Draws batches from the training rows of sources.

    A *pass* over a source is a seeded order of its training rows, cut into batches.

    Without weights a run goes epoch by epoch: an epoch has every row of every source exactly once, its batches in random order over
    the sources (so sources come ∝ their remaining batches). The rows left over by a source's full batches are one smaller batch.

    With weights the source of each step is drawn ∝ its weight, and its next batch comes from passes one after another. Then all
    batches of a source have one size: what a pass leaves over is skipped, other rows in each pass. A source with fewer rows
    than a batch gives them all each time.

    Args:
        sources: of a :class:`~mlembed_core.data.store.TrainingCache`.
        batch_size: rows of a batch, over all processes.
        batch_size_of: other sizes, by source.
        weights: by source, 0 for those not named; ``size^P`` for training rows to the power P; None for epochs.
        num_steps: length of the run; None for ``num_epochs`` passes over every source in use.

    Raises:
        ConfigError: a weight for a source that is not there, or none above 0.
        DataError: a source in use has no training rows.
    """

    def __init__(
        self,
        sources: Sequence[CachedSource],
        *,
        batch_size: int,
        batch_size_of: Mapping[str, int] | None = None,
        weights: Mapping[str, float] | str | None = None,
        seed: int,
        num_steps: int | None = None,
        num_epochs: int = 1,
    ) -> None:
        self.sources = tuple(sources)
        self._seed = seed % 2**64  # NumPy takes no negative seeds
        self._probabilities = None if weights is None else _probabilities(self.sources, weights)
        in_use = np.ones(len(self.sources), dtype=bool) if self._probabilities is None else self._probabilities > 0
        num_rows = np.array([len(source.train) for source in self.sources], dtype=np.int64)
        for index in np.flatnonzero(in_use & (num_rows == 0)):
            raise DataError(
                f"the source {self.sources[index].name} has no training rows. Take it out of configs/params.yaml, or set "
                f"train.source_weights.{self.sources[index].name}: 0"
            )
        wanted = np.array([(batch_size_of or {}).get(source.name, batch_size) for source in self.sources], dtype=np.int64)
        self._sizes = np.minimum(wanted, np.maximum(num_rows, 1))
        self._batches_of_pass = num_rows // self._sizes if weights is not None else -(-num_rows // self._sizes)
        self._starts = np.concatenate([[0], np.cumsum(self._batches_of_pass)])  # of each source's batches, in the unshuffled epoch
        self.num_steps = num_epochs * int(self._batches_of_pass[in_use].sum()) if num_steps is None else num_steps
        self._drawn = None if self._probabilities is None else self._draw_sources(self._probabilities)
        # The last order computed for each purpose and source. Only a memory of a pure function.
        self._orders: dict[tuple[Purpose, int], tuple[int, Int64]] = {}

    @property
    def sources_in_use(self) -> list[CachedSource]:
        """Those that a batch may come from."""
        if self._probabilities is None:
            return list(self.sources)
        return [source for source, probability in zip(self.sources, self._probabilities, strict=True) if probability > 0]

    def batch(self, step: int) -> Batch:
        """The batch of a step.

        Raises:
            IndexError: the step is not one of 0 … ``num_steps`` − 1.
        """
        if not 0 <= step < self.num_steps:
            raise IndexError(f"step {step} is none of the run's 0 … {self.num_steps - 1}")
        index, number_of_pass, position = self._place(step)
        source, size = self.sources[index], int(self._sizes[index])
        first, last = position * size, min((position + 1) * size, len(source.train))
        return Batch(source, source.train.start + self._rows(index, number_of_pass, first, last))

    def negatives(self, step: int, batch: Batch, k: int) -> Int64:
        """Draw hard negatives for the rows of the step's batch, each from its own, without repeats.

        Returns:
            Text ids of shape (rows, k). A row with fewer than ``k`` negatives has all of its own, and −1 in the places behind them.
        """
        own = batch.source.own_negatives
        if own is None:
            raise ValueError(f"{batch.source.name} does not come from an opened cache: it has no table of negatives")
        counts = own.counts(batch.rows)
        width = max(int(counts.max(initial=0)), k)
        keys = self._generator(Purpose.NEGATIVES, step).random((len(batch.rows), width))
        keys[np.arange(width) >= counts[:, None]] = 2.0  # no such negative: behind all others
        chosen = np.argsort(keys, axis=1)[:, :k]
        exists = chosen < counts[:, None]
        drawn = np.full(chosen.shape, -1, dtype=np.int64)
        drawn[exists] = own.texts[(own.offsets[batch.rows][:, None] + chosen)[exists]]
        return drawn

    def _place(self, step: int) -> tuple[int, int, int]:
        """Index of the step's source, number of the pass over it, and which batch of that pass."""
        if self._drawn is None:
            num_batches = int(self._starts[-1])
            epoch, position = divmod(step, num_batches)
            batch = int(self._order(Purpose.BATCH_ORDER, 0, epoch, num_batches)[position])
            index = int(np.searchsorted(self._starts, batch, side="right")) - 1
            return index, epoch, batch - int(self._starts[index])
        sources, turns = self._drawn
        index = int(sources[step])
        return index, *divmod(int(turns[step]), int(self._batches_of_pass[index]))

    def _draw_sources(self, probabilities: NDArray[np.float64]) -> tuple[Int64, Int64]:
        """For every step the index of its source, and how often that source came before."""
        numbers = self._generator(Purpose.SOURCE_OF_STEP).random(self.num_steps)  # a longer run starts with the same numbers
        sources = np.minimum(np.searchsorted(np.cumsum(probabilities), numbers, side="right"), np.flatnonzero(probabilities)[-1])
        turns = np.empty(self.num_steps, dtype=np.int64)
        for index in range(len(self.sources)):
            steps = np.flatnonzero(sources == index)
            turns[steps] = np.arange(len(steps))
        return sources, turns

    def _rows(self, index: int, number_of_pass: int, first: int, last: int) -> Int64:
        """A part of the random order of a source's training rows in one of the passes over it."""
        num_rows = len(self.sources[index].train)
        if num_rows <= MAX_ROWS_IN_ORDER:
            return self._order(Purpose.ROW_ORDER, index, number_of_pass, num_rows)[first:last]
        order = Permutation(num_rows, self._generator(Purpose.ROW_ORDER, index, number_of_pass))
        return order.at(np.arange(first, last))

    def _order(self, purpose: Purpose, index: int, number: int, size: int) -> Int64:
        """The ``number``-th random order of ``size`` things."""
        known = self._orders.get((purpose, index))
        if known is None or known[0] != number:
            known = (number, self._generator(purpose, index, number).permutation(size))
            self._orders[purpose, index] = known
        return known[1]

    def _generator(self, purpose: Purpose, *key: int) -> np.random.Generator:
        return np.random.default_rng([purpose, self._seed, *key])


def _probabilities(sources: Sequence[CachedSource], weights: Mapping[str, float] | str) -> NDArray[np.float64]:
    if isinstance(weights, str):
        power = float(weights.removeprefix("size^"))
        sizes: NDArray[np.float64] = np.array([len(source.train) for source in sources], dtype=np.float64) ** power
        sizes /= sizes.sum()
        return sizes
    unknown = sorted(set(weights) - {source.name for source in sources})
    if unknown:
        known = ", ".join(source.name for source in sources)
        raise ConfigError(f"train.source_weights.{unknown[0]}: the training cache has no such source (it has: {known})")
    values: NDArray[np.float64] = np.array([weights.get(source.name, 0.0) for source in sources], dtype=np.float64)
    total = float(values.sum())
    if not total > 0:
        raise ConfigError("train.source_weights: no weight is above 0, so no step would have a source; raise one, or use null")
    values /= total
    return values
