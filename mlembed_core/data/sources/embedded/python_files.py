"""Documented functions, classes and modules in the Python files of the standard library and of packages that the project depends on anyway.

Files are parsed, never imported. They come in an order by hash, so that the first few are as good a sample as all, and every builder
that needs fewer rows than there are stops reading early. Since builders share that order and repeats are dropped here, a function
whose text two sources use lies in the same split in both.
"""

from __future__ import annotations

import ast
import inspect
import os
import platform
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlembed_core.data.sources.embedded.base import Part, by_hash, package_folder, part_of_package, plain, split_of

STANDARD_LIBRARY = "CPython standard library"


class Package(NamedTuple):
    """A package of the pool, and of how many of its files."""

    name: str
    distribution: str
    num_files: int


# Fewer files of the large packages, so that none outweighs the others; they also have the least prose for the parsing that they take.
PACKAGES = (
    Package("networkx", "networkx", 600),
    Package("numpy", "numpy", 600),
    Package("pandas", "pandas", 600),
    Package("scipy", "scipy", 600),
    Package("sklearn", "scikit-learn", 600),
    Package("sympy", "sympy", 150),
    Package("torch", "torch", 300),
    Package("transformers", "transformers", 150),
)
STANDARD_LIBRARY_FILES = 600
MAX_FILE_BYTES = 200_000
MIN_DOCSTRINGS = 0.3  # a thousand bytes; a file with fewer costs more parsing than it gives text
MIN_CODE_LINES = 2
MAX_CODE = 1_000  # characters; cut at a line's end
# Tests, vendored copies, generated code, per-model copies of one file, and what Linux distributions leave out of Python or change in it.
SKIPPED_FOLDERS = frozenset(
    {
        *("__pycache__", "_vendor", "autolev", "benchmarks", "bin", "config", "conftest", "dist-packages", "distutils", "ensurepip"),
        *("examples", "externals", "f2py", "idlelib", "include", "lib", "lib-dynload", "lib2to3", "models", "rubi", "share"),
        *("site-packages", "test", "testing", "tests", "tkinter", "turtledemo", "vendor"),
    }
)
SKIPPED_FILES = ("test_", "conftest", "_sysconfigdata", "sitecustomize", "usercustomize", "setup.", "_version")


@dataclass(frozen=True)
class Documented:
    """A function, class or module with a docstring.

    ``summary`` is the docstring's first paragraph on one line, ``body`` the prose paragraphs after it (up to the first section).
    Functions whose own code says something have two more: ``signature``, the ``def`` on one line without its colon, and ``code``,
    the definition without the docstring. Else these are ``""``.
    """

    module: str
    split: str
    summary: str
    body: tuple[str, ...]
    signature: str = ""
    code: str = ""


def documented() -> Iterator[list[Documented]]:
    """What is documented in one file after another, in the order of the files' hashes, repeats left out."""
    seen: set[str] = set()
    for name, path in _files():
        found = []
        for item in _read(name, path):
            texts = {plain(text) for text in (item.summary, item.code) if text}
            if not texts & seen:
                found.append(item)
            seen |= texts
        if found:
            yield found


def parts() -> list[Part]:
    """The standard library and every package, with versions and licences."""
    return [standard_library(), *(part_of_package(package.distribution) for package in PACKAGES)]


def standard_library() -> Part:
    return Part(STANDARD_LIBRARY, platform.python_version(), "PSF-2.0")


def standard_library_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _files() -> list[tuple[str, Path]]:
    """("sklearn/linear_model/_base.py", path) of every file of the pool, ordered by hash."""
    pool: dict[str, Path] = {}
    roots = [("python", standard_library_folder(), STANDARD_LIBRARY_FILES)]
    roots += [(package.name, package_folder(package.distribution, package.name), package.num_files) for package in PACKAGES]
    for name, root, num_files in roots:
        found = {f"{name}/{path.relative_to(root).as_posix()}": path for path in _walk(root)}
        pool |= {file: found[file] for file in by_hash(found, "pool")[:num_files]}
    return [(file, pool[file]) for file in by_hash(pool, "files")]


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("config-"))
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py") and not name.startswith(SKIPPED_FILES))


def _read(name: str, path: Path) -> Iterator[Documented]:
    source = path.read_bytes()
    if len(source) > MAX_FILE_BYTES or source.count(b'"""') / 2 < MIN_DOCSTRINGS * len(source) / 1_000:
        return
    try:
        text = source.decode("utf-8")
        with warnings.catch_warnings(action="ignore"):  # what the parser thinks of other people's escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError):  # a few files are broken on purpose, or in another encoding
        return
    lines = text.replace("\r\n", "\n").split("\n")  # not splitlines: a form feed is no new line to the parser
    module = name.removesuffix(".py").removesuffix("/__init__").removeprefix("python/").replace("/", ".")
    for node in (tree, *_definitions(tree.body)):
        docstring = ast.get_docstring(node, clean=False)
        paragraphs = prose(inspect.cleandoc(docstring)) if docstring else []
        if paragraphs:
            signature, code = ("", "") if isinstance(node, ast.Module | ast.ClassDef) else _text_of(node, lines)
            yield Documented(module, split_of(name), paragraphs[0], tuple(paragraphs[1:]), signature, code)


def _definitions(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """Functions, classes and methods, but for the special ones; what stands inside a function is left to it."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("__"):
                yield node
        elif isinstance(node, ast.ClassDef):
            yield node
            yield from _definitions(node.body)
        elif isinstance(node, ast.If | ast.Try):
            yield from _definitions(node.body)


def _text_of(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> tuple[str, str]:
    """Signature and code of a definition; both ``""`` where the body has less than two lines or the ``def`` is on the docstring's."""
    docstring = node.body[0]
    head = lines[node.lineno - 1 : docstring.lineno - 1]
    body = [line for line in lines[docstring.end_lineno or docstring.lineno : node.end_lineno] if line.strip()]
    if not head or len(body) < MIN_CODE_LINES:
        return "", ""
    code = textwrap.dedent("\n".join([*head, *body]))
    if len(code) > MAX_CODE:
        code = code[:MAX_CODE].rsplit("\n", 1)[0]
    signature = " ".join(" ".join(head).split()).rstrip(":")
    return re.sub(r"\( | (?=\))|,(?= \))", lambda found: "(" if found[0] == "( " else "", signature), code


SECTION = re.compile(
    r"(parameters?|params|args|arguments|returns?|yields?|raises|examples?|notes?|references|see also|attributes|warnings?"
    r"|usage|inputs?|outputs?|keyword arguments|explanation|algorithm)\s*:*\s*(\n|$)",
    re.IGNORECASE,
)
NOT_PROSE = re.compile(r"[.:@>|\\*+#=~`\[{(<$\-]")
MARKUP = re.compile(r":[a-z]+(?::[a-z]+)*:`~?\.?([^`<]+?)(?:\s*<[^`>]+>)?`")
NOISE = re.compile(r"``|\s*\[\w{1,20}\]_|[=~^*-]{4,}")  # double backquotes, footnote marks, underlines of headings
WORD = re.compile(r"[A-Za-z]{2,}")


def prose(docstring: str) -> list[str]:
    """The paragraphs of a docstring that are prose, each on one line, up to the first section (Parameters, Returns, …).

    Sphinx roles are unwrapped (``:class:`~numpy.ndarray``` becomes ``numpy.ndarray``). Empty where the first paragraph is no sentence.
    """
    paragraphs: list[str] = []
    for block in re.split(r"\n[ \t]*\n", docstring):
        if SECTION.match(block.strip()):
            break
        text = " ".join(NOISE.sub("", MARKUP.sub(r"\1", block)).split())
        if _is_prose(text):
            paragraphs.append(text[:-1] if text.endswith("::") else text)
        elif not paragraphs:
            return []
    return paragraphs


def _is_prose(text: str) -> bool:
    """At least four words, mostly letters, in ASCII, not starting like a directive, a list, a doctest or code."""
    if not text.isascii() or NOT_PROSE.match(text):
        return False
    num_words = len(WORD.findall(text))
    letters = sum(map(str.isalpha, text))
    return num_words >= 4 and letters >= 0.6 * len(text)
