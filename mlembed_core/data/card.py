"""What training data are: rows, tokens, languages and scripts, kinds, licences, lengths of texts, and what the checks dropped.

Counts come from manifests, lengths from the cache, languages from the rows' own column. Scripts are those of the characters of a sample,
whole row groups evenly spaced through a source, so that no source has to be read as a whole.
"""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from mlembed_core.config.language_names import language_name, script_name
from mlembed_core.data.store import CachedSource, TrainingCache
from mlembed_core.data.texts import num_row_groups, read_batches, read_group

SAMPLED_GROUPS = 5  # of ROW_GROUP rows
CHUNK_ROWS = 1_000_000
# Of licences, as packages and dataset cards spell them: one name each.
SPELLINGS = {
    "Apache 2.0 License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "apache-2.0": "Apache-2.0",
    "BSD License": "BSD",
    "MIT License": "MIT",
    "mit": "MIT",
}
# What a check found, where its name alone does not say it (config/checks.py; the embedded sources' own are repeats and leaks).
CHECKS = {
    "repeats": "says the same as an earlier row",
    "leaks": "a text of it stands in another split",
    "duplicate": "query and passage of an earlier row",
    "query_equals_passage": "query and passage are the same",
    "passage_among_negatives": "the passage is among its own negatives",
    "too_few_negatives": "fewer negatives than asked for",
    "unknown_label": "a label that the source does not list",
    "too_long": "a text is too long",
    "empty_query": "no query",
    "empty_passage": "no passage",
    "broken_unicode": "characters are broken",
}
NO_SCRIPT = {"Zyyy", "Zinh", "Zzzz"}  # digits and punctuation, marks, and characters that no script has
SHOWN = 25  # languages, scripts and sources in the picture
TEMPLATE = Path(__file__).parent / "card.html.jinja"


@dataclass(frozen=True)
class SourceFacts:
    """One source.

    Attributes:
        rows: by split, test rows and held-out ones too.
        languages: rows by language, "" where none is named.
        scripts: characters of a sample by script (ISO 15924).
        query_lengths, passage_lengths: texts by length, in rows of the cache: at k those of more than 2^(k−1) and at most 2^k tokens.
        dropped: rows dropped and kept by the checks.
    """

    name: str
    kind: str
    rows: dict[str, int]
    documents: int
    tokens: int
    truncated: int
    licences: list[str]
    languages: dict[str, int]
    scripts: dict[str, int]
    query_lengths: list[int]
    passage_lengths: list[int]
    dropped: dict[str, int]

    @property
    def num_rows(self) -> int:
        return sum(self.rows.values())


@dataclass(frozen=True)
class DataCard:
    """All sources, and their sums.

    Attributes:
        licences: rows of the sources that have text under each; a source of several licences counts for all of them.
    """

    sources: list[SourceFacts]
    rows: int
    documents: int
    tokens: int
    kinds: dict[str, int]
    languages: dict[str, int]
    scripts: dict[str, int]
    licences: dict[str, int]
    query_lengths: list[int]
    passage_lengths: list[int]
    dropped: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def source_facts(
    name: str,
    *,
    kind: str,
    rows_file: Path,
    source: Mapping[str, Any],
    corpus: Mapping[str, Any],
    cached: CachedSource,
    cache: TrainingCache,
) -> SourceFacts:
    """Gather what there is to say of a source.

    Args:
        source, corpus: manifests of its two stages.
        cached: its rows in ``cache``.

    Raises:
        ArtifactError: its rows cannot be read.
    """
    counts = source["counts"]
    rows = np.arange(cached.train.start, cached.validation.stop)
    return SourceFacts(
        name=name,
        kind=kind,
        rows={split: counts[f"rows_{split}"] for split in ("train", "dev", "test", "unsplit") if counts.get(f"rows_{split}")},
        documents=corpus["counts"]["documents"],
        tokens=corpus["counts"]["tokens"],
        truncated=corpus["counts"]["truncated"],
        licences=list(source["details"]["licences"]),
        languages=_languages(rows_file),
        scripts=_scripts(rows_file),
        query_lengths=_length_histogram(cache, rows, of_queries=True),
        passage_lengths=_length_histogram(cache, rows, of_queries=False),
        dropped={key: count for key, count in counts.items() if key.startswith(("dropped_", "kept_")) and count},
    )


def _languages(rows_file: Path) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for batch in read_batches(rows_file, ["lang"]):
        for value in pc.value_counts(batch.column("lang")).to_pylist():
            counts[value["values"] or ""] += value["counts"]
    return _ordered(counts)


def _scripts(rows_file: Path) -> dict[str, int]:
    """Characters by script, over a sample of queries and passages."""
    from fontTools.unicodedata import script

    groups = num_row_groups(rows_file)
    chosen = sorted({round(position) for position in np.linspace(0, groups - 1, SAMPLED_GROUPS)})
    characters: Counter[int] = Counter()
    for group in chosen:
        for batch in read_group(rows_file, group, ["query", "passage"]):
            text = "".join(batch.column("query").to_pylist()) + "".join(batch.column("passage").to_pylist())
            points, counts = np.unique(np.frombuffer(text.encode("utf-32-le"), dtype="<u4"), return_counts=True)
            characters.update(dict(zip(points.tolist(), counts.tolist(), strict=True)))
    scripts: Counter[str] = Counter()
    for point, count in characters.items():
        if (name := script(chr(point))) not in NO_SCRIPT:
            scripts[name] += count
    return _ordered(scripts)


def _length_histogram(cache: TrainingCache, rows: NDArray[np.int64], *, of_queries: bool) -> list[int]:
    histogram = np.zeros(1, dtype=np.int64)
    for start in range(0, len(rows), CHUNK_ROWS):
        chunk = rows[start : start + CHUNK_ROWS]
        lengths = cache.lengths(cache.query_ids(chunk) if of_queries else cache.passage_ids(chunk))
        counts = np.bincount(np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64))
        histogram = _padded_sum([histogram, counts])
    return [int(count) for count in histogram]


def describe(facts: Sequence[SourceFacts]) -> DataCard:
    """The sums over all sources."""
    return DataCard(
        sources=list(facts),
        rows=sum(source.num_rows for source in facts),
        documents=sum(source.documents for source in facts),
        tokens=sum(source.tokens for source in facts),
        kinds=_ordered(_sum({source.kind: source.num_rows} for source in facts)),
        languages=_ordered(_sum(source.languages for source in facts)),
        scripts=_ordered(_sum(source.scripts for source in facts)),
        licences=_ordered(_sum(dict.fromkeys(single_licences(source.licences) or ["unknown"], source.num_rows) for source in facts)),
        query_lengths=[int(count) for count in _padded_sum([np.array(source.query_lengths) for source in facts])],
        passage_lengths=[int(count) for count in _padded_sum([np.array(source.passage_lengths) for source in facts])],
        dropped=_ordered(_sum(source.dropped for source in facts)),
    )


def single_licences(expressions: Sequence[str]) -> list[str]:
    """The licences that expressions like ``Apache-2.0 AND MIT`` are made of, each once, by one name."""
    parts = [part.strip("() ") for text in expressions for part in re.split(r"\s+(?:AND|OR)\s+", text)]
    return sorted({SPELLINGS.get(part, part) for part in parts if part})


def check_in_words(name: str) -> str:
    """``dropped: empty query`` for ``dropped_empty_query``."""
    what, _, check = name.partition("_")
    return f"{what}: {CHECKS.get(check, check.replace('_', ' '))}"


def language_in_words(code: str) -> str:
    """Its name; rows need not say a language."""
    return language_name(code) if code else "not named"


def _in_words(counts: Mapping[str, int], name: Callable[[str], str]) -> dict[str, int]:
    """The same counts by names for people; two codes of one name are one."""
    return _ordered(_sum({name(code): count} for code, count in counts.items()))


def _sum(counts: Iterable[Mapping[str, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for part in counts:
        total.update(part)
    return total


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    """The largest first, equal ones by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _padded_sum(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    total = np.zeros(max(map(len, parts)), dtype=np.int64)
    for part in parts:
        total[: len(part)] += part
    return total


def picture(card: DataCard) -> bytes:
    """A PNG: rows by source and by language, characters by script, lengths of texts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9), dpi=100, layout="constrained")
    (by_source, by_language), (by_script, by_length) = figure.subplots(2, 2)
    _bars(by_source, {source.name: source.num_rows for source in sorted(card.sources, key=lambda item: -item.num_rows)}, "rows by source")
    _bars(by_language, _in_words(card.languages, language_in_words), "rows by language (logarithmic)")
    _bars(by_script, _in_words(card.scripts, script_name), "characters by script, of a sample (logarithmic)")
    for axis in (by_language, by_script):
        axis.set_xscale("log")
    labels = [f"≤{2**k}" for k in range(max(len(card.query_lengths), len(card.passage_lengths)))]
    places = np.arange(len(labels))
    for offset, (name, counts) in zip((-0.2, 0.2), (("queries", card.query_lengths), ("passages", card.passage_lengths)), strict=True):
        by_length.bar(places[: len(counts)] + offset, counts, width=0.4, label=name)
    by_length.set_xticks(places, labels, fontsize=8)
    by_length.set_title("texts by tokens", fontsize=10, loc="left")
    by_length.legend(frameon=False, fontsize=8)
    for axis in figure.axes:
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _bars(axis: Any, counts: Mapping[str, int], title: str) -> None:
    shown = list(counts.items())[:SHOWN]
    rest = len(counts) - len(shown)
    places = np.arange(len(shown))
    axis.barh(places, [count for _, count in shown], color="#1f5fa8")
    axis.set_yticks(places, [name for name, _ in shown], fontsize=7)
    axis.invert_yaxis()
    axis.set_title(title + (f", {rest} more" if rest else ""), fontsize=10, loc="left")


def page(card: DataCard, png: bytes) -> str:
    """The card as a page that needs nothing else."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"check": check_in_words, "script": script_name, "licences": single_licences}
    words = {
        "languages": _in_words(card.languages, language_in_words),
        "scripts": _in_words(card.scripts, script_name),
        "checks": _in_words(card.dropped, check_in_words),
    }
    picture_data = base64.b64encode(png).decode()
    return environment.get_template(TEMPLATE.name).render(card=card, words=words, picture=picture_data, shown=SHOWN) + "\n"
