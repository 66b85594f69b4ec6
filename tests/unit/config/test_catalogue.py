"""The published catalogue against its facts, what the schema refuses, and presets that take their sources from one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from mlembed_core.config.catalogue import read_catalogue, with_catalogue
from mlembed_core.config.data import HubOrigin
from mlembed_core.config.presets import compose, read
from mlembed_core.errors import ConfigError

CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_published_collection_is_whole_and_nothing_is_invented() -> None:
    sources = read_catalogue(CONFIGS / "sources" / "published.yaml").sources
    assert len(sources) == 159
    files: Counter[str] = Counter()
    paths = []
    for source in sources.values():
        assert isinstance(source.origin, HubOrigin)
        assert (source.origin.repo, source.origin.revision, source.licence, source.instruction) == (
            "codefuse-ai/F2LLM-v2",
            None,
            None,
            None,
        )
        files[source.kind] += len(source.origin.patterns)
        paths += [pattern.path for pattern in source.origin.patterns]
    assert files == {"classification": 10, "clustering": 33, "retrieval": 459}
    assert len(set(paths)) == 502
    assert all(source.num_negatives == (1 if source.kind == "classification" else 24) for source in sources.values())
    assert len(set().union(*(source.declared_languages for source in sources.values()))) == 73
    pair = next(pattern for pattern in sources["unpc"].origin.patterns if pattern.path == "unpc_zh2ar.parquet")  # type: ignore[union-attr]
    assert pair.languages == ["zho", "ara"]
    code = next(pattern for pattern in sources["xcodeeval_nl2code"].origin.patterns if pattern.path.endswith("C#.parquet"))  # type: ignore[union-attr]
    assert code.programming_languages == ["c#"]


def test_presets_take_their_sources_from_it() -> None:
    stage1 = read(CONFIGS / "presets", "stage1")
    assert sorted(stage1.sources) == ["clirmatrix", "csn", "csn_ccr", "mmarco", "ocgi", "paracrawl", "webfaq"]
    assert stage1.sources["paracrawl"].symmetric
    published = read(CONFIGS / "presets", "published")
    assert len(published.sources) == 159
    assert {source.origin.max_rows_per_file for source in published.sources.values()} == {80_000}  # type: ignore[union-attr]
    assert "- path: mmarco_arabic.parquet" in compose(CONFIGS / "presets", "ml-embed-80m", catalogue="published")


def write(folder: Path, text: str) -> Path:
    (folder / "mine.yaml").write_text(text)
    return folder


def test_weights_become_those_of_the_training_and_an_origin_of_its_own_stays(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        "hub: {repo: team/pairs}\nsources:\n  a: {kind: retrieval, files: [a.parquet], weight: 2}\n"
        "  b: {kind: retrieval, origin: {type: local, files: [b.csv]}, languages: [deu]}\n",
    )
    values = with_catalogue({"train": {"batch_size": 8}, "sources": {"old": {}}}, folder, "mine")
    assert values["train"] == {"batch_size": 8, "source_weights": {"a": 2.0, "b": 1.0}}
    assert values["sources"] == {
        "a": {"origin": {"type": "hub", "repo": "team/pairs", "files": ["a.parquet"]}, "kind": "retrieval"},
        "b": {"origin": {"type": "local", "files": ["b.csv"]}, "kind": "retrieval", "languages": ["deu"]},
    }


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "kind: retrieval, files: [a.parquet], languages: [de]",
            r"sources\.a\.languages\.0: 'de' is no ISO-639-3 code.*did you mean 'deu'",
        ),
        ("kind: retrieval, files: [{path: a.parquet, languages: [xqz]}]", r"'xqz' is no ISO-639-3 code"),
        ("kind: retrieval, files: [a.parquet], programming_languages: [pyhton]", r"'pyhton' is no programming language known here"),
        ("kind: pairs, files: [a.parquet]", r"sources\.a\.kind='pairs': Input should be 'retrieval', 'clustering' or 'classification'"),
        ("kind: retrieval, files: []", r"sources\.a\.origin\.hub\.files=\[\]: List should have at least 1 item"),
        ("kind: retrieval, files: [a.parquet], max_rows: 0", r"sources\.a\.origin\.hub\.max_rows=0: Input should be greater than 0"),
        ("kind: retrieval, files: [a.parquet], weight: -1", r"sources\.a\.weight=-1: Input should be greater than or equal to 0"),
        ("kind: retrieval, files: [a.parquet], licnce: mit", r"sources\.a\.licnce: unknown key; did you mean 'licence'"),
        (
            "kind: retrieval, files: [a.parquet], checks: {duplicate: maybe}",
            r"sources\.a\.checks\.duplicate='maybe': Input should be 'error', 'drop'",
        ),
        ("kind: retrieval, files: [a.parquet], checks: {empty_query: keep}", r"sources\.a\.checks\.empty_query"),
    ],
)
def test_what_the_schema_refuses_is_named(tmp_path: Path, entry: str, message: str) -> None:
    write(tmp_path, f"hub: {{repo: team/pairs}}\nsources:\n  a: {{{entry}}}\n")
    with pytest.raises(ConfigError, match=message):
        with_catalogue({}, tmp_path, "mine")


def test_what_is_not_there_is_named_with_what_is(tmp_path: Path) -> None:
    write(tmp_path, "sources: {}\n")
    with pytest.raises(ConfigError, match=r"there is no catalogue 'yours' in .*\(there are: mine\)"):
        with_catalogue({}, tmp_path, "yours")
    with pytest.raises(ConfigError, match=r"catalogue published has no 'mmarcco'; did you mean 'mmarco'\?"):
        with_catalogue({}, CONFIGS / "sources", {"name": "published", "sources": ["mmarcco"]})
    write(tmp_path, "hub: {repo: team/pairs, revision: main}\nsources: {a: {kind: retrieval, files: [x]}}\n")
    with pytest.raises(ConfigError, match=r"sources\.a\.origin\.hub\.revision='main': String should match pattern"):
        with_catalogue({}, tmp_path, "mine")
