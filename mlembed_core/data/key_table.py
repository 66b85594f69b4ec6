"""Which of many keys were seen before, and the number of each: a hash table in flat arrays, for tens of millions of texts.

A Python dictionary takes some 200 bytes a text; here it is 16 for the key and 8 to 16 for the place, and the arrays may lie in files
that the system can write back when memory is short, so that a process stays small however large its source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

UInt64 = NDArray[np.uint64]
MIN_SLOTS = 1 << 16
MIN_FILE_BYTES = 1 << 22  # smaller arrays stay in memory in any case
MAX_FILL = 0.5  # of the slots; above it, chains of taken slots get long


class KeyTable:
    """Numbers distinct keys in the order in which they come: 0, 1, 2 …

    Args:
        folder: where large arrays lie, in files without a name; None: in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._generation = 0
        self._num_keys = 0
        self._keys: UInt64 = self._new((MIN_SLOTS // 2, 2), np.uint64)
        self._slots: NDArray[np.uint32] = self._new((MIN_SLOTS,), np.uint32)  # number + 1 of the key in this slot, 0: none

    def __len__(self) -> int:
        return self._num_keys

    def numbers(self, keys: bytes) -> NDArray[np.int64]:
        """The numbers of keys of 16 bytes each, one behind the other; those not seen before get the next ones."""
        wanted: UInt64 = np.frombuffer(keys, dtype="<u8").reshape(-1, 2)
        first, of_key = _first_of_each(wanted)
        distinct = wanted[first]
        found = self._find(distinct)
        fresh = np.flatnonzero(found < 0)
        if len(fresh):
            order = fresh[np.argsort(first[fresh])]  # numbers ascend in the order of the keys as given
            found[order] = np.arange(self._num_keys, self._num_keys + len(order))
            self._add(distinct[order])
        return found[of_key]

    def keys(self, start: int) -> bytes:
        """The keys with the numbers ``start`` and up."""
        return self._keys[start : self._num_keys].tobytes()

    def _find(self, keys: UInt64) -> NDArray[np.int64]:
        """Numbers of distinct keys, −1 for those that are not here."""
        numbers = np.full(len(keys), -1, dtype=np.int64)
        mask = np.uint64(len(self._slots) - 1)
        places = keys[:, 0] & mask
        waiting = np.arange(len(keys))
        while len(waiting):
            entries = self._slots[places[waiting]]
            there = entries > 0
            waiting, entries = waiting[there], entries[there].astype(np.int64) - 1
            same = (self._keys[entries] == keys[waiting]).all(axis=1)
            numbers[waiting[same]] = entries[same]
            waiting = waiting[~same]
            places[waiting] = (places[waiting] + np.uint64(1)) & mask
        return numbers

    def _add(self, keys: UInt64) -> None:
        """Append keys that are distinct and not here."""
        count = self._num_keys + len(keys)
        if count > len(self._keys):
            capacity = len(self._keys)
            while capacity < count:
                capacity *= 2
            self._grow(capacity)
        self._keys[self._num_keys : count] = keys
        if count > MAX_FILL * len(self._slots):
            size = len(self._slots)
            while count > MAX_FILL * size:
                size *= 2
            self._slots = self._new((size,), np.uint32)
            for start in range(0, count, MIN_SLOTS):
                self._place(start, min(start + MIN_SLOTS, count))
        else:
            self._place(self._num_keys, count)
        self._num_keys = count

    def _place(self, start: int, stop: int) -> None:
        """Give the keys ``start`` to ``stop`` slots."""
        mask = np.uint64(len(self._slots) - 1)
        numbers = np.arange(start, stop, dtype=np.int64)
        places = self._keys[start:stop, 0] & mask
        while len(numbers):
            free = self._slots[places] == 0
            self._slots[places[free]] = (numbers[free] + 1).astype(np.uint32)  # of several for one slot the last one gets it
            lost = self._slots[places] != (numbers + 1).astype(np.uint32)
            numbers, places = numbers[lost], (places[lost] + np.uint64(1)) & mask

    def _grow(self, capacity: int) -> None:
        grown: UInt64 = self._new((capacity, 2), np.uint64)
        grown[: self._num_keys] = self._keys[: self._num_keys]
        self._keys = grown

    def _new(self, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        if self._folder is None or np.dtype(dtype).itemsize * np.prod(shape) < MIN_FILE_BYTES:
            return np.zeros(shape, dtype=dtype)
        self._generation += 1
        path = self._folder / f"keys-{self._generation}.bin"
        array = np.memmap(path, dtype=dtype, mode="w+", shape=shape)
        path.unlink()  # the mapping holds it; nothing is left behind, whatever happens to this process
        return array.view(np.ndarray)


def _first_of_each(keys: UInt64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each distinct key stands first, and which of those each key is."""
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: equal keys stay in the order given
    ranked = keys[order]
    starts = np.ones(len(keys), dtype=np.bool_)
    starts[1:] = (ranked[1:] != ranked[:-1]).any(axis=1)
    of_key = np.empty(len(keys), dtype=np.int64)
    of_key[order] = np.cumsum(starts) - 1
    return order[starts], of_key
