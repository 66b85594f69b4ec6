"""Stage ``card``: what is counted, that the page holds it and needs nothing else, and that two runs write the same bytes."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mlembed_core.artifacts import manifest_hash, read_manifest, verify_files
from mlembed_core.config.checks import Check
from mlembed_core.data.card import SourceFacts, check_in_words, describe, page, single_licences
from mlembed_core.data.rows import Row
from mlembed_core.errors import ArtifactError
from mlembed_core.stages import cache as cache_stage
from mlembed_core.stages import card as stage
from mlembed_core.stages import tokenize as tokenize_stage


@pytest.fixture
def card(text_workspace: Any, rows: list[Row]) -> dict[str, Any]:
    text_workspace.add_source("names", rows, kind="clustering")
    text_workspace.add_source("greek", [Row("Ελλάδα και σταθμός", "ποταμός <b>", [], "ell", None, None)] * 3)
    text_workspace.tokenize()
    cache_stage.run(text_workspace.workspace)
    stage.run(text_workspace.workspace)
    return json.loads((text_workspace.workspace.card / "card.json").read_text())  # type: ignore[no-any-return]


def test_sums_are_those_of_the_sources(text_workspace: Any, card: dict[str, Any]) -> None:
    out = text_workspace.workspace.card
    verify_files(out)
    greek, names = card["sources"]
    assert (greek["name"], names["name"]) == ("greek", "names")
    assert names["rows"] == {"train": 160, "dev": 20, "test": 20}
    assert (greek["rows"], greek["languages"], greek["scripts"]) == ({"unsplit": 3}, {"ell": 3}, {"Grek": 3 * 23, "Latn": 3})
    assert card["kinds"] == {"clustering": 200, "retrieval": 3}
    assert card["languages"] == {"": 100, "ell": 103}
    assert sum(card["query_lengths"]) == sum(card["passage_lengths"]) == 183  # of the cache: test rows are not in it
    assert max(len(card["query_lengths"]), len(card["passage_lengths"])) == 5  # at most 12 tokens: the class up to 2⁴
    tokens = sum(read_manifest(text_workspace.workspace.corpora / name)["counts"]["tokens"] for name in ("names", "greek"))
    assert read_manifest(out)["counts"] | {"dropped": 0} == {
        "sources": 2,
        "rows": 203,
        "documents": card["documents"],
        "tokens": tokens,
        "languages": 2,
        "scripts": len(card["scripts"]),
        "dropped": 0,
    }


def test_the_page_needs_nothing_else_and_shows_the_sums(text_workspace: Any, card: dict[str, Any]) -> None:
    page = (text_workspace.workspace.card / "index.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    for part in (
        "names",
        "clustering",
        "train 160, dev 20, test 20",
        "Greek",
        "Modern Greek (1453-)",
        "not named",
        "<strong>203</strong>rows",
    ):
        assert part in page
    assert (text_workspace.workspace.card / "card.png").read_bytes().startswith(b"\x89PNG")


def test_licences_are_counted_one_by_one_and_checks_are_told_in_words() -> None:
    several = ["Apache 2.0 License", "Apache-2.0 AND MIT AND (BSD-3-Clause OR 0BSD)"]
    assert single_licences(several) == ["0BSD", "Apache-2.0", "BSD-3-Clause", "MIT"]
    assert single_licences([]) == []
    facts = {"kind": "retrieval", "documents": 1, "tokens": 1, "truncated": 0, "query_lengths": [1], "passage_lengths": [1]}
    facts |= {"languages": {"deu": 1}, "scripts": {"Latn": 2, "Hans": 1}}
    sources = [
        SourceFacts(name="a", rows={"train": 5}, licences=several, dropped={"dropped_leaks": 3, "kept_too_few_negatives": 2}, **facts),
        SourceFacts(name="b", rows={"train": 2}, licences=["MIT License"], dropped={"dropped_leaks": 1}, **facts),
        SourceFacts(name="c", rows={"test": 1}, licences=[], dropped={}, **facts),
    ]
    card = describe(sources)
    assert card.licences == {"MIT": 7, "0BSD": 5, "Apache-2.0": 5, "BSD-3-Clause": 5, "unknown": 1}
    text = page(card, b"")
    for part in (
        "<summary>4 licences</summary>",
        "dropped: a text of it stands in another split 3; kept: fewer negatives than asked for 2",
    ):
        assert part in text
    assert "German" in text
    assert "dropped_" not in text
    assert {check for check in Check if check_in_words(f"dropped_{check}") == f"dropped: {check}"} == set()


def test_two_runs_write_the_same_bytes(text_workspace: Any, card: dict[str, Any]) -> None:
    before = manifest_hash(text_workspace.workspace.card)
    stage.run(text_workspace.workspace)
    assert manifest_hash(text_workspace.workspace.card) == before


def test_a_cache_of_another_corpus_is_refused(text_workspace: Any, rows: list[Row], card: dict[str, Any]) -> None:
    text_workspace.add_source("names", rows[:50], kind="clustering")
    tokenize_stage.run(text_workspace.workspace, "names")
    with pytest.raises(ArtifactError, match=r"data/cache is not made of .*corpus/names as it is now.*dvc repro cache"):
        stage.run(text_workspace.workspace)
