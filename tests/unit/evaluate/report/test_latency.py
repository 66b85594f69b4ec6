"""Latency is measured beside the report: in turns, told with the machine, and in no out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mlembed_core import latency
from mlembed_core.model.encoder import Encoder
from mlembed_core.registry import search
from mlembed_core.registry.search import Corpus
from mlembed_core.stages import report as stage

TURNS: list[tuple[str, int | None]] = []


class Counted:
    """In place of a model: notes when it is asked, and for how much."""

    def __init__(self, folder: Any, layers: int, **_: Any) -> None:
        self.name = f"{folder.name} {layers}"

    def to(self, _: Any) -> Counted:
        return self

    def encode_documents(self, texts: Sequence[str]) -> Any:
        TURNS.append((self.name, len(texts)))
        return np.zeros((len(texts), 2))


def test_figures_stand_beside_the_report_and_leave_it_as_it_is(made_up: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = made_up.write()
    stage.run(workspace)
    before = {path.name: path.read_bytes() for path in workspace.reports.iterdir()}
    monkeypatch.setattr(Encoder, "from_folder", Counted)
    monkeypatch.setattr(search, "corpus_of_sources", lambda _: Corpus([f"text {n}" for n in range(1000)], [""] * 1000))
    TURNS.clear()
    done = latency.measure(workspace)
    assert {path.name: path.read_bytes() for path in workspace.reports.iterdir()} == before
    told = json.loads(workspace.measured("latency").read_text())
    assert told == done.as_dict()
    # Uncut, or on a Pareto line: as report.json says.
    suite = json.loads(before["report.json"])["suites"][0]
    wanted = {
        (item["setting"], item["name"]) for setting in suite["settings"] for item in setting["submodels"] if item["full"] or item["pareto"]
    }
    assert {(row["setting"], row["submodel"]) for row in told["rows"]} == wanted
    assert all(0 <= row["one_ms"] <= row["slow_ms"] and row["texts_per_second"] > 0 for row in told["rows"])
    batches = [name for name, size in TURNS if size == latency.NUM_TEXTS]
    assert batches == batches[: len(wanted)] * latency.ROUNDS  # in turns
    page = done.page.read_text()
    assert "Latency on one machine" in page
    assert f"threads 1, texts {latency.NUM_TEXTS}" in page
    assert "Latency on one machine" not in before["index.html"].decode()
    assert len(latency.measure(workspace, every=True).rows) == 10
