"""Golden vectors: texts whose vectors an export carries, so that any stack can show that it computes the same.

The texts are chosen for what has gone wrong in other people's stacks: the empty text and the long one show a missing EOS, the query a
missing prompt, scripts and code a tokenizer of another version, and lengths above one the rotary base.
None begins or ends with a space: sentence-transformers 5 strips texts before it tokenises them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlembed_core.artifacts import read_json, write_json
from mlembed_core.errors import ArtifactError
from mlembed_core.prompts import format_query

VECTORS_FILE = "golden.npy"
EXPORT_FACTS = "export.json"
DOCUMENTS = (
    "",
    "a",
    "The quick brown fox jumps over the lazy dog.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю.",
    "いろはにほへと ちりぬるを",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "def add(a: int, b: int) -> int:\n    return a + b\n",
    "🦉 ünïcödé\tand  spaces",
    "a text that is longer than most, " * 40 + "and ends",
)
QUERIES = ("how do I parse a date from a string?",)


def golden_texts(instruction: str | None) -> list[str]:
    """All texts as the tokenizer sees them, the queries behind their prompt."""
    return [*DOCUMENTS, *(format_query(query, instruction) for query in QUERIES)]


def write_golden(folder: Path, vectors: NDArray[Any], facts: dict[str, Any]) -> None:
    """Write the vectors, and what is known of the export."""
    np.save(folder / VECTORS_FILE, vectors.astype(np.float32), allow_pickle=False)
    write_json(folder / EXPORT_FACTS, facts)


def read_golden(folder: Path) -> tuple[NDArray[Any], dict[str, Any]]:
    """The vectors and the facts of an export.

    Raises:
        ArtifactError: the folder is no export, or these files are damaged.
    """
    if not (folder / EXPORT_FACTS).is_file():
        raise ArtifactError(
            f"{folder} is no export (no {EXPORT_FACTS}): there are no golden vectors to hold it to. `mlembed export` makes one."
        )
    try:
        vectors: NDArray[Any] = np.load(folder / VECTORS_FILE, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{folder / VECTORS_FILE} is missing or damaged ({error}). Fetch the export again, or make it anew.") from None
    return vectors, read_json(folder / EXPORT_FACTS)


def difference(found: NDArray[Any], golden: NDArray[Any]) -> float:
    """The largest difference of two entries; infinite where the shapes differ or a value is no number."""
    if found.shape != golden.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - golden).max())


def lowest_cosine(some: NDArray[Any], others: NDArray[Any]) -> float:
    """Of unit vectors, row by row."""
    return float((some * others).sum(axis=1).min())
