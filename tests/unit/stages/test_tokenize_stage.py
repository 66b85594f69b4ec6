"""Stage ``tokenize@NAME``: documents once, test rows never, and the same tokens as text by text."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pyarrow.parquet as pq
import pytest

from mlembed_core.artifacts import manifest_hash, read_manifest, verify_files, write_manifest
from mlembed_core.data.rows import Row
from mlembed_core.data.tokenize import load_tokenizer, token_ids
from mlembed_core.errors import ArtifactError, ConfigError, DataError
from mlembed_core.prompts import format_query
from mlembed_core.stages import tokenize as stage
from mlembed_core.stages import tokenizer as tokenizer_stage

Tables = tuple[list[dict[str, Any]], list[list[int]]]


def run(text_workspace: Any, name: str = "names") -> Tables:
    """Run the stage. Returns its rows, and its documents' tokens by document id."""
    tokenizer_stage.run(text_workspace.workspace)
    stage.run(text_workspace.workspace, name)
    return read(text_workspace, name)


def read(text_workspace: Any, name: str = "names") -> Tables:
    folder = text_workspace.workspace.corpora / name
    documents = pq.read_table(folder / "documents.parquet").to_pylist()
    assert [document["doc_id"] for document in documents] == list(range(len(documents)))
    return pq.read_table(folder / "rows.parquet").to_pylist(), [document["tokens"] for document in documents]


def ids(text_workspace: Any, text: str) -> list[int]:
    return token_ids(load_tokenizer(text_workspace.workspace.tokenizer), [text], 12)[0]


def test_rows_and_documents_hold_the_tokens_of_their_texts(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", rows)
    made, documents = run(text_workspace)
    kept = [row for row in rows if row.split != "test"]
    assert len(made) == len(kept) == 180
    for row, text in zip(made, kept, strict=True):
        assert row["query"] == ids(text_workspace, text.query)
        assert documents[row["passage"]] == ids(text_workspace, text.passage)
        assert [documents[document] for document in row["negatives"]] == [ids(text_workspace, negative) for negative in text.negatives]
        assert (row["label"], row["lang"], row["split"]) == (text.label, text.lang, text.split)
    assert all(len(tokens) <= 12 for tokens in documents)


def test_every_document_stands_once(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", rows * 30)  # 6000 rows: more than are read at a time
    made, documents = run(text_workspace)
    assert len(made) == 180 * 30
    assert made[:180] == made[-180:]
    texts = {text for row in rows if row.split != "test" for text in (row.passage, *row.negatives)}
    assert len(documents) == len(texts)


def test_nothing_of_a_test_row_gets_in(text_workspace: Any) -> None:
    rows = [
        Row("river", "stone", ["bridge"], None, None, "train"),
        Row("xylophone", "quagga", ["zyzzyva"], None, None, "test"),
    ]
    text_workspace.add_source("names", rows)
    made, documents = run(text_workspace)
    assert len(made) == 1
    stored = [made[0]["query"], *documents]
    for word in ("xylophone", "quagga", "zyzzyva"):
        assert ids(text_workspace, word) not in stored


def test_rows_without_a_split_stay_without(text_workspace: Any) -> None:
    text_workspace.add_source("names", [Row("river", "stone", [], "eng", "water", None)] * 3)
    made, _ = run(text_workspace)
    assert [(row["split"], row["lang"], row["label"]) for row in made] == [(None, "eng", "water")] * 3


def test_a_source_without_negatives_has_empty_lists(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", [row._replace(negatives=[]) for row in rows], num_negatives=0)
    made, _ = run(text_workspace)
    assert all(row["negatives"] == [] for row in made)


def test_queries_carry_the_instruction_and_documents_of_other_sorts_do_not(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", rows, instruction="Find the place")
    text_workspace.set("tokenizer", text_workspace.params["tokenizer"] | {"max_length": 60})
    made, documents = run(text_workspace)
    tokenizer = load_tokenizer(text_workspace.workspace.tokenizer)
    first = rows[1]  # rows[0] is of the test split
    assert made[0]["query"] == token_ids(tokenizer, [format_query(first.query, "Find the place")], 60)[0]
    prompt = token_ids(tokenizer, [format_query("", "Find the place")], 60)[0][:-1]
    assert all(row["query"][: len(prompt)] == prompt for row in made)
    assert not any(tokens[: len(prompt)] == prompt for tokens in documents)


def test_part_of_a_symmetric_source_s_documents_carry_the_instruction(text_workspace: Any) -> None:
    rows = [Row(f"query {number}", f"passage {number}", [], None, None, "train") for number in range(1000)]
    text_workspace.add_source("names", rows, symmetric=True, instruction="Find")
    text_workspace.add_source("plain", rows, symmetric=True)
    text_workspace.set("tokenizer", text_workspace.params["tokenizer"] | {"max_length": 60})
    made, documents = run(text_workspace)
    tokenizer = load_tokenizer(text_workspace.workspace.tokenizer)
    prompted = set()
    for row, text in zip(made, rows, strict=True):
        variants = token_ids(tokenizer, [text.passage, format_query(text.passage, "Find")], 60)
        assert documents[row["passage"]] in variants
        if documents[row["passage"]] == variants[1]:
            prompted.add(text.passage)
    assert 240 <= len(prompted) <= 360  # 300 ± 4 standard deviations
    stage.run(text_workspace.workspace, "plain")
    _, plain = read(text_workspace, "plain")
    assert plain == token_ids(tokenizer, [row.passage for row in rows], 60)


def test_the_manifest_counts(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", rows)
    text_workspace.set("tokenizer", text_workspace.params["tokenizer"] | {"max_length": 5})
    made, documents = run(text_workspace)
    out = text_workspace.workspace.corpora / "names"
    verify_files(out)
    manifest = read_manifest(out)
    tokenizer = load_tokenizer(text_workspace.workspace.tokenizer)
    kept = [row for row in rows if row.split != "test"]
    texts = [row.query for row in kept] + sorted({text for row in kept for text in (row.passage, *row.negatives)})
    assert manifest["counts"] == {
        "rows": 180,
        "rows_train": 160,
        "rows_dev": 20,
        "documents": len(documents),
        "tokens": sum(len(row["query"]) for row in made) + sum(map(len, documents)),
        "truncated": sum(len(tokens) > 5 for tokens in token_ids(tokenizer, texts, 1000)),
    }
    assert 0 < manifest["counts"]["truncated"] < len(texts)
    assert set(manifest["inputs"]) == {"source@names", "tokenizer"}


def test_two_processes_write_the_same_bytes(text_workspace: Any, rows: list[Row]) -> None:
    text_workspace.add_source("names", rows, symmetric=True, instruction="Find")
    tokenizer_stage.run(text_workspace.workspace)
    hashes = set()
    for seed, threads in (("1", "1"), ("2", "4")):
        command = "from pathlib import Path; from mlembed_core.artifacts import Workspace; import sys; "
        command += "from mlembed_core.stages import tokenize; tokenize.run(Workspace(Path(sys.argv[1])), 'names')"
        environment = os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        subprocess.run([sys.executable, "-c", command, str(text_workspace.workspace.root)], env=environment, check=True, timeout=60)
        hashes.add(manifest_hash(text_workspace.workspace.corpora / "names"))
    assert len(hashes) == 1


class TestBadInput:
    @pytest.fixture(autouse=True)
    def _source_and_tokenizer(self, text_workspace: Any, rows: list[Row]) -> None:
        self.path = text_workspace.add_source("names", rows)
        tokenizer_stage.run(text_workspace.workspace)

    def test_an_unknown_source_names_those_there_are(self, text_workspace: Any) -> None:
        with pytest.raises(ConfigError, match=r"sources has no 'nmaes'; did you mean 'names'\?"):
            stage.run(text_workspace.workspace, "nmaes")

    def test_a_missing_source_names_what_makes_it(self, text_workspace: Any) -> None:
        (self.path.parent / "manifest.json").unlink()
        with pytest.raises(ArtifactError, match=r"data/sources/names is missing.*mlembed source names"):
            stage.run(text_workspace.workspace, "names")

    def test_a_missing_tokenizer_names_what_makes_it(self, text_workspace: Any) -> None:
        (text_workspace.workspace.tokenizer / "manifest.json").unlink()
        with pytest.raises(ArtifactError, match=r"data/tokenizer is missing.*mlembed tokenizer"):
            stage.run(text_workspace.workspace, "names")

    def test_a_changed_file_is_named_and_the_corpus_before_it_stays(self, text_workspace: Any) -> None:
        stage.run(text_workspace.workspace, "names")
        before = manifest_hash(text_workspace.workspace.corpora / "names")
        content = bytearray(self.path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        self.path.write_bytes(content)
        with pytest.raises(ArtifactError, match=r"names/rows\.parquet was changed after it was written"):
            stage.run(text_workspace.workspace, "names")
        assert manifest_hash(text_workspace.workspace.corpora / "names") == before

    def test_a_corrupt_parquet_is_named_even_if_its_manifest_agrees(self, text_workspace: Any) -> None:
        with self.path.open("r+b") as file:
            file.truncate(self.path.stat().st_size // 2)
        write_manifest(self.path.parent, stage="source@names", params={})
        with pytest.raises(ArtifactError, match=r"names/rows\.parquet is not a readable parquet file.*dvc checkout"):
            stage.run(text_workspace.workspace, "names")

    def test_a_missing_column_is_named(self, text_workspace: Any) -> None:
        pq.write_table(pq.read_table(self.path).drop_columns(["negative_2"]), self.path)
        write_manifest(self.path.parent, stage="source@names", params={})
        with pytest.raises(ArtifactError, match=r"names/rows\.parquet lacks the columns negative_2"):
            stage.run(text_workspace.workspace, "names")

    def test_a_source_of_test_rows_alone_is_refused(self, text_workspace: Any, rows: list[Row]) -> None:
        path = text_workspace.add_source("held_out", [row for row in rows if row.split == "test"])
        with pytest.raises(DataError, match=rf"{path} has no row of the train or dev split, so sources\.held_out"):
            stage.run(text_workspace.workspace, "held_out")
        assert not (text_workspace.workspace.corpora / "held_out").exists()
