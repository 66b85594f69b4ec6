"""`mlembed mine`: a file in, a file that a source can name out, and what becomes of rows with too few negatives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from mlembed_core.artifacts import Workspace
from mlembed_core.cli import app
from mlembed_core.errors import ConfigError, DataError, MlembedError
from mlembed_core.stages import source


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    colours = ["red", "blue", "green", "white"]
    rows = [
        {"query": f"which {colours[n % 4]} thing is number {n}", "passage": f"the {colours[n % 4]} thing, number {n}", "lang": "eng"}
        for n in range(40)
    ]
    rows += [{"query": "what stands alone", "passage": "solitude", "lang": "eng"}, {"query": "", "passage": "p", "lang": "eng"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))


def mlembed(*arguments: str) -> Any:
    done = CliRunner().invoke(app, ["mine", "pairs.jsonl", "--out", "mined.parquet", *arguments], catch_exceptions=True)
    if isinstance(done.exception, MlembedError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


SOME = ("--lexical", "tfidf", "--negatives", "3", "--skip", "1", "--max-share", "1", "--max-score", "1", "--json")


def test_mined_rows_are_a_source(tmp_path: Path) -> None:
    done = mlembed(*SOME)
    assert done == {
        "file": "mined.parquet",
        "rows": 40,
        "too_few": 1,
        "left_out": 1,
        "dropped": {"dropped_empty_query": 1},
        "negatives": 3.0,
    }
    table = pq.read_table("mined.parquet")
    assert table.column_names == ["query", "passage", "negative_1", "negative_2", "negative_3", "lang", "label", "split"]
    assert all("thing" in text for text in table["negative_3"].to_pylist())
    (tmp_path / "configs").mkdir()
    mine = {"kind": "retrieval", "origin": {"type": "local", "files": ["mined.parquet"]}, "num_negatives": 3}
    (tmp_path / "configs" / "params.yaml").write_text(json.dumps({"sources": {"mine": mine}}))
    source.run(Workspace(tmp_path), "mine")
    assert pq.read_table(tmp_path / "data" / "sources" / "mine" / "rows.parquet").num_rows == 40


def test_rows_with_too_few_are_kept_or_an_error(tmp_path: Path) -> None:
    done = mlembed(*SOME, "--too-few", "keep")
    assert (done["rows"], done["too_few"], done["left_out"]) == (41, 1, 0)
    before = Path("mined.parquet").read_bytes()
    with pytest.raises(DataError, match=r"1 of 41 rows have fewer than 3 negatives, the first of them 0 \(query 'what stands alone'\)"):
        mlembed(*SOME, "--too-few", "error")
    assert Path("mined.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mined.parquet", "pairs.jsonl"]


def test_bm25_has_no_absolute_limit() -> None:
    assert mlembed("--lexical", "bm25", "--negatives", "2", "--skip", "1", "--max-share", "2", "--json")["rows"] == 40


def test_with_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    class Encoder:
        def encode_documents(self, texts: list[str]) -> Any:
            vectors = np.array([[len(text), text.count("e") + 1, text.count("1") + 1] for text in texts], dtype=np.float32)
            return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

        def encode_queries(self, texts: list[str], *, instruction: str | None) -> Any:
            asked.add(instruction)
            return self.encode_documents(texts)

    asked: set[str | None] = set()
    monkeypatch.setattr("mlembed_core.registry.resolve.resolve", lambda ref: ref)
    monkeypatch.setattr("mlembed_core.registry.load.load", lambda ref: Encoder())
    done = mlembed("--model", "m", "--negatives", "3", "--max-share", "2", "--max-score", "2", "--instruction", "Find", "--json")
    assert (done["rows"], done["negatives"], asked) == (41, 3.0, {"Find"})


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("--lexical", "tfidf", "--skip", "100"), ConfigError, r"--skip 100 leaves none of the --top 100 ranks"),
        (("--lexical", "tfidf", "--out", "mined.csv"), ConfigError, r"mined\.csv: the output is a parquet file"),
        (("--lexical", "tfidf", "--max-share", "0"), DataError, r"none of 41 rows has 24 negatives"),
    ],
)
def test_what_cannot_be_is_refused(arguments: tuple[str, ...], kind: type[MlembedError], message: str) -> None:
    with pytest.raises(kind, match=message):
        mlembed(*arguments)


def test_empty_input_is_named() -> None:
    pq.write_table(pa.table({"query": pa.array([], pa.string()), "passage": pa.array([], pa.string())}), "pairs.jsonl.parquet")
    done = CliRunner().invoke(app, ["mine", "pairs.jsonl.parquet", "--out", "x.parquet", "--lexical", "tfidf"])
    assert isinstance(done.exception, DataError)
    assert "hold no rows to mine negatives for" in str(done.exception)
