"""The stage ``source``: what it writes for either origin, and that a failure leaves what was there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlembed_core.artifacts import Workspace, read_manifest, verify_files
from mlembed_core.data.rows import Row, read_rows
from mlembed_core.data.sources import embedded
from mlembed_core.data.sources.embedded.base import Built
from mlembed_core.errors import ConfigError, DataError, MachineError
from mlembed_core.predicates import PREDICATES
from mlembed_core.stages import source

EMBEDDED = {"type": "embedded", "builder": "cpp_comment_to_declaration", "max_rows": 40}
LOCAL = {"type": "local", "files": ["pairs/*.parquet"]}


def workspace_with(root: Path, **sources: dict[str, Any]) -> Workspace:
    (root / "configs").mkdir(exist_ok=True)
    (root / "configs" / "params.yaml").write_text(json.dumps({"sources": sources}), encoding="utf-8")  # JSON is YAML
    return Workspace(root)


def write_pairs(root: Path, queries: list[str], name: str = "a") -> None:
    (root / "pairs").mkdir(exist_ok=True)
    columns = {"query": queries, "passage": [f"passage of {q}" for q in queries], "lang": ["fra"] * len(queries)}
    pq.write_table(pa.table(columns, schema=pa.schema([(c, pa.string()) for c in columns])), root / "pairs" / f"{name}.parquet")


def test_an_embedded_source_has_rows_counts_and_provenance(tmp_path: Path) -> None:
    workspace = workspace_with(tmp_path, code={"kind": "retrieval", "origin": EMBEDDED, "num_negatives": 4})
    source.run(workspace, "code")
    out = workspace.sources / "code"
    verify_files(out)
    table = read_rows(out)
    assert table.column_names == ["query", "passage", *(f"negative_{k}" for k in range(1, 5)), "lang", "label", "split"]
    manifest = read_manifest(out)
    assert manifest["stage"] == "source@code"
    assert manifest["counts"]["rows"] == table.num_rows == 40
    assert sum(manifest["counts"][f"rows_{split}"] for split in ("train", "dev", "test")) == 40
    assert manifest["details"]["kind"] == "retrieval"
    assert [part["name"] for part in manifest["details"]["provenance"]] == ["torch", "pyarrow"]
    assert manifest["details"]["licences"]
    assert manifest["params"]["origin"] == EMBEDDED
    assert str(tmp_path) not in (out / "manifest.json").read_text(encoding="utf-8")


def test_a_local_source_counts_what_it_dropped_and_names_its_files(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["one", "", "two"])
    workspace = workspace_with(tmp_path, mine={"kind": "retrieval", "origin": LOCAL, "num_negatives": 0, "licence": "CC-BY-4.0"})
    source.run(workspace, "mine")
    manifest = read_manifest(workspace.sources / "mine")
    assert manifest["counts"] == {
        "rows": 2,
        "rows_train": 0,
        "rows_dev": 0,
        "rows_test": 0,
        "rows_unsplit": 2,
        "languages": 1,
        "dropped_broken_unicode": 0,
        "dropped_empty_query": 1,
        "dropped_empty_passage": 0,
        "dropped_too_long": 0,
        "dropped_query_equals_passage": 0,
        "dropped_passage_among_negatives": 0,
        "dropped_duplicate": 0,
        "kept_too_few_negatives": 0,
    }
    assert manifest["details"]["languages"] == ["fra"]
    assert manifest["details"]["licences"] == ["CC-BY-4.0"]
    assert [part["name"] for part in manifest["details"]["provenance"]] == ["pairs/a.parquet"]
    assert str(tmp_path) not in (workspace.sources / "mine" / "manifest.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("optional", [{}, {"lang": ["fra", None]}, {"split": [None, "test"], "lang": ["fra", "fra"]}])
@pytest.mark.parametrize("declared", [[], ["fra"]])
def test_the_checks_pass_on_pairs_with_whatever_columns(tmp_path: Path, optional: dict[str, list[Any]], declared: list[str]) -> None:
    columns = {"query": ["one", "two"], "passage": ["uno", "due"], **optional}
    (tmp_path / "pairs").mkdir()
    pq.write_table(pa.table(columns, schema=pa.schema([(name, pa.string()) for name in columns])), tmp_path / "pairs" / "a.parquet")
    origin = {"type": "local", "files": [{"path": "pairs/*.parquet", **({"languages": declared} if declared else {})}]}
    workspace = workspace_with(tmp_path, mine={"kind": "retrieval", "origin": origin, "num_negatives": 0})
    source.run(workspace, "mine")
    assert [item.name for item in PREDICATES["source"] if not item.ask(workspace.sources / "mine").passed] == []


def test_a_misspelt_source_or_builder_gets_a_suggestion(tmp_path: Path) -> None:
    origin = {"type": "embedded", "builder": "python_topic"}
    workspace = workspace_with(tmp_path, topics={"kind": "retrieval", "origin": origin})
    with pytest.raises(ConfigError, match=r"sources has no 'topic'; did you mean 'topics'\?"):
        source.run(workspace, "topic")
    with pytest.raises(ConfigError, match=r"sources\.topics\.origin\.builder.*'python_topic'; did you mean 'python_topics'\?"):
        source.run(workspace, "topics")
    assert not workspace.sources.exists()


@pytest.mark.parametrize("queries", [[], ["", " "]])
def test_a_source_without_rows_is_refused(tmp_path: Path, queries: list[str]) -> None:
    write_pairs(tmp_path, queries)
    workspace = workspace_with(tmp_path, mine={"kind": "retrieval", "origin": LOCAL, "num_negatives": 0})
    with pytest.raises(DataError, match=r"sources\.mine has no rows left \((its files are empty|dropped_empty_query 2)\)"):
        source.run(workspace, "mine")


def test_a_failure_leaves_the_earlier_result_whole(tmp_path: Path) -> None:
    write_pairs(tmp_path, ["one", "two"])
    workspace = workspace_with(tmp_path, mine={"kind": "retrieval", "origin": LOCAL, "num_negatives": 0})
    source.run(workspace, "mine")
    before = (workspace.sources / "mine" / "manifest.json").read_bytes()
    (tmp_path / "pairs" / "b.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match=r"b\.parquet"):
        source.run(workspace, "mine")
    assert (workspace.sources / "mine" / "manifest.json").read_bytes() == before
    verify_files(workspace.sources / "mine")
    assert not any((workspace.work / "tmp").iterdir())


def test_a_missing_extra_is_named_with_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> Built:
        raise ModuleNotFoundError("No module named 'babel'", name="babel")

    monkeypatch.setitem(embedded.BUILDERS, "cldr_bitext", build)
    workspace = workspace_with(tmp_path, names={"kind": "retrieval", "origin": {"type": "embedded", "builder": "cldr_bitext"}})
    with pytest.raises(MachineError, match=r"sources\.names.*'babel'.*pip install"):
        source.run(workspace, "names")


def test_a_builder_that_makes_forbidden_rows_is_a_bug_that_stops_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Built([Row("same", "same", [], None, None, "train")], [])
    monkeypatch.setitem(embedded.BUILDERS, "python_topics", lambda *_: bad)
    workspace = workspace_with(tmp_path, topics={"kind": "retrieval", "origin": {"type": "embedded", "builder": "python_topics"}})
    with pytest.raises(DataError, match=r"the builder 'python_topics': 1 of 1 rows fail the check query_equals_passage.*is a bug"):
        source.run(workspace, "topics")


REVISION = "7" * 40


@pytest.fixture
def hub_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with one file of a dataset, and no hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setenv("MLEMBED_DATASETS", str(tmp_path / "mirror"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "mirror" / "team" / "pairs" / REVISION
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    pq.write_table(pa.table({"query": ["q1", "q2", "q1"], "passage": ["p1", "p2", "p1"]}), folder / "deu-eng.parquet")
    return folder


def hub(*files: Any) -> dict[str, Any]:
    return {"kind": "retrieval", "num_negatives": 0, "origin": {"type": "hub", "repo": "team/pairs", "files": list(files)}}


def test_a_hub_source_s_manifest_holds_the_revision_and_licence_that_it_was_made_of(tmp_path: Path, hub_mirror: Path) -> None:
    workspace = workspace_with(tmp_path, mine=hub({"path": "*.parquet", "languages": ["deu", "eng"]}))
    source.run(workspace, "mine")
    manifest = read_manifest(workspace.sources / "mine")
    assert manifest["details"]["hub"] == {"repo": "team/pairs", "revision": REVISION}
    assert manifest["params"]["origin"]["revision"] is None
    assert manifest["details"]["licences"] == ["mit"]
    assert manifest["details"]["languages"] == []  # no row names one
    assert manifest["details"]["declared_languages"] == ["deu", "eng"]
    assert [part["name"] for part in manifest["details"]["provenance"]] == ["deu-eng.parquet"]
    assert manifest["counts"]["dropped_duplicate"] == 1
    assert str(tmp_path) not in (workspace.sources / "mine" / "manifest.json").read_text(encoding="utf-8")


def test_prefetch_tells_of_all_sources_what_is_where_and_what_is_missing(tmp_path: Path, hub_mirror: Path) -> None:
    workspace = workspace_with(
        tmp_path, here=hub("deu-eng.parquet"), absent=hub("fra.parquet"), also=hub("spa.parquet"), local={**hub(), "origin": LOCAL}
    )
    assert list(source.prefetch(workspace, only_list=True)) == [
        ("here", str(hub_mirror), False),
        ("absent", "missing", False),
        ("also", "missing", False),
    ]
    with pytest.raises(
        MachineError, match=r"2 source\(s\) are missing still: absent, also\. The first of them:\nsources\.absent: files of"
    ):
        list(source.prefetch(workspace))
