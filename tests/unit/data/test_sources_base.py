"""What the embedded builders share: splits by hash, no repeats, no leaks, licences from the packages' own metadata."""

from __future__ import annotations

from collections import Counter
from email.message import Message
from typing import Any

import pytest

from mlembed_core.data.sources.embedded import build
from mlembed_core.data.sources.embedded.base import Pair, _licence, package_folder, part_of_package, settle, split_of
from mlembed_core.errors import ConfigError, MachineError


def test_splits_are_eighty_ten_ten_and_never_change() -> None:
    counts = Counter(split_of(f"group {i}") for i in range(5000))
    assert 3850 < counts["train"] < 4150
    assert 400 < counts["dev"] < 600
    assert 400 < counts["test"] < 600
    # These very values: a change would move texts between train and test of every model ever trained.
    pinned = {"afgh": "train", "belg": "train", "icel": "test", "kore": "dev"}
    assert {name: split_of(name) for name in pinned} == pinned


def test_settle_drops_repeats_and_every_leak_between_splits() -> None:
    pairs = [
        Pair("a", "b", "test"),  # b is a train passage
        Pair("c", "B ", "train"),
        Pair("c", "b", "train"),  # the same again, but for case and spacing
        Pair("d", "e", "dev"),  # e is a test query
        Pair("e", "f", "test"),
        Pair("g", "g", "train"),  # says nothing
        Pair("h", "i", "dev"),
    ]
    kept, dropped = settle(pairs, None)
    assert kept == [pairs[1], pairs[4], pairs[6]]
    assert dropped == {"dropped_repeats": 2, "dropped_leaks": 2}


def test_class_names_may_be_shared_between_splits() -> None:
    pairs = [Pair("a", "class", "train"), Pair("b", "class", "test"), Pair("a", "other class", "test")]
    kept, dropped = settle(pairs, None, shared_passages=True)
    assert kept == pairs[:2]
    assert dropped["dropped_leaks"] == 1


def test_settle_cuts_in_proportion() -> None:
    pairs = [Pair(f"q{i}", f"p{i}", ("train", "train", "train", "dev", "test")[i % 5]) for i in range(100)]
    kept, _ = settle(pairs, 20)
    assert Counter(pair.split for pair in kept) == {"train": 12, "dev": 4, "test": 4}
    assert kept == [pair for pair in pairs if pair in kept]  # in their order


def metadata(**fields: str) -> Any:
    message = Message()
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


def test_licences_are_read_not_invented() -> None:
    assert _licence(metadata(License_Expression="MIT", License="other")) == "MIT"
    assert _licence(metadata(License="BSD")) == "BSD"
    full_text = metadata(
        License="Copyright (c) 2001 someone, all rights reserved, and so on and on", Classifier="License :: OSI Approved :: BSD License"
    )
    assert _licence(full_text) == "BSD License"
    assert _licence(metadata()) == "see the package's metadata"


def test_a_missing_package_is_named_with_the_way_to_install_it() -> None:
    with pytest.raises(MachineError, match=r"'no-such-package'.*pip install"):
        part_of_package("no-such-package")
    with pytest.raises(MachineError, match="'no-such-package'"):
        package_folder("no-such-package", "no_such_package")


def test_build_metadata_of_a_version_is_left_out() -> None:
    assert "+" not in part_of_package("torch").version  # 2.13.0+cpu carries the same text as 2.13.0


def test_an_unknown_builder_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"sources\.x\.origin\.builder.*'cldr_bitex'; did you mean 'cldr_bitext'\?.*split_passages"):
        build("cldr_bitex", num_negatives=1, max_rows=1, path="sources.x.origin.builder")
