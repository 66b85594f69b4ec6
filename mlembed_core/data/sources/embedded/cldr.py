"""Sources made of CLDR's names, as Babel carries them: the same things named in some 280 languages.

Territories, languages, scripts, currencies, time zones, cities, units, months and days make bitext, texts to tell languages apart by,
and names to sort by kind. Everything is split by *concept*: the first letters of the English name's first telling word, so that
Afghanistan, Afghani and Afghanistan Time are held out together, in every language and in all three sources.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mlembed_core.data.rows import Row
from mlembed_core.data.sources.embedded.base import Built, Pair, Part, by_hash, key, part_of_package, plain, settle, split_of
from mlembed_core.data.sources.embedded.neighbours import SPARE, around, characters, first_unlike, nearest

PAIRS_PER_LOCALE = 80
MIN_PAIRS = 10  # a locale with fewer names in common with English is a stub: its own name and little else
ENGLISH = "eng"
SHARED = "several"
ANY = "any kind"
UNIQUE_NAMES = 50  # names that no other locale has, for a language to be told apart by
NEAREST_LANGUAGES = 14
NAMES_PER_TEXT = (3, 4, 5)
TEXT_ROWS = {"train": 11, "dev": 1, "test": 2}  # a language
NAMES_IN_PROFILE = 150  # of a language, for its likeness to others
KINDS_PER_LOCALE = 24

# Words that many unrelated names share. They say nothing about which concept is meant, so the split looks past them.
GENERIC_WORDS = """
a and at ancient central city classical convertible cubic currency daylight dollar dinar east eastern financial force franc hard high
high-altitude hours imp island islands isle lower low middle mountain new north northern northwestern of old per peso port pound
pounds ruble rupee san santa são shilling south southern southeastern southwestern square st standard summer the time traditional
simplified unit united units unknown upper us west western european british french american
"""
GENERIC = frozenset(GENERIC_WORDS.split())

KIND_LABELS = {
    "territory": "territory",
    "language": "language",
    "script": "script",
    "currency": "currency",
    "zone": "time zone",
    "city": "city",
    "unit": "unit of measurement",
    "month": "month",
    "day": "day of the week",
}


@dataclass(frozen=True)
class Concept:
    """A thing that CLDR names."""

    name: str  # e.g. "territory/AF"
    kind: str
    english: str
    split: str
    order: int  # by hash


class Name(NamedTuple):
    """What a thing is called in one locale."""

    concept: Concept
    text: str


@dataclass(frozen=True)
class LocaleNames:
    """All names of one language in one script."""

    lang: str  # ISO-639-3
    label: str  # lang, with the script where a language has several: "srp_Latn"
    names: tuple[Name, ...]  # in an order by hash, another one in each locale
    pattern: Mapping[str, str]  # how the locale joins a list


def build_bitext(num_negatives: int, max_rows: int | None) -> Built:
    """English ↔ language, the direction alternating, at most :data:`PAIRS_PER_LOCALE` names a locale.

    Negatives of a row are names in its passage's language and split, of its kind first and by likeness of characters; where a
    language has too few, names of the same kind in others fill up. Never another language's word for the same thing.
    """
    pairs: list[Pair] = []
    names: dict[tuple[str, str], Name] = {}
    for locale in read_locales():
        translated = (name for name in locale.names if plain(name.text) != plain(name.concept.english))
        chosen = list(itertools.islice(translated, PAIRS_PER_LOCALE))
        for position, name in enumerate(chosen if len(chosen) >= MIN_PAIRS else ()):
            there, back = (name.concept.english, name.text), (name.text, name.concept.english)
            query, passage = there if position % 2 == 0 else back
            pairs.append(Pair(query, passage, name.concept.split, lang=locale.lang, label=locale.label))
            names.setdefault((query, passage), name)
    kept, dropped = settle(pairs, max_rows)
    negatives = _name_negatives(kept, [names[pair.query, pair.passage] for pair in kept], num_negatives)
    rows = [Row(p.query, p.passage, n, p.lang, None, p.split) for p, n in zip(kept, negatives, strict=True)]
    return Built(rows, [cldr_part()], dropped)


def _name_negatives(pairs: list[Pair], names: list[Name], num_negatives: int) -> list[list[str]]:
    """See :func:`build_bitext`. A pool holds the names that the rows of one split use in one language, English included."""
    pools: dict[tuple[str, str], dict[str, Concept]] = defaultdict(dict)
    kinds: dict[tuple[str, str], list[Name]] = defaultdict(list)
    for pair, name in zip(pairs, names, strict=True):
        pools[pair.split, ENGLISH].setdefault(name.concept.english, name.concept)
        pools[pair.split, str(pair.label)].setdefault(name.text, name.concept)
        kinds[pair.split, name.concept.kind].append(name)
        kinds[pair.split, ANY].append(name)
    alike: dict[tuple[str, str], dict[str, list[str]]] = {}
    for where, pool in pools.items():
        texts = list(pool)
        rankings = nearest(texts, characters, num_negatives + SPARE)
        alike[where] = {text: [texts[j] for j in order] for text, (order, _) in zip(texts, rankings, strict=True)}
    answers: dict[str, set[str]] = defaultdict(set)  # everything that a query may mean in any language
    for pair in pairs:
        answers[plain(pair.query)] |= {plain(pair.query), plain(pair.passage)}
    ranked: dict[tuple[tuple[str, str], str], list[str]] = {}  # many rows have the same English passage
    chosen = []
    for pair, name in zip(pairs, names, strict=True):
        where = pair.split, ENGLISH if pair.passage == name.concept.english else str(pair.label)
        if (where, name.concept.name) not in ranked:
            ranked[where, name.concept.name] = _own_kind_first(alike[where][pair.passage], pools[where], name.concept)
        fill = (_other_things(kinds[pair.split, kind], name) for kind in (name.concept.kind, ANY))
        candidates = itertools.chain(ranked[where, name.concept.name], *fill)
        chosen.append(first_unlike(candidates, answers[plain(pair.query)], num_negatives))
    return chosen


def _own_kind_first(texts: list[str], pool: Mapping[str, Concept], concept: Concept) -> list[str]:
    """The texts that name something else than ``concept``, those of its kind before the others, else in their order."""
    others = [text for text in texts if pool[text] is not concept]
    return sorted(others, key=lambda text: pool[text].kind != concept.kind)


def _other_things(names: list[Name], name: Name) -> Iterator[str]:
    """Names of other things, from a place in the list that depends on the name."""
    for other in around(names, key("others", name.concept.name, name.text)):
        if other.concept.english != name.concept.english:
            yield other.text


def build_language_identification(num_negatives: int, max_rows: int | None) -> Built:
    """Two texts of one language, each a few names joined the way that language joins lists; the class is the language.

    Only names that no other locale has are used, so that a text is of exactly one class. Negatives come from the
    :data:`NEAREST_LANGUAGES` languages most alike in characters, then from the rest in order of likeness.
    """
    locales = {locale.label: locale for locale in read_locales()}
    unique = {label: names for label, names in _unique_names(locales).items() if len(names) >= UNIQUE_NAMES}
    pairs = [pair for label, names in unique.items() for pair in _text_pairs(locales[label], names)]
    kept, dropped = settle(pairs, max_rows)
    texts: dict[tuple[str, str], list[str]] = defaultdict(list)
    for pair in kept:
        texts[pair.split, str(pair.label)] += [pair.query, pair.passage]
    alike = _alike_languages({label: names for label, names in unique.items() if any(label == where[1] for where in texts)})
    rows = []
    for pair in kept:
        by_likeness = [texts[pair.split, label] for label in alike[str(pair.label)]]
        in_turn = itertools.zip_longest(*(around(found, key("texts", pair.query)) for found in by_likeness[:NEAREST_LANGUAGES]))
        near = (text for turn in in_turn for text in turn if text is not None)
        candidates = itertools.chain(near, itertools.chain.from_iterable(by_likeness[NEAREST_LANGUAGES:]))
        negatives = first_unlike(candidates, {plain(pair.query), plain(pair.passage)}, num_negatives)
        rows.append(Row(pair.query, pair.passage, negatives, pair.lang, pair.label, pair.split))
    return Built(rows, [cldr_part()], dropped)


def _unique_names(locales: Mapping[str, LocaleNames]) -> dict[str, list[Name]]:
    """Per locale the names that stand in no other one, nor in English, each text once."""
    owner: dict[str, str] = {}
    for label, locale in locales.items():
        for name in locale.names:
            owner[name.concept.english.casefold()] = ENGLISH
            text = name.text.casefold()
            if owner.setdefault(text, label) != label:
                owner[text] = SHARED
    unique: dict[str, list[Name]] = {}
    for label, locale in locales.items():
        first: dict[str, Name] = {}
        for name in locale.names:
            text = name.text.casefold()
            if owner[text] == label:
                first.setdefault(text, name)
        unique[label] = list(first.values())
    return unique


def _text_pairs(locale: LocaleNames, names: list[Name]) -> list[Pair]:
    """Deal the names of each split out into texts, and the texts into pairs; no name is used twice."""
    pairs = []
    for split, most_rows in TEXT_ROWS.items():
        left = [name.text for name in names if name.concept.split == split]
        num_rows = min(most_rows, max(len(left) // (2 * NAMES_PER_TEXT[1]), int(len(left) >= 2 * NAMES_PER_TEXT[0])))
        texts = []
        for still in reversed(range(2 * num_rows)):
            wanted = NAMES_PER_TEXT[key("size", left[0]) % len(NAMES_PER_TEXT)]
            size = min(wanted, len(left) - still * NAMES_PER_TEXT[0])
            texts.append(_join(left[:size], locale.pattern))
            left = left[size:]
        pairs += [Pair(q, p, split, locale.lang, locale.label) for q, p in zip(texts[::2], texts[1::2], strict=True)]
    return pairs


def _join(names: list[str], pattern: Mapping[str, str]) -> str:
    """A list as the locale writes it (CLDR, list patterns): ``end`` joins the last two, ``start`` the first, ``middle`` what is between."""
    text = _fill(pattern["end"], names[-2], names[-1])
    for position in reversed(range(len(names) - 2)):
        text = _fill(pattern["start" if position == 0 else "middle"], names[position], text)
    return text


def _fill(pattern: str, first: str, second: str) -> str:
    return re.sub(r"\{([01])\}", lambda found: (first, second)[int(found[1])], pattern)


def _alike_languages(unique: Mapping[str, list[Name]]) -> dict[str, list[str]]:
    """Per label all others, the most alike in characters first, those that share none last. Looks at train names only."""
    labels = list(unique)
    documents = []
    for label in labels:
        names = [name.text for name in unique[label] if name.concept.split == "train"]
        documents.append("\n".join(names[:NAMES_IN_PROFILE]))
    alike = {}
    for label, (order, _) in zip(labels, nearest(documents, _characters_of_lines, len(labels)), strict=True):
        ranked = [labels[j] for j in order]
        alike[label] = ranked + [other for other in labels if other != label and other not in ranked]
    return alike


def _characters_of_lines(text: str) -> set[str]:
    return set().union(*(characters(line) for line in text.split("\n")))


def build_kind_of_name(num_negatives: int, max_rows: int | None) -> Built:
    """A name in any language, and what kind of thing it names. Names that name things of two kinds anywhere are left out."""
    locales = read_locales()
    kind_of: dict[str, str] = {}
    for locale in locales:
        for name in locale.names:
            text, kind = name.text.casefold(), name.concept.kind
            if kind_of.setdefault(text, kind) != kind:
                kind_of[text] = SHARED
    pairs = []
    for locale in locales:
        of_kind: dict[str, list[Name]] = {kind: [] for kind in KIND_LABELS}
        for name in locale.names:
            if kind_of[name.text.casefold()] != SHARED:
                of_kind[name.concept.kind].append(name)
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*of_kind.values()))
        names = [name for name in in_turn if name is not None][:KINDS_PER_LOCALE]
        if len(names) >= MIN_PAIRS:
            labelled = [(name, KIND_LABELS[name.concept.kind]) for name in names]
            pairs += [Pair(name.text, label, name.concept.split, locale.lang, label) for name, label in labelled]
    kept, dropped = settle(pairs, max_rows, shared_passages=True)
    rows = []
    for pair in kept:
        others = [label for label in KIND_LABELS.values() if label != pair.passage]
        rows.append(Row(pair.query, pair.passage, by_hash(others, pair.query)[:num_negatives], pair.lang, pair.label, pair.split))
    return Built(rows, [cldr_part()], dropped)


def read_locales() -> list[LocaleNames]:
    """Every language and script that CLDR has names in, but English, sorted by locale code.

    Only what a locale itself says is taken, nothing that it inherits: inherited names belong to another language (``ht`` takes
    from ``fr``, ``hi_Latn`` from ``en``), and merging leaks aliases between locales that Babel has loaded before.
    """
    from babel import localedata

    concepts = {name: _concept(name, text) for name, text in _own_names(_own_data("en")) if not re.search(r"\d", text)}
    inherited = dict(_own_names(_own_data("root")))
    locales = []
    for code in sorted(localedata.locale_identifiers()):
        parts = re.fullmatch(r"([a-z]{2,3})(_[A-Z][a-z]{3})?", code)
        if parts is None or parts[1] == "en":
            continue
        data = _own_data(code)
        names = []
        for concept, text in dict(_own_names(data)).items():
            if concept not in concepts and concept.startswith("city/") and not concept.startswith("city/Etc/"):
                concepts[concept] = _concept(concept, concept.rsplit("/", 1)[-1].replace("_", " "))
            if concept in concepts and text != inherited.get(concept):
                names.append(Name(concepts[concept], text))
        if names:
            lang, label = _iso_639_3(parts[1]), _iso_639_3(parts[1]) + (parts[2] or "")
            locales.append(LocaleNames(lang, label, _shuffled(names, key("locale", code)), _list_pattern(data)))
    return locales


def _shuffled(names: list[Name], turn: int) -> tuple[Name, ...]:
    """The concepts' own order, turned by the locale's: as good as a hash of both, and much cheaper for 280,000 names."""
    return tuple(sorted(names, key=lambda name: name.concept.order ^ turn))


def _concept(name: str, english: str) -> Concept:
    """``english`` is what CLDR says; of a city that it leaves to the zone's identifier, that identifier's last part."""
    return Concept(name, name.split("/")[0], english, split_of(_concept_group(english)), key("concept", name))


def _concept_group(english: str) -> str:
    """Four letters of the first word that tells something: the unit that is never split between train, dev and test."""
    words = re.findall(r"[^\W\d_]+(?:-[^\W\d_]+)*", english.casefold())
    telling = [word for word in words if word not in GENERIC] or words or [english]
    first: str = telling[0]
    return first[:4]


def _own_data(code: str) -> dict[str, Any]:
    """A locale's own data. Babel's cache is emptied first, since it holds whatever was loaded before under the same name."""
    from babel import localedata

    localedata._cache.clear()
    data: dict[str, Any] = localedata.load(code, merge_inherited=False)
    return data


def _own_names(data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(concept, text) for everything that a locale names itself."""
    for section, kind in (("territories", "territory"), ("languages", "language"), ("scripts", "script"), ("currency_names", "currency")):
        yield from _texts(kind, data.get(section))
    zones = data.get("meta_zones", {})
    yield from _texts("zone", {zone: forms["long"].get("standard") for zone, forms in zones.items() if "long" in forms})
    yield from _texts("city", {zone: forms.get("city") for zone, forms in data.get("time_zones", {}).items()})
    yield from _texts("unit", {unit: forms.get("long") for unit, forms in data.get("unit_display_names", {}).items()})
    for section, kind in (("months", "month"), ("days", "day")):
        for form in ("format", "stand-alone"):  # the stand-alone form, where there is one, replaces the other
            yield from _texts(kind, data.get(section, {}).get(form, {}).get("wide"))


def _texts(kind: str, found: Any) -> Iterator[tuple[str, str]]:
    """What is a name among the values: not the aliases to inherited data, nor signs without a letter."""
    if isinstance(found, dict):
        for name, value in found.items():
            if isinstance(value, str):
                text = " ".join(value.split())
                if 2 <= len(text) <= 80 and (text[0].isalpha() or any(map(str.isalpha, text))):
                    yield f"{kind}/{name}", text


def _list_pattern(data: Mapping[str, Any]) -> dict[str, str]:
    standard = data.get("list_patterns", {}).get("standard", {})
    return {place: standard.get(place, "{0}, {1}") for place in ("start", "middle", "end")}


def _iso_639_3(language: str) -> str:
    """CLDR writes two letters where ISO 639-1 has them, else three. ``no`` holds what ``nb``, Bokmål, inherits whole."""
    import pycountry

    if language == "no":
        return "nob"
    if len(language) == 3:
        return language
    return str(pycountry.languages.get(alpha_2=language).alpha_3)


def cldr_part() -> Part:
    """Babel's version; the licence is the one of the data itself, as the file beside it states."""
    from babel import localedata

    babel = part_of_package("babel")
    licence = (Path(localedata.__file__).parent / "locale-data" / "LICENSE.unicode").read_text(encoding="utf-8")
    spdx = re.search(r"SPDX-License-Identifier: (\S+)", licence)
    return Part("Unicode CLDR, from babel", babel.version, spdx[1] if spdx else "Unicode licence, see babel/locale-data/LICENSE.unicode")
