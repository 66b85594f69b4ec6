"""Tokenising over a real Ray cluster of two nodes, one of which is killed half-way: the same bytes as in one process."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlembed_core.data.corpus import Job, make_corpus
from mlembed_core.data.rows import Row, RowWriter, to_table
from mlembed_core.spread import RAY
from tests.tiny import tokenizer_folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves pipes of the nodes it killed to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_a_node_that_dies_half_way_changes_no_byte(ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlembed_core.data.rows.ROW_GROUP", 500)
    rows = [
        Row(
            f"query {n}",
            f"text {n % 9000} " + "long " * 200,
            [f"text {(n * 7 + k) % 9000} " + "long " * 200 for k in range(3)],
            None,
            None,
            None,
        )
        for n in range(20_000)
    ]
    with RowWriter(tmp_path, 3) as writer:
        writer.write(to_table(rows, 3))
    job = Job(tmp_path / "rows.parquet", tokenizer_folder(tmp_path / "tokenizer"), tmp_path / "state", None, False, 3, 2000, alone=False)
    second = ray_cluster.add_node(num_cpus=1, object_store_memory=10**8)
    killed: list[int] = []

    def kill_half_way() -> None:
        while (done := len(list(job.state.glob("*.json")))) < job.num_pieces // 3:
            time.sleep(0.05)
        ray_cluster.remove_node(second, allow_graceful=False)
        killed.append(done)

    killer = threading.Thread(target=kill_half_way)
    killer.start()
    counts = spread_over(job, tmp_path / "ray")
    killer.join()
    assert killed[0] < job.num_pieces, "the node outlived the work"
    monkeypatch.delenv(RAY)
    assert spread_over(replace(job, state=tmp_path / "state_here"), tmp_path / "here") == counts
    for name in ("documents.parquet", "rows.parquet"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()


def spread_over(job: Job, folder: Path) -> dict[str, int]:
    folder.mkdir()
    return make_corpus(job, folder, scratch=folder, description="tokenize")
