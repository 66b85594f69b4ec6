"""The comments of C++ headers and the declarations below them, from the headers that torch and pyarrow carry.

A line scanner, not a parser: it follows comments and braces line by line in one pass, and so takes time linear in the text. (One
regular expression over whole files backtracks for minutes.)
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mlembed_core.data.sources.embedded.base import Built, Pair, by_hash, package_folder, part_of_package, plain, split_of
from mlembed_core.data.sources.embedded.neighbours import with_negatives

# Distribution → the folders of headers that are its own, not a third party's.
HEADERS = {"torch": ("include/ATen", "include/c10", "include/torch"), "pyarrow": ("include/arrow", "include/parquet")}
SKIPPED_FOLDERS = frozenset({"ops", "vendored", "testing"})  # ATen/ops: thousands of generated files with one line each
MAX_LINES = 12  # of a declaration; a class or an inline function gives its first lines
MAX_COMMENT = 1_000
MIN_WORDS = 5

ACCESS = ("public:", "protected:", "private:")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.){1,2}\'')
DECLARING_SCOPE = re.compile(r"\b(?:namespace|class|struct|union|extern)\b")
# What stands above code but does not describe it: licences, notes to tools and to developers, schemas, code that was commented out.
NO_DESCRIPTION = re.compile(
    r"copyright|licen[cs]e|nolint|clang-|todo|fixme|xxx|hack|pragma|#if|#include|@generated|namespace|see note|-\*-"
    r"|^using |^return |^note[ :]|^\w+::\w+[.(]",
    re.IGNORECASE,
)
# Where a description ends and its details begin, at the start of a line; pointers to web pages, anywhere.
DETAILS = re.compile(
    r"\s*(?:[\\@](?:t?param|returns?|throws?|note|see|code|pre|post|example|invariant)\b|(?:Args|Example|Examples|Parameters|Returns|Usage):)"
)
POINTER = re.compile(r"\s*\bSee (?:https?:|the documentation for).*")
# Comment marks, Doxygen commands that stand before ordinary words, and rulers.
MARKERS = re.compile(
    r"^(?:/{2,}!?<?|/\*+!?<?|\*+/|\*+)\s?|\s*\*+/$|[\\@](?:brief|internal|ingroup \w+|a|c|p|ref|class \w+|file)\b\s*|[=*~#-]{4,}"
)
NO_DECLARATION = re.compile(
    r"(?:\}|\)|#|//|public:|private:|protected:|namespace\b|using namespace\b|return\b|if\b|for\b|while\b|case\b|else\b|do\b)"
)
WORD = re.compile(r"[A-Za-z]{2,}")


def build_comment_to_declaration(num_negatives: int, max_rows: int | None) -> Built:
    """A comment → the declaration that it stands above, its first lines where it is long."""
    found = itertools.chain.from_iterable(_pairs_of_file(name, path) for name, path in _files())
    return with_negatives(_without_repeats(found), [part_of_package(distribution) for distribution in HEADERS], num_negatives, max_rows)


def _files() -> list[tuple[str, Path]]:
    """("torch/include/c10/util/Optional.h", path) of every header, ordered by hash."""
    found: dict[str, Path] = {}
    for distribution, folders in HEADERS.items():
        root = package_folder(distribution, distribution)
        for folder in folders:
            for path in _walk(root / folder):
                found[f"{distribution}/{path.relative_to(root).as_posix()}"] = path
    return [(name, found[name]) for name in by_hash(found, "headers")]


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        yield from (Path(folder, name) for name in sorted(files) if name.endswith((".h", ".hpp", ".cuh")))


def _without_repeats(pairs: Iterator[Pair]) -> Iterator[Pair]:
    seen: set[str] = set()
    for pair in pairs:
        texts = {plain(pair.query), plain(pair.passage)}
        if not texts & seen:
            yield pair
        seen |= texts


def _pairs_of_file(name: str, path: Path) -> Iterator[Pair]:
    text = path.read_text(encoding="utf-8", errors="replace")
    for comment, declaration in scan(text.splitlines()):
        described = describe(comment)
        if described and len(WORD.findall(declaration)) >= 2 and not NO_DECLARATION.match(declaration):
            yield Pair(described, declaration, split_of(name))


def scan(lines: list[str]) -> Iterator[tuple[list[str], str]]:
    """Comments that stand right above a declaration, with it: outside of functions, no blank line between."""
    comment: list[str] = []
    scopes: list[bool] = []  # of every open brace: may declarations stand in it?
    head = ""  # code since the last brace or semicolon
    in_block = False
    for number, line in enumerate(lines):
        stripped = line.strip()
        if in_block or stripped.startswith(("//", "/*")):
            comment = [*comment, stripped] if len(comment) < 60 else comment
            in_block = (in_block or stripped.startswith("/*")) and "*/" not in stripped
        elif not stripped or stripped.startswith("#") or stripped in ACCESS:
            comment = []
        else:
            if comment and all(scopes) and not head.strip():
                yield comment, _declaration(lines[number : number + MAX_LINES])
            comment = []
            head = _follow_braces(_bare(stripped), head, scopes)


def _bare(line: str) -> str:
    """A line of code without strings and trailing comments, whose braces would mislead."""
    return STRING.sub('""', line).split("//", 1)[0]


def _follow_braces(code: str, head: str, scopes: list[bool]) -> str:
    """Open and close scopes along a line; gives back what stands after its last brace or semicolon."""
    for piece in re.split(r"([{};])", code):
        if piece == "{":
            scopes.append(bool(DECLARING_SCOPE.search(head)) and not re.search(r"\)\s*\w*\s*$", head))
            head = ""
        elif piece == "}":
            if scopes:
                scopes.pop()
            head = ""
        elif piece == ";":
            head = ""
        else:
            head = (head + " " + piece)[-500:]
    return head


def _declaration(lines: list[str]) -> str:
    """From the first line up to the semicolon or closing brace outside of all brackets; all the lines where that comes later."""
    depth = 0
    taken: list[str] = []
    ends = (";", "}") if lines[0].lstrip().startswith("template") else (";", "}", ",")  # a comma ends a member of an enum
    margin = len(lines[0]) - len(lines[0].lstrip())
    for line in lines:
        if line.strip() and not line.strip().startswith(("//", "/*", "*")):
            taken.append(line.rstrip()[margin:] if not line[:margin].strip() else line.strip())
        code = _bare(line)
        depth += sum(code.count(mark) for mark in "({[") - sum(code.count(mark) for mark in ")}]")
        if depth <= 0 and code.rstrip().endswith(ends):
            break
    return "\n".join(taken)


def describe(comment: list[str]) -> str:
    """What a comment says about what follows, on one line and up to the first details; ``""`` where it says nothing."""
    lines: list[str] = []
    for line in comment:
        text = MARKERS.sub("", MARKERS.sub("", line)).strip()
        if DETAILS.match(text) and lines:
            break
        lines.append(text)
    text = POINTER.sub("", " ".join(" ".join(lines).replace("`", "").split()))
    if not text.isascii() or NO_DESCRIPTION.search(text) or text.endswith((";", "{", "}")) or len(text) > MAX_COMMENT:
        return ""
    if len(WORD.findall(text)) < MIN_WORDS or sum(map(str.isalpha, text)) < 0.65 * len(text):
        return ""
    return text
