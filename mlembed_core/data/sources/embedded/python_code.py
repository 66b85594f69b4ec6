"""Sources made of Python code and its docstrings: what it does → how, how it is called → what it does, summary → details, modules."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from mlembed_core.data.rows import Row
from mlembed_core.data.sources.embedded import python_files
from mlembed_core.data.sources.embedded.base import Built, Pair, by_hash, settle
from mlembed_core.data.sources.embedded.neighbours import negatives_by_passage, words
from mlembed_core.data.sources.embedded.python_files import Documented

MAX_PASSAGE = 1_000  # characters of prose
MIN_BODY = 60
MODULE_FILES = 420  # files looked at for the clusters; about half have enough functions
FUNCTIONS_PER_MODULE = 8


def build_docstring_to_code(num_negatives: int, max_rows: int | None) -> Built:
    """A docstring's summary → the function without its docstring."""
    pairs = (Pair(item.summary, item.code, item.split) for item in _items() if item.code)
    return _retrieval(pairs, num_negatives, max_rows)


def build_signature_to_docstring(num_negatives: int, max_rows: int | None) -> Built:
    """A signature → the prose of the docstring. Only signatures with an argument that is not the object itself."""
    pairs = (
        Pair(item.signature, _join((item.summary, *item.body)), item.split)
        for item in _items()
        if item.signature and len(item.signature) <= MAX_PASSAGE and not re.search(r"\((self|cls|)\)", item.signature)
    )
    return _retrieval(pairs, num_negatives, max_rows)


def build_summary_to_body(num_negatives: int, max_rows: int | None) -> Built:
    """A docstring's first paragraph → the prose that follows it."""
    pairs = (Pair(item.summary, _join(item.body), item.split) for item in _items() if sum(map(len, item.body)) >= MIN_BODY)
    return _retrieval(pairs, num_negatives, max_rows)


def build_module(num_negatives: int, max_rows: int | None) -> Built:
    """Two functions of one module; the class is the module. Negatives are functions of other modules that look like the second."""
    pairs: list[Pair] = []
    for items in itertools.islice(python_files.documented(), MODULE_FILES):
        codes = {item.code: item for item in items if item.code}
        chosen = [codes[code] for code in by_hash(codes, "module")[:FUNCTIONS_PER_MODULE]]
        if len(chosen) >= FUNCTIONS_PER_MODULE // 2:
            pairs += [Pair(a.code, b.code, a.split, label=a.module) for a, b in zip(chosen[::2], chosen[1::2], strict=False)]
    return _built(pairs, num_negatives, max_rows)


def _items() -> Iterator[Documented]:
    return itertools.chain.from_iterable(python_files.documented())


def _join(paragraphs: tuple[str, ...]) -> str:
    """Paragraphs as one text, cut after the last word that fits."""
    text = "\n".join(paragraphs)
    return text if len(text) <= MAX_PASSAGE else text[:MAX_PASSAGE].rsplit(None, 1)[0]


def _retrieval(pairs: Iterator[Pair], num_negatives: int, max_rows: int | None) -> Built:
    """Reads no more of the pool than ``max_rows`` needs; a little more is read, since some fall out as leaks."""
    enough = None if max_rows is None else max_rows + max_rows // 50 + 10
    return _built(list(itertools.islice(pairs, enough)), num_negatives, max_rows)


def _built(pairs: list[Pair], num_negatives: int, max_rows: int | None) -> Built:
    kept, dropped = settle(pairs, max_rows)
    negatives = negatives_by_passage(kept, words, num_negatives)
    rows = [Row(pair.query, pair.passage, found, None, pair.label, pair.split) for pair, found in zip(kept, negatives, strict=True)]
    return Built(rows, python_files.parts(), dropped)
