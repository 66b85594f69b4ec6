"""The three sources of CLDR names: how many languages, no leaks, and negatives that are really wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest

from mlembed_core.data.sources.embedded import cldr
from mlembed_core.data.sources.embedded.base import Built, plain


@pytest.fixture(scope="module", autouse=True)
def locales() -> Iterator[dict[str, cldr.LocaleNames]]:
    """CLDR, read once for all tests here."""
    found = cldr.read_locales()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cldr, "read_locales", lambda: found)
        yield {locale.label: locale for locale in found}


@pytest.fixture(scope="module")
def bitext() -> Built:
    return cldr.build_bitext(6, None)


@pytest.fixture(scope="module")
def identification() -> Built:
    return cldr.build_language_identification(6, None)


@pytest.fixture(scope="module")
def kinds() -> Built:
    return cldr.build_kind_of_name(1, None)


def name_in(locale: cldr.LocaleNames, concept: str) -> str | None:
    return next((name.text for name in locale.names if name.concept.name == concept), None)


def leaks(built: Built, *, passages: bool = True) -> set[str]:
    """Texts of the test split that also stand in train, as query, passage or negative."""
    train = {plain(text) for row in built.rows if row.split == "train" for text in (row.query, row.passage, *row.negatives)}
    test = {plain(text) for row in built.rows if row.split == "test" for text in ((row.query, row.passage) if passages else (row.query,))}
    return train & test


def test_a_locale_says_only_what_it_says_itself(locales: dict[str, cldr.LocaleNames]) -> None:
    assert name_in(locales["deu"], "territory/FR") == "Frankreich"
    assert name_in(locales["nob"], "territory/DE") == "Tyskland"  # CLDR keeps Bokmål under "no"
    assert "nor" not in locales
    assert "hat" not in locales or name_in(locales["hat"], "territory/DE") is None  # Haitian would inherit French
    assert not any(label.startswith("eng") for label in locales)
    # Root's placeholders ("M01") and Babel's leaking aliases (German names of quarters in Japanese) are nowhere.
    assert name_in(locales["jpn"], "month/1") == "1月"
    assert not any(name.text == "M01" for locale in locales.values() for name in locale.names)


def test_scripts_of_one_language_are_kept_apart(locales: dict[str, cldr.LocaleNames]) -> None:
    assert name_in(locales["srp"], "territory/FR") == "Француска"
    assert name_in(locales["srp_Latn"], "territory/FR") == "Francuska"
    assert locales["srp_Latn"].lang == "srp"
    assert "uzb_Latn" not in locales  # the same as uzb


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (("Afghanistan", "Afghani", "Afghanistan Time", "Afghan Afghani"), "afgh"),
        (("North Korea", "South Korea", "Korean"), "kore"),
        (("Republic of the States", "United Republic"), "repu"),  # "united" says nothing about which one
        (("West",), "west"),  # nothing but a general word: that word
        (("Åland Islands",), "ålan"),
    ],
)
def test_what_is_named_alike_in_english_is_held_out_together(names: tuple[str, ...], group: str) -> None:
    assert {cldr._concept_group(name) for name in names} == {group}


def test_bitext_has_the_languages_and_the_size(bitext: Built) -> None:
    assert len({row.lang for row in bitext.rows}) >= 220
    assert all(len(row.lang or "") == 3 for row in bitext.rows)
    assert 19_000 <= len(bitext.rows) <= 22_000
    share = Counter(row.split for row in bitext.rows)
    assert 0.07 < share["test"] / len(bitext.rows) < 0.14
    assert 0.07 < share["dev"] / len(bitext.rows) < 0.14


def test_bitext_goes_both_ways(bitext: Built, locales: dict[str, cldr.LocaleNames]) -> None:
    english = {concept.english for locale in locales.values() for concept, _ in locale.names}
    ways = Counter(row.query in english for row in bitext.rows if row.lang == "ell")  # another script: no name is English by chance
    assert min(ways.values()) > 0.4 * ways.total()
    assert len(ways) == 2


def test_bitext_leaks_nothing(bitext: Built) -> None:
    assert leaks(bitext) == set()


def test_bitext_negatives_are_other_things_of_the_same_split(bitext: Built) -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    texts: dict[str | None, set[str]] = defaultdict(set)
    for row in bitext.rows:
        answers[plain(row.query)].add(plain(row.passage))
        texts[row.split] |= {row.query, row.passage}
    for row in bitext.rows:
        negatives = {plain(text) for text in row.negatives}
        assert len(negatives) == 6
        assert plain(row.query) not in negatives
        assert not answers[plain(row.query)] & negatives  # no right answer, in no language
        assert set(row.negatives) <= texts[row.split]


def test_identification_has_texts_to_learn_from_and_to_be_tested_on(identification: Built) -> None:
    train, test = (Counter(row.label for row in identification.rows if row.split == split) for split in ("train", "test"))
    languages = {row.lang for row in identification.rows if row.split == "test" and train[row.label] >= 3}
    assert len(languages) >= 200
    assert max(test.values()) == cldr.TEXT_ROWS["test"]
    assert 2_800 <= len(identification.rows) <= 3_600


def test_identification_texts_belong_to_one_language(identification: Built) -> None:
    owners: dict[str, set[str | None]] = defaultdict(set)
    for row in identification.rows:
        owners[row.query].add(row.label)
        owners[row.passage].add(row.label)
    assert all(len(labels) == 1 for labels in owners.values())
    assert leaks(identification) == set()
    for row in identification.rows:
        assert row.query != row.passage
        assert all(owners[text] != {row.label} for text in row.negatives)


def test_identification_negatives_come_from_languages_that_look_alike(identification: Built) -> None:
    owner = {text: row.label for row in identification.rows for text in (row.query, row.passage)}
    near = {owner[text] for row in identification.rows if row.label == "ukr" and row.split == "train" for text in row.negatives}
    assert {"rus", "bel"} & near
    assert not {"deu", "jpn", "tha"} & near


def test_lists_are_joined_as_the_language_does() -> None:
    german = {"start": "{0}, {1}", "middle": "{0}, {1}", "end": "{0} und {1}"}
    assert cldr._join(["a", "b", "c", "d"], german) == "a, b, c und d"
    japanese = {"start": "{0}、{1}", "middle": "{0}、{1}", "end": "{0}、{1}"}
    assert cldr._join(["a", "{1}", "c"], japanese) == "a、{1}、c"  # a name is never taken for a pattern


def test_a_kind_is_unambiguous_and_its_negative_another(kinds: Built) -> None:
    meanings: dict[str, set[str]] = defaultdict(set)
    for row in kinds.rows:
        meanings[plain(row.query)].add(row.passage)
        assert row.label == row.passage
        assert len(row.negatives) == 1
        assert row.negatives[0] != row.passage
    assert all(len(found) == 1 for found in meanings.values())
    assert set(cldr.KIND_LABELS.values()) == {row.passage for row in kinds.rows}
    assert 5_500 <= len(kinds.rows) <= 7_000
    assert leaks(kinds, passages=False) == set()


def test_max_rows_keeps_the_same_rows_and_the_shares(bitext: Built) -> None:
    few = cldr.build_bitext(2, 300)
    assert len(few.rows) == 300
    assert {(row.query, row.passage) for row in few.rows} <= {(row.query, row.passage) for row in bitext.rows}
    assert {"train", "dev", "test"} == {row.split for row in few.rows}
    assert leaks(few) == set()


def test_the_data_has_its_own_licence(bitext: Built) -> None:
    assert [part.licence for part in bitext.parts] == ["Unicode-3.0"]
