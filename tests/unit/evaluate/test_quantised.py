"""Quantised vectors on a real, tiny checkpoint: the questions and the float32 figure are those of the score table, the rest beside it."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from mlembed_core import quantised
from mlembed_core.errors import ConfigError
from mlembed_core.evaluate.report.page import MACHINE
from mlembed_core.export.kinds import VectorType
from mlembed_core.measured import keep
from mlembed_core.stages import control, evaluate
from mlembed_core.stages import report as stage

SOURCES = "{answers: {kind: retrieval, origin: {type: local, files: [answers.parquet]}}}"
pytestmark = pytest.mark.usefixtures("environment_stays")


@pytest.fixture
def reported(workspace):
    workspace.params_file.write_text(f"name: tests\nsources: {SOURCES}\nsettings: {{mine: {{}}}}\n{workspace.params_file.read_text()}")
    (workspace.models / "mine" / "loss_curve.csv").write_text("step,loss\n1,2.0\n")
    (workspace.models / "mine" / "validation_curve.csv").write_text("step,source,layers,dim,loss\n")
    evaluate.run(workspace, "mine", "small")
    control.run(workspace, "small")
    stage.run(workspace)
    return workspace


def test_what_is_measured_and_where_it_is_told(reported):
    keep(reported, "latency", {"report": "another", "machine": {}, "rows": [{"setting": "gone", "submodel": "gone"}]})
    before = {path.name: path.read_bytes() for path in reported.reports.iterdir()}
    done = quantised.measure(reported, every=True)
    assert {path.name: path.read_bytes() for path in reported.reports.iterdir()} == before
    assert json.loads(reported.measured("quantised").read_text()) == done.as_dict()
    assert done.tasks == ["Answers"]  # bitext and classification ask no search

    table = pd.read_parquet(reported.scores / "mine" / "small.parquet")
    main = table[table["main"] & (table["task"] == "Answers")].set_index("submodel")["score"]
    found = {(row.submodel, row.vectors): row for row in done.rows}
    assert {name for name, _ in found} == set(main.index) == {"l2-d16-r12", "l1-d8-r4"}
    for name, score in main.items():
        assert found[name, "float32"].average == pytest.approx(score, abs=1e-3)  # bf16 or other batches may swap a tie
        dim = int(name.split("-")[1][1:])
        assert [found[name, kind].bytes_per_vector for kind in VectorType] == [4 * dim, dim, dim // 8]
        assert found[name, "int8"].average == pytest.approx(score, abs=0.1)
        assert found[name, "binary"].average != found[name, "float32"].average

    page = done.page.read_text()
    assert "<h2>Vectors in fewer bits</h2>" in page
    assert "<h2>Latency on one machine</h2>" not in page  # which is of another report
    assert "<h2>Vectors in fewer bits</h2>" not in before["index.html"].decode()
    row = {"setting": "mine", "submodel": "l2-d16-r12", "one_ms": 1.0, "slow_ms": 2.0, "texts_per_second": 3.0}
    keep(reported, "latency", {"report": done.report, "machine": dict.fromkeys(MACHINE, 1), "rows": [row]})
    assert all(f"<h2>{title}</h2>" in done.page.read_text() for title in ("Latency on one machine", "Vectors in fewer bits"))

    text = reported.params_file.read_text().replace("      Answers: {type: retrieval, source: answers, max_queries: 20}\n", "")
    reported.params_file.write_text(text)
    with pytest.raises(ConfigError, match=r"none has a retrieval task on a local source \(there are: small\)"):
        quantised.measure(reported)


def test_ndcg_counts_places_and_several_answers():
    documents = np.eye(12, dtype=np.float32)
    query = np.linspace(1, 0.1, 12, dtype=np.float32)[None]  # finds document 0 first, then 1, …
    query /= np.linalg.norm(query)
    assert quantised.ndcg(query, documents, [{0}], VectorType.FLOAT32) == pytest.approx(1)
    assert quantised.ndcg(query, documents, [{2}], VectorType.FLOAT32) == pytest.approx(1 / 2)
    assert quantised.ndcg(query, documents, [{11}], VectorType.FLOAT32) == 0
    two = (1 + 1 / math.log2(4)) / (1 + 1 / math.log2(3))
    assert quantised.ndcg(query, documents, [{0, 2}], VectorType.FLOAT32) == pytest.approx(two)
    assert quantised.ndcg(query, documents, [{2}], VectorType.INT8) == pytest.approx(1 / 2)
    assert quantised.ndcg(np.repeat(query, 2, axis=0), documents, [{0}, {2}], VectorType.FLOAT32) == pytest.approx(3 / 4)
