"""Sources made of text that comes with Python and with the project's own dependencies: real text, no download.

CLDR's names in hundreds of languages (:mod:`.cldr`), Python code and its docstrings (:mod:`.python_code`), the language reference
(:mod:`.topics`), C++ headers (:mod:`.cpp`), and halves of passages of the last three (:mod:`.passages`). A builder is a pure function
of the installed packages: no clock, no locale, no randomness, no order of sets or folders.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from mlembed_core.config.base import pick
from mlembed_core.data.sources.embedded import cldr, cpp, passages, python_code, topics
from mlembed_core.data.sources.embedded.base import Builder, Built

BUILDERS: dict[str, Builder] = {
    "cldr_bitext": cldr.build_bitext,
    "cldr_language_identification": cldr.build_language_identification,
    "cldr_kind_of_name": cldr.build_kind_of_name,
    "python_docstring_to_code": python_code.build_docstring_to_code,
    "python_signature_to_docstring": python_code.build_signature_to_docstring,
    "python_summary_to_body": python_code.build_summary_to_body,
    "python_module": python_code.build_module,
    "python_topics": topics.build,
    "cpp_comment_to_declaration": cpp.build_comment_to_declaration,
    "split_passages": passages.build,
}


def build(builder: str, *, num_negatives: int, max_rows: int | None, path: str) -> Built:
    """Run a builder.

    Args:
        builder: a key of :data:`BUILDERS`.
        num_negatives: hard negatives a row; fewer where a split has too few other texts.
        max_rows: at most this many rows, chosen by hash in proportion to the splits.
        path: where in the parameters the name stands, for the message.

    Raises:
        ConfigError: there is no such builder; the message lists those there are.
        MachineError: a package that the text comes from is not installed.
    """
    chosen = pick(BUILDERS, builder, path=path)
    with _no_garbage_collection():
        return chosen(num_negatives, max_rows)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Builders make millions of objects and no cycles; without the collector looking for some they take a third less time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
