"""A random order of any number of things of which any part can be asked for, in no memory: a Feistel network that walks its cycles.

The order of n rows as an array takes 8 n bytes in every process, and longer to draw than many batches to assemble. Here the place of a
thing is computed: Black & Rogaway, "Ciphers with Arbitrary Finite Domains" (CT-RSA 2002), with the mixing function of SplitMix64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROUNDS = 6  # 4 make a pseudo-random permutation of a good round function (Luby & Rackoff, 1988); two more since this one is cheap
UInt64 = NDArray[np.uint64]


class Permutation:
    """A permutation of 0 … ``size`` − 1.

    Args:
        generator: what the permutation is drawn from.
    """

    def __init__(self, size: int, generator: np.random.Generator) -> None:
        self._size = size
        self._half = np.uint64(max(1, -(-(size - 1).bit_length() // 2)))  # bits of half a number; both halves are less than 4 sizes
        self._mask = np.uint64((1 << int(self._half)) - 1)
        self._keys = generator.integers(0, 2**64, size=ROUNDS, dtype=np.uint64)

    def at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands at the positions: same shape."""
        places = self._encipher(positions.astype(np.uint64))
        outside = np.flatnonzero(places >= self._size)
        while len(outside):  # walk on until inside; the cycle leads back in, since it started there
            places[outside] = self._encipher(places[outside])
            outside = outside[places[outside] >= self._size]
        return places.astype(np.int64)

    def _encipher(self, numbers: UInt64) -> UInt64:
        left, right = numbers >> self._half, numbers & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << self._half) | right


def _mix(numbers: UInt64) -> UInt64:
    """SplitMix64's finaliser (Steele, Lea & Flood, OOPSLA 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
