"""Each predicate says yes to a good out and no to the fault it is there for."""

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from mlembed_core import predicates
from mlembed_core.artifacts import write_manifest

ROWS = pd.DataFrame(
    {
        "query": ["Zurich", "Basel", "Bern", "Chur"],
        "passage": ["Zürich", "Bâle", "Berne", "Coira"],
        "lang": ["deu", "fra", "fra", "roh"],
        "split": ["train", "train", "test", "dev"],
    }
)


@pytest.fixture
def source(tmp_path):
    def write(rows=ROWS, *, kind="retrieval", languages=("deu", "fra", "roh"), count=None):
        rows.to_parquet(tmp_path / "rows.parquet")
        details = {"kind": kind, "languages": list(languages), "licences": []}
        write_manifest(tmp_path, stage="source@x", params={}, counts={"rows": len(rows) if count is None else count}, details=details)
        return tmp_path

    return write


def test_rows_are_present(source):
    assert predicates.rows_are_present(source()).passed
    assert not predicates.rows_are_present(source(count=0)).passed


@pytest.mark.parametrize(
    ("counts", "rows"),
    [
        # A team's own pairs, without the column split.
        ({"rows": 40, "rows_train": 0, "rows_dev": 0, "rows_test": 0, "rows_unsplit": 40}, 40),
        ({"rows": 9, "rows_train": 3, "rows_dev": 1, "rows_test": 3, "rows_unsplit": 2}, 5),
        ({"rows": 4, "rows_train": 0, "rows_dev": 0, "rows_test": 4}, 0),
    ],
)
def test_rows_without_a_split_are_trained_on(tmp_path, counts, rows):
    write_manifest(tmp_path, stage="source@x", params={}, counts=counts)
    assert predicates.rows_are_present(tmp_path) == predicates.Verdict(rows > 0, {"rows": rows})


def test_a_cache_without_training_rows_has_no_rows(tmp_path):
    write_manifest(tmp_path, stage="cache", params={}, counts={"rows_train": 0, "rows_validation": 9})
    assert not predicates.rows_are_present(tmp_path).passed


def test_test_rows_do_not_leak(source):
    assert predicates.test_rows_do_not_leak(source()).passed
    leaking = ROWS.assign(query=["Zurich", "Basel", "  zURICH ", "Chur"])
    found = predicates.test_rows_do_not_leak(source(leaking))
    assert not found.passed
    assert found.figures["leaked"] == 1
    assert found.figures["examples"] == ["zurich"]


def test_a_row_without_a_split_leaks_as_well(source):
    leaking = ROWS.assign(query=["Zurich", "Basel", "Zurich", "Chur"], split=[None, "train", "test", "dev"])
    assert predicates.test_rows_do_not_leak(source(leaking)).figures["examples"] == ["zurich"]


def test_a_test_query_that_was_a_training_passage_leaks(source):
    assert not predicates.test_rows_do_not_leak(source(ROWS.assign(query=["Zurich", "Basel", "bâle", "Chur"]))).passed


def test_class_names_are_shared_by_nature(source):
    labels = ROWS.assign(passage=["city", "city", "city", "city"])
    assert predicates.test_rows_do_not_leak(source(labels, kind="classification")).passed
    assert not predicates.test_rows_do_not_leak(source(labels, kind="retrieval")).passed


def test_rows_without_a_split_cannot_leak(source):
    assert predicates.test_rows_do_not_leak(source(ROWS.drop(columns="split"))).passed


def test_declared_languages_are_present(source):
    assert predicates.declared_languages_are_present(source()).passed
    missing = predicates.declared_languages_are_present(source(languages=("deu", "fra", "roh", "ita")))
    assert not missing.passed
    assert missing.figures["missing"] == ["ita"]
    undeclared = predicates.declared_languages_are_present(source(languages=("deu", "fra")))
    assert not undeclared.passed
    assert undeclared.figures["undeclared"] == ["roh"]
    assert predicates.declared_languages_are_present(source(ROWS.drop(columns="lang"), languages=())).passed


def test_document_ids_are_unique(tmp_path):
    pd.DataFrame({"doc_id": [0, 1, 2]}).to_parquet(tmp_path / "documents.parquet")
    assert predicates.document_ids_are_unique(tmp_path).passed
    pd.DataFrame({"doc_id": [0, 1, 1]}).to_parquet(tmp_path / "documents.parquet")
    found = predicates.document_ids_are_unique(tmp_path)
    assert (found.passed, found.figures["repeated"]) == (False, 1)


def test_loss_fell(tmp_path):
    def curve(*rows):
        pd.DataFrame(rows, columns=["step", "source", "loss"]).to_csv(tmp_path / "loss_curve.csv")
        return predicates.loss_fell(tmp_path).passed

    # An easy source at the start and a hard one at the end: each has to be held against itself.
    assert curve((1, "easy", 1.0), (2, "hard", 5.0), (3, "easy", 0.5), (4, "hard", 4.0))
    assert not curve((1, "easy", 1.0), (2, "hard", 5.0), (3, "easy", 1.5), (4, "hard", 5.5))
    assert curve((1, "a", 2.0), (2, "b", 1.0))  # no source twice: the first against the last


def test_loss_fell_on_held_out_rows(tmp_path):
    def curves(*validation):
        # A training loss that jumps up at the end, as it does where the last batch is of a hard source.
        pd.DataFrame([(1, "a", 1.0), (2, "a", 2.0)], columns=["step", "source", "loss"]).to_csv(tmp_path / "loss_curve.csv")
        pd.DataFrame(validation, columns=["step", "source", "layers", "dim", "loss"]).to_csv(tmp_path / "validation_curve.csv")
        return predicates.loss_fell(tmp_path)

    fell = curves((5, "a", 1, 8, 2.0), (5, "b", 1, 8, 4.0), (10, "a", 1, 8, 1.5), (10, "b", 1, 8, 4.1))
    assert fell.passed
    assert fell.figures == {"mean_change": pytest.approx(-0.2), "held_out": True}
    assert not curves((5, "a", 1, 8, 2.0), (10, "a", 1, 8, 2.5)).passed
    assert not curves((5, "a", 1, 8, 2.0)).passed  # looked at once: the training loss, which rose
    assert not curves().passed  # never


def test_vectors_are_finite(tmp_path):
    assert not predicates.vectors_are_finite(tmp_path).passed  # no weights at all
    save_file({"a": np.ones(3, np.float32), "b": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    assert predicates.vectors_are_finite(tmp_path).passed
    save_file({"u": np.array([1, np.nan], np.float32)}, tmp_path / "factors.safetensors")
    found = predicates.vectors_are_finite(tmp_path)
    assert not found.passed
    assert found.figures["not_finite"] == ["factors.safetensors: u"]


@pytest.mark.parametrize(
    ("scores", "passed"), [([0.5, 0.2], True), ([0.5, None], True), ([0.5, np.inf], False), ([None, None], False)], ids=str
)
def test_scores_are_finite(tmp_path, scores, passed):
    pd.DataFrame({"main": [True, True, False], "score": pd.array([*scores, np.inf], dtype="Float64")}).to_parquet(tmp_path / "t.parquet")
    assert predicates.scores_are_finite(tmp_path / "t.parquet").passed is passed
