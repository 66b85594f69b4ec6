"""The table of keys against a dictionary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlembed_core.data.key_table import MIN_SLOTS, KeyTable
from mlembed_core.data.texts import hash_key


def oracle(keys: list[bytes], known: dict[bytes, int]) -> list[int]:
    return [known.setdefault(key, len(known)) for key in keys]


@pytest.mark.parametrize("in_files", [False, True])
def test_numbers_are_those_of_a_dictionary_through_several_growths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_files: bool) -> None:
    monkeypatch.setattr("mlembed_core.data.key_table.MIN_FILE_BYTES", 0)
    table, known = KeyTable(tmp_path if in_files else None), {}
    random = np.random.default_rng(3)
    for _ in range(12):
        keys = [hash_key(str(number)) for number in random.integers(0, 120_000, size=15_000)]
        assert table.numbers(b"".join(keys)).tolist() == oracle(keys, known)
    assert len(table) == len(known) > MIN_SLOTS / 2
    assert table.keys(0) == b"".join(known)
    assert list(tmp_path.iterdir()) == []


def test_keys_that_want_one_slot_are_told_apart() -> None:
    keys = [(7).to_bytes(8, "little") + bytes([n, 0, 0, 0, 0, 0, 0, 0]) for n in range(200)]
    table = KeyTable()
    assert table.numbers(b"".join(keys[:150])).tolist() == list(range(150))
    assert table.numbers(b"".join(reversed(keys))).tolist() == [*range(150, 200), *reversed(range(150))]


def test_nothing_is_asked_and_nothing_is_said() -> None:
    assert KeyTable().numbers(b"").tolist() == []
