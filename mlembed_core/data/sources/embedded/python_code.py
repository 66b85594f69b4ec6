"""Sources made of Python code and its docstrings: what it does → how, how it is called → what it does, summary → details, modules."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from mlembed_core.data.sources.embedded import python_files
from mlembed_core.data.sources.embedded.base import Built, Pair, by_hash
from mlembed_core.data.sources.embedded.neighbours import with_negatives
from mlembed_core.data.sources.embedded.python_files import Documented

MAX_PASSAGE = 1_000  # characters of prose
MIN_BODY = 60
MODULE_FILES = 490  # files looked at for the clusters; about half have enough functions
FUNCTIONS_PER_MODULE = 8


def build_docstring_to_code(num_negatives: int, max_rows: int | None) -> Built:
    """A docstring's summary → the function without its docstring."""
    pairs = (Pair(item.summary, item.code, item.split) for item in _items() if item.code)
    return with_negatives(pairs, python_files.parts(), num_negatives, max_rows)


def build_signature_to_docstring(num_negatives: int, max_rows: int | None) -> Built:
    """A signature → the prose of the docstring. Only signatures with an argument that is not the object itself."""
    pairs = (
        Pair(item.signature, _join((item.summary, *item.body)), item.split)
        for item in _items()
        if item.signature and len(item.signature) <= MAX_PASSAGE and not re.search(r"\((self|cls|)\)", item.signature)
    )
    return with_negatives(pairs, python_files.parts(), num_negatives, max_rows)


def build_summary_to_body(num_negatives: int, max_rows: int | None) -> Built:
    """A docstring's first paragraph → the prose that follows it."""
    pairs = (Pair(item.summary, _join(item.body), item.split) for item in _items() if sum(map(len, item.body)) >= MIN_BODY)
    return with_negatives(pairs, python_files.parts(), num_negatives, max_rows)


def build_module(num_negatives: int, max_rows: int | None) -> Built:
    """Two functions of one module; the class is the module. Negatives are functions of other modules that look like the second."""
    return with_negatives(_pairs_of_modules(), python_files.parts(), num_negatives, max_rows)


def _pairs_of_modules() -> Iterator[Pair]:
    for items in itertools.islice(python_files.documented(), MODULE_FILES):
        codes = {item.code: item for item in items if item.code}
        chosen = [codes[code] for code in by_hash(codes, "module")[:FUNCTIONS_PER_MODULE]]
        if len(chosen) >= FUNCTIONS_PER_MODULE // 2:
            for first, second in zip(chosen[::2], chosen[1::2], strict=False):
                yield Pair(first.code, second.code, first.split, label=first.module)


def _items() -> Iterator[Documented]:
    return itertools.chain.from_iterable(python_files.documented())


def _join(paragraphs: tuple[str, ...]) -> str:
    """Paragraphs as one text, cut after the last word that fits."""
    text = "\n".join(paragraphs)
    return text if len(text) <= MAX_PASSAGE else text[:MAX_PASSAGE].rsplit(None, 1)[0]
