"""Stage ``cache``: all sources in one memory-mapped store, every row on its side, nothing of the test split."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlembed_core.artifacts import manifest_hash, read_manifest, verify_files, write_manifest
from mlembed_core.data.rows import Row
from mlembed_core.data.store import CachedSource, TrainingCache
from mlembed_core.data.tokenize import load_tokenizer, token_ids
from mlembed_core.errors import ArtifactError, DataError
from mlembed_core.predicates import PREDICATES
from mlembed_core.stages import cache as stage
from mlembed_core.stages import tokenizer as tokenizer_stage


def run(text_workspace: Any) -> TrainingCache:
    text_workspace.tokenize()
    stage.run(text_workspace.workspace)
    return TrainingCache.open(text_workspace.workspace.cache, tokenizer=text_workspace.workspace.tokenizer)


class Reader:
    """A cache's rows as token ids, to compare with the text they were made from."""

    def __init__(self, cache: TrainingCache) -> None:
        self.cache = cache

    def row(self, row: int) -> tuple[tuple[int, ...], ...]:
        one = np.array([row])
        texts = [*self.cache.query_ids(one), *self.cache.passage_ids(one), *self.cache.negative_ids(row)]
        return tuple(tuple(self.cache.tokens(int(text)).tolist()) for text in texts)

    def rows(self, rows: range) -> list[tuple[tuple[int, ...], ...]]:
        return [self.row(row) for row in rows]


def expected(text_workspace: Any, rows: list[Row], max_length: int = 12) -> list[tuple[tuple[int, ...], ...]]:
    tokenizer = load_tokenizer(text_workspace.workspace.tokenizer)
    return [tuple(map(tuple, token_ids(tokenizer, [row.query, row.passage, *row.negatives], max_length))) for row in rows]


def of_split(rows: list[Row], split: str | None) -> list[Row]:
    return [row for row in rows if row.split == split]


def test_every_row_is_on_its_side_with_its_texts(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("second", rows[:50])
    text_workspace.add_source("first", rows, kind="clustering")
    cache = run(text_workspace)
    first, second = cache.sources
    assert (first.name, first.kind, second.name, second.num_negatives) == ("first", "clustering", "second", 2)
    assert (first.train, first.validation, second.train, second.validation) == (
        range(160),
        range(160, 180),
        range(180, 220),
        range(220, 225),
    )
    reader = Reader(cache)
    assert reader.rows(first.train) == expected(text_workspace, of_split(rows, "train"))
    assert reader.rows(first.validation) == expected(text_workspace, of_split(rows, "dev"))
    assert reader.rows(second.train) == expected(text_workspace, of_split(rows[:50], "train"))
    assert reader.rows(second.validation) == expected(text_workspace, of_split(rows[:50], "dev"))


def test_nothing_of_a_test_row_gets_in(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", rows)
    cache = run(text_workspace)
    stored = {tuple(cache.tokens(text).tolist()) for text in range(cache.num_texts)}
    for row in expected(text_workspace, of_split(rows, "test"), max_length=60):
        assert not stored & set(row[:2])  # their negatives are passages of training rows


def test_equal_texts_of_a_source_are_one_text(text_workspace: Any) -> None:
    rows = [
        Row("River Stone", "bridge", ["riverStone", "vector"], None, None, "train"),
        Row("bridge", "river_stone", [], None, None, "train"),
        Row("vector", "bridge", ["river stone"], None, None, "dev"),
    ]
    text_workspace.add_source("names", rows)
    cache = run(text_workspace)
    assert cache.num_texts == 3
    river, bridge, vector = cache.query_ids(np.arange(3)).tolist()
    assert len({river, bridge, vector}) == 3
    assert cache.passage_ids(np.arange(3)).tolist() == [bridge, river, bridge]
    assert [cache.negative_ids(row).tolist() for row in range(3)] == [[river, vector], [], [river]]


def test_labels_are_numbers_within_a_source(text_workspace: Any) -> None:
    labels = ["b", "a", None, "b", "c"]
    rows = [Row(f"river {n}", f"stone {n}", [], None, label, "train") for n, label in enumerate(labels)]
    text_workspace.add_source("one", rows, kind="clustering")
    text_workspace.add_source("two", list(reversed(rows)), kind="clustering")
    cache = run(text_workspace)
    for source, wanted in zip(cache.sources, (labels, labels[::-1]), strict=True):
        found = cache.labels(np.arange(source.train.start, source.train.stop))
        assert [None if number < 0 else source.labels[number] for number in found] == wanted


class TestRowsWithoutSplit:
    def rows(self, number: int = 4000) -> list[Row]:
        return [Row(f"query {n}", f"passage {n}", [], None, None, None) for n in range(number)]

    def held_out(self, cache: TrainingCache, source: CachedSource | None = None) -> set[tuple[int, ...]]:
        return {row[0] for row in Reader(cache).rows((source or cache.sources[0]).validation)}

    def test_the_share_asked_for_is_held_out_and_no_row_is_lost(self, text_workspace: Any) -> None:
        text_workspace.add_source("own", self.rows())
        text_workspace.set("cache", {"validation_fraction": 0.1})
        cache = run(text_workspace)
        (source,) = cache.sources
        assert 325 <= len(source.validation) <= 475  # 400 ± 4 standard deviations
        reader = Reader(cache)
        assert sorted(reader.rows(source.train) + reader.rows(source.validation)) == sorted(expected(text_workspace, self.rows()))

    def test_a_hundredth_is_the_default(self, text_workspace: Any) -> None:
        text_workspace.add_source("own", self.rows())
        assert 15 <= len(run(text_workspace).sources[0].validation) <= 65  # 40 ± 4 standard deviations

    def test_more_rows_do_not_move_those_there_are(self, text_workspace: Any) -> None:
        text_workspace.set("cache", {"validation_fraction": 0.1})
        text_workspace.add_source("own", self.rows())
        text_workspace.tokenize()
        text_workspace.add_source("part", self.rows(1000))  # same tokenizer, fewer rows
        cache = run(text_workspace)
        own, part = cache.sources
        present = {row[0] for row in expected(text_workspace, self.rows(1000))}
        assert self.held_out(cache, part) == self.held_out(cache, own) & present

    def test_rows_of_one_query_stay_on_one_side(self, text_workspace: Any) -> None:
        text_workspace.set("cache", {"validation_fraction": 0.3})
        text_workspace.add_source("own", [Row(f"query {n % 40}", f"passage {n}", [], None, None, None) for n in range(400)])
        cache = run(text_workspace)
        reader, source = Reader(cache), cache.sources[0]
        assert not {row[0] for row in reader.rows(source.train)} & {row[0] for row in reader.rows(source.validation)}
        assert len(source.validation) % 10 == 0


def test_the_manifest_counts_and_names_its_inputs(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", rows)
    cache = run(text_workspace)
    out = text_workspace.workspace.cache
    verify_files(out)
    manifest = read_manifest(out)
    negatives = sum(len(row.negatives) for row in rows if row.split != "test")
    tokens = int(cache.lengths(np.arange(cache.num_texts)).sum())
    assert manifest["counts"] == {
        "rows_train": 160, "rows_validation": 20, "texts": cache.num_texts, "tokens": tokens, "negatives": negatives
    }  # fmt: skip
    assert manifest["inputs"] == {
        "tokenizer": manifest_hash(text_workspace.workspace.tokenizer),
        "tokenize@names": manifest_hash(text_workspace.workspace.corpora / "names"),
    }


def test_the_checks_pass_on_rows_without_a_split(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("own", [row._replace(split=None, negatives=[]) for row in rows])
    run(text_workspace)
    outs = {"tokenize": text_workspace.workspace.corpora / "own", "cache": text_workspace.workspace.cache}
    assert [item.name for stage_name, out in outs.items() for item in PREDICATES[stage_name] if not item.ask(out).passed] == []


def test_two_processes_write_the_same_bytes(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", rows)
    text_workspace.add_source("own", [row._replace(split=None) for row in rows], kind="clustering")
    text_workspace.tokenize()
    hashes = set()
    for seed in ("1", "2"):
        command = "from pathlib import Path; from mlembed_core.artifacts import Workspace; import sys; "
        command += "from mlembed_core.stages import cache; cache.run(Workspace(Path(sys.argv[1])))"
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", command, str(text_workspace.workspace.root)], env=environment, check=True, timeout=60)
        hashes.add(manifest_hash(text_workspace.workspace.cache))
    assert len(hashes) == 1


def test_the_order_of_sources_in_the_parameters_changes_nothing(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("b", rows)
    text_workspace.add_source("a", rows[:90])
    run(text_workspace)
    before = manifest_hash(text_workspace.workspace.cache)
    text_workspace.set("sources", dict(reversed(text_workspace.params["sources"].items())))
    run(text_workspace)
    assert manifest_hash(text_workspace.workspace.cache) == before


class TestBadInput:
    @pytest.fixture(autouse=True)
    def _cache(self, text_workspace: Any, rows: list[Row]) -> None:
        text_workspace.add_source("names", rows)
        run(text_workspace)
        self.before = manifest_hash(text_workspace.workspace.cache)
        self.corpus: Path = text_workspace.workspace.corpora / "names"

    def refuse(self, text_workspace: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            stage.run(text_workspace.workspace)
        assert manifest_hash(text_workspace.workspace.cache) == self.before

    def test_a_corpus_of_another_tokenizer_is_refused(self, text_workspace: Any) -> None:
        text_workspace.set("tokenizer", {"type": "trained", "vocab_size": 300, "max_length": 12})
        tokenizer_stage.run(text_workspace.workspace)
        self.refuse(text_workspace, ArtifactError, r"corpus/names was tokenised with another tokenizer.*mlembed tokenize names")

    def test_a_missing_corpus_names_what_makes_it(self, text_workspace: Any, rows: list[Row]) -> None:
        text_workspace.add_source("more", rows)
        self.refuse(text_workspace, ArtifactError, r"data/corpus/more is missing.*mlembed tokenize more")

    def test_a_truncated_corpus_is_named(self, text_workspace: Any) -> None:
        with (self.corpus / "documents.parquet").open("r+b") as file:
            file.truncate(100)
        self.refuse(text_workspace, ArtifactError, r"names/documents\.parquet has 100 bytes")

    def test_documents_out_of_order_are_refused(self, text_workspace: Any) -> None:
        path = self.corpus / "documents.parquet"
        pq.write_table(pq.read_table(path).slice(1), path)
        manifest = read_manifest(self.corpus)
        inputs = {"tokenizer": text_workspace.workspace.tokenizer}
        assert set(manifest["inputs"]) > set(inputs)
        write_manifest(self.corpus, stage="tokenize@names", params={}, inputs=inputs)
        self.refuse(text_workspace, ArtifactError, r"documents\.parquet: doc_id does not count up from 0 around row 0")

    def test_a_source_held_out_as_a_whole_is_refused(self, text_workspace: Any, rows: list[Row]) -> None:
        text_workspace.add_source("names", of_split(rows, "dev"))
        text_workspace.add_source("others", rows)
        text_workspace.tokenize()
        self.refuse(text_workspace, DataError, r"all rows of .*names/rows\.parquet are held out.*sources\.names")
