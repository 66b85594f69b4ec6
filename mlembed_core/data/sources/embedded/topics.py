"""The Python language reference, as the standard library carries it for ``help()``: title → section."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field

from mlembed_core.data.sources.embedded.base import Built, Pair, key, split_of
from mlembed_core.data.sources.embedded.neighbours import with_negatives
from mlembed_core.data.sources.embedded.python_files import standard_library, standard_library_folder

MAX_PASSAGE = 600
MIN_PASSAGE = 60
MAX_PIECES = 6  # of one section: the long ones have dozens of paragraphs
UNDERLINE = re.compile(r"[*=\-~^]{3,}")
ENTRY = re.compile(r"(?:(?:class|coroutine|async|exception)\s+)?[A-Za-z_][\w.]*(?:\(.*)?|[\w\[\].=]+(?: [\w\[\].=]+){1,3}")  # key not in d
EMPHASIS = re.compile(r"(?<![\w*\"'])\*{1,2}([^\s*](?:[^*]*[^\s*])?)\*{1,2}(?![\w*\"'])")
WORD = re.compile(r"[A-Za-z]{2,}")
STATEMENT = re.compile(r"(?:def|class|import|from|if|for|while|with|async|try)\b.*:\s*$", re.MULTILINE)
REMARK = re.compile(r"(?:Changed in version|New in version|Deprecated since|Source code:|See also)")


@dataclass
class Section:
    """A heading, or the signature of something that the reference describes, and the paragraphs below it."""

    title: str
    paragraphs: list[str] = field(default_factory=list)


def build(num_negatives: int, max_rows: int | None) -> Built:
    """The title of a section → a piece of it. The split goes by title: several topics quote the same section."""
    pairs: list[Pair] = []
    seen: set[str] = set()
    for section in read_sections():
        new = [text for text in pieces(section) if text not in seen]
        seen |= set(new)
        pairs += [Pair(section.title, text, split_of(f"topic/{section.title}")) for text in new if section.title]
    return with_negatives(pairs, [standard_library()], num_negatives, max_rows)


def read_sections() -> list[Section]:
    """All sections of all topics, in an order by the hash of their titles; those of one title in their own order."""
    source = (standard_library_folder() / "pydoc_data" / "topics.py").read_text(encoding="utf-8")
    assignment = ast.parse(source).body[0]
    topics: dict[str, str] = ast.literal_eval(assignment.value) if isinstance(assignment, ast.Assign) else {}
    sections = [section for name in sorted(topics) for section in _sections(topics[name])]
    return sorted(sections, key=lambda section: key("section", section.title))


def pieces(section: Section) -> list[str]:
    """The text of a section in pieces of whole paragraphs, each as long as fits but never less than a paragraph."""
    texts = [""]
    for paragraph in section.paragraphs:
        if texts[-1] and len(texts[-1]) + len(paragraph) > MAX_PASSAGE:
            texts.append("")
        texts[-1] = f"{texts[-1]}\n{paragraph}".strip()
    return [text for text in texts[:MAX_PIECES] if len(text) >= MIN_PASSAGE]


def _sections(topic: str) -> list[Section]:
    """Cut a topic at its headings (underlined) and entries (a signature with an indented block below it).

    An entry holds what is indented under it; what comes after belongs to the heading again.
    """
    heading = entry = Section("")
    sections = [heading]
    margin = 0  # of the entry
    blocks = [block for block in re.split(r"\n[ \t]*\n", topic) if block.strip()]
    for block, following in zip(blocks, [*blocks[1:], ""], strict=True):
        lines = block.splitlines()
        if len(lines) == 2 and UNDERLINE.fullmatch(lines[1].strip()):
            heading = entry = Section(_one_line(lines[0]))
            sections.append(heading)
        elif _indent(following) > _indent(block) and _names_an_entry(lines):
            entry, margin = Section(_one_line(lines[0])), _indent(block)
            sections.append(entry)
        elif _is_prose(block):
            (entry if _indent(block) > margin else heading).paragraphs.append(_one_line(block))
    return sections


def _names_an_entry(lines: list[str]) -> bool:
    """One signature, that may go on over a few lines, or a whole list of them."""
    matching = [bool(ENTRY.fullmatch(line.strip())) for line in lines]
    return all(matching) or (matching[0] and len(lines) <= 4)


def _one_line(block: str) -> str:
    """A block as a reader would say it: no line breaks, no emphasis marks, words that were broken at a hyphen put together."""
    text = re.sub(r"-\n\s*", "-", block)
    return EMPHASIS.sub(r"\1", " ".join(text.split())).removeprefix("* ")


def _indent(block: str) -> int:
    return len(block) - len(block.lstrip(" "))


def _is_prose(block: str) -> bool:
    """Sentences: not grammar, tables, doctests or example code."""
    text = block.strip()
    if "::=" in text or text.startswith((">>>", "+-", "|", "...")) or STATEMENT.match(text) or REMARK.match(text):
        return False
    return len(WORD.findall(text)) >= 5 and sum(map(str.isalpha, text)) >= 0.6 * len(text) and not re.search(r"\s{5}\S", text)
