"""Python files to rows: what counts as prose and code, one split per file, no repeats; the reference's sections; halves of passages."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from mlembed_core.data.sources.embedded import passages, python_code, python_files, topics
from mlembed_core.data.sources.embedded.base import Builder, plain, split_of
from mlembed_core.data.sources.embedded.passages import CODE_BREAK, PROSE_BREAK, halve

SOURCE = '''
"""Helpers for the reading of small files.

They are shown here in full, since nobody would believe them otherwise.
"""

class Reader:
    """A reader that remembers what it read."""

    def read_lines(
        self, path: str, *, limit: int | None = None,
    ) -> list[str]:
        r"""Read the lines of a file, up to a limit.

        Files are opened as :class:`~io.TextIOWrapper` [1]_ and closed again at once.

        Parameters
        ----------
        path : str
            Where the file is, which is no prose of the summary.
        """
        with open(path) as file:
            # a comment stays

            return list(file)[:limit]

    def __len__(self):
        """Number of the lines that were read so far."""
        count = 0
        return count

    def nothing(self):
        """This one says what it does and does not do it."""
        raise NotImplementedError

if True:
    def guarded(a, b):
        """Only here when the condition above is true."""
        total = a + b
        return total

def undocumented(x):
    y = x
    return y
'''


@pytest.fixture
def items(tmp_path: Path) -> list[python_files.Documented]:
    path = tmp_path / "small.py"
    path.write_text(SOURCE, encoding="utf-8")
    return list(python_files._read("package/small.py", path))


def test_functions_classes_and_the_module_are_read(items: list[python_files.Documented]) -> None:
    assert [item.summary for item in items] == [
        "Helpers for the reading of small files.",
        "A reader that remembers what it read.",
        "Read the lines of a file, up to a limit.",
        "This one says what it does and does not do it.",
        "Only here when the condition above is true.",
    ]
    assert {item.split for item in items} == {split_of("package/small.py")}
    assert {item.module for item in items} == {"package.small"}


def test_code_is_dedented_and_has_no_docstring(items: list[python_files.Documented]) -> None:
    method = items[2]
    assert method.signature == "def read_lines(self, path: str, *, limit: int | None = None) -> list[str]"
    assert method.code == textwrap.dedent(
        """\
        def read_lines(
            self, path: str, *, limit: int | None = None,
        ) -> list[str]:
            with open(path) as file:
                # a comment stays
                return list(file)[:limit]"""
    )
    assert method.body == ("Files are opened as io.TextIOWrapper and closed again at once.",)
    assert items[3].code == items[0].code == items[1].signature == ""


def test_a_form_feed_does_not_shift_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "old.py"
    path.write_text('x = 1\n\x0c\ndef f(a):\n    """Do what an old file does here."""\n    b = a\n    return b\n', encoding="utf-8")
    assert next(python_files._read("p/old.py", path)).code == "def f(a):\n    b = a\n    return b"


@pytest.mark.parametrize(
    "content", [b'"""\nbroken (\n"""\n\ndef f(:\n    """A doc that is long."""', b'"""\xff\xfe not utf-8 """\n"""x"""']
)
def test_a_file_that_python_cannot_read_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.py").write_bytes(content)
    assert list(python_files._read("p/bad.py", tmp_path / "bad.py")) == []


@pytest.mark.parametrize(
    "docstring",
    [
        "",
        "Too short.",
        ":param x: a directive is no sentence of prose",
        ">>> a_doctest_is_no_prose(either)",
        "Parameters\n----------\nx : int",
        "3.5 + 4.1 * (2 ** 7) == 8 of the numbers %% && || ## !! ~~ ^^",
        "Größe der Datei in Bytes bestimmen",
    ],
)
def test_what_is_no_prose_gives_nothing(docstring: str) -> None:
    assert python_files.prose(docstring) == []


BUILDERS: dict[str, Builder] = {
    "docstring_to_code": python_code.build_docstring_to_code,
    "signature_to_docstring": python_code.build_signature_to_docstring,
    "summary_to_body": python_code.build_summary_to_body,
    "module": python_code.build_module,
    "topics": topics.build,
    "passages": passages.build,
}


@pytest.mark.parametrize("name", BUILDERS)
def test_rows_are_as_many_as_asked_and_leak_nothing(name: str) -> None:
    built = BUILDERS[name](5, 150)
    assert len(built.rows) == 150
    assert {row.split for row in built.rows} == {"train", "dev", "test"}
    texts = {split: {plain(t) for row in built.rows if row.split == split for t in row[:2]} for split in ("train", "dev", "test")}
    negatives = {split: {plain(t) for row in built.rows if row.split == split for t in row.negatives} for split in texts}
    assert not texts["test"] & (texts["train"] | negatives["train"] | texts["dev"])
    assert not texts["dev"] & (texts["train"] | negatives["train"])
    for split, found in negatives.items():
        assert found <= texts[split]
    for row in built.rows:
        assert row.passage not in row.negatives
        assert row.query not in row.negatives
        assert row.query.strip()
        assert row.passage.strip()
    assert all(part.version and part.licence for part in built.parts)
    assert (built.parts[0].name, built.parts[0].licence) == ("CPython standard library", "PSF-2.0")


def test_modules_are_classes() -> None:
    rows = python_code.build_module(5, 150).rows
    home = {text: row.label for row in rows for text in (row.query, row.passage)}
    assert all(home[row.query] == home[row.passage] == row.label for row in rows)
    assert all(home[text] != row.label for row in rows for text in row.negatives)


TOPIC = """\
Sequence Types
**************

There are three basic sequence types, as everybody who reads this knows.

   stmt ::= "assert" expression

list.sort(*, key=None,
          reverse=False)

   This method sorts the list *in place*, using only comparisons between well-
   known items.

   Changed in version 3.7: nothing that anybody would want to learn from.

   >>> an_example(of_the, thing)

key in d

   Returns whether *d* has it; "**" unpacks a *mapping* into it.

Lists are mutable, as was said above, and tuples are not.
"""


def test_sections_of_the_reference() -> None:
    heading, entry, operator = topics._sections(TOPIC)[1:]
    assert heading.title == "Sequence Types"
    assert heading.paragraphs == [
        "There are three basic sequence types, as everybody who reads this knows.",
        "Lists are mutable, as was said above, and tuples are not.",  # dedented again: no part of the entry
    ]
    assert entry.title == "list.sort(*, key=None,"
    assert entry.paragraphs == ["This method sorts the list in place, using only comparisons between well-known items."]
    assert operator == topics.Section("key in d", ['Returns whether d has it; "**" unpacks a mapping into it.'])


def test_pieces_are_whole_paragraphs() -> None:
    section = topics.Section("t", ["a" * 400, "b" * 400, "short", "c" * 100])
    assert topics.pieces(section) == ["a" * 400, "b" * 400 + "\nshort\n" + "c" * 100]


def test_a_passage_is_cut_near_its_middle_at_a_sentence() -> None:
    text = "First sentence here. " * 3 + "Second half now. " * 4
    first, second = halve(text.strip(), PROSE_BREAK, 50) or ("", "")
    assert first.endswith(".")
    assert second.startswith(("First", "Second"))
    assert f"{first} {second}" == text.strip()
    assert abs(len(first) - len(second)) < 25


def test_what_cannot_be_halved_is_left_out() -> None:
    assert halve("no break in here at all " * 10, PROSE_BREAK, 50) is None
    assert halve("Short. " + "one long rest without an end " * 10, PROSE_BREAK, 50) is None
    assert halve("a\nb", CODE_BREAK, 50) is None
