"""What the embedded builders share: splits and choices by hash, clean-up across splits, and who wrote the text under which licence.

Everything here is a pure function of text. Python's own ``hash`` and the order of sets never decide anything.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlembed_core.data.rows import Row, keep_by_hash, row_keys
from mlembed_core.errors import MachineError


@dataclass(frozen=True)
class Part:
    """A body of text that a source takes from: the manifest's provenance."""

    name: str
    version: str
    licence: str


@dataclass
class Built:
    """What a builder hands back."""

    rows: list[Row]
    parts: list[Part]
    dropped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """A row before it has negatives."""

    query: str
    passage: str
    split: str
    lang: str | None = None
    label: str | None = None


Builder = Callable[[int, int | None], Built]
"""``(num_negatives, max_rows) -> Built``."""


def key(*parts: str) -> int:
    """64 bits of SHA-256: the one source of chance."""
    return int.from_bytes(hashlib.sha256("\x00".join(parts).encode()).digest()[:8], "big")


def split_of(group: str) -> str:
    """``train``, ``dev`` or ``test`` (80/10/10). A group (a concept, a file) lies in the same split in every source."""
    return ("test", "dev", *("train",) * 8)[key("split", group) % 10]


def by_hash(items: Iterable[str], *salt: str) -> list[str]:
    """The items in an order that looks random and never changes."""
    return sorted(items, key=lambda item: (key(*salt, item), item))


def settle(pairs: Sequence[Pair], max_rows: int | None, *, shared_passages: bool = False) -> tuple[list[Pair], dict[str, int]]:
    """Drop repeats and whatever would leak between splits, then cut to ``max_rows``.

    A text that stands in train is dropped from test and dev, and one that stands in test from dev, so that no held-out query or
    passage was ever seen, as it is or in another case or spacing.

    Args:
        shared_passages: passages are class names, which all splits share by nature; only queries are compared.

    Returns:
        the pairs that stay, in their order, and the counts of those dropped.
    """
    seen: dict[str, set[str]] = {split: set() for split in ("train", "test", "dev")}
    others = {"train": (), "test": ("train",), "dev": ("train", "test")}
    kept: list[int] = []
    dropped = {"dropped_repeats": 0, "dropped_leaks": 0}
    repeats: set[tuple[str, str]] = set()
    for split, earlier in others.items():
        for i, pair in enumerate(pairs):
            if pair.split != split:
                continue
            query, passage = plain(pair.query), plain(pair.passage)
            texts = {query} if shared_passages else {query, passage}
            if query == passage or (query, passage) in repeats:
                dropped["dropped_repeats"] += 1
            elif any(texts & seen[other] for other in earlier):
                dropped["dropped_leaks"] += 1
            else:
                repeats.add((query, passage))
                seen[split] |= texts
                kept.append(i)
    survivors = [pairs[i] for i in sorted(kept)]
    keys = row_keys((pair.query for pair in survivors), (pair.passage for pair in survivors))
    keep = keep_by_hash(keys, [pair.split for pair in survivors], max_rows)
    return [pair for pair, stays in zip(survivors, keep, strict=True) if stays], dropped


@functools.lru_cache(maxsize=1 << 16)
def plain(text: str) -> str:
    """A text without the differences that a reader would not call differences: case and spacing."""
    return " ".join(text.casefold().split())


def part_of_package(distribution: str) -> Part:
    """Version and licence of an installed distribution, as its own metadata states them.

    Raises:
        MachineError: it is not installed.
    """
    try:
        metadata = importlib.metadata.metadata(distribution)
    except importlib.metadata.PackageNotFoundError:
        raise _not_installed(distribution) from None
    version = str(metadata["Version"]).split("+")[0]  # 2.13.0+cpu and 2.13.0 carry the same text
    return Part(distribution, version, _licence(metadata))


def _licence(metadata: importlib.metadata.PackageMetadata) -> str:
    """The SPDX expression; before that existed, a short ``License`` field, or else the classifiers."""
    expression, stated = (str((metadata.get_all(field) or [""])[0]) for field in ("License-Expression", "License"))
    if expression:
        return expression
    if stated and "\n" not in stated and len(stated) <= 40:
        return stated
    classifiers = [str(line).rsplit(" :: ", 1)[-1] for line in metadata.get_all("Classifier") or [] if str(line).startswith("License ::")]
    return ", ".join(classifiers) or "see the package's metadata"


def package_folder(distribution: str, package: str) -> Path:
    """Where a package's files lie, found without importing it.

    Raises:
        MachineError: it is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise _not_installed(distribution)
    return Path(next(iter(spec.submodule_search_locations)))


def _not_installed(distribution: str) -> MachineError:
    return MachineError(
        f"the package {distribution!r}, whose text an embedded source is made of, is not installed. "
        "Install the pinned set: pip install -c constraints.txt '.[all]'"
    )
