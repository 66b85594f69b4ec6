"""Work over a real Ray cluster of two nodes on this machine, one of which is killed while it works."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlembed_core.errors import DataError
from mlembed_core.spread import spread

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray leaves pipes of the nodes it killed to the collector
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WORK_S = 2.0  # long beside what it takes to kill a node


@dataclass(frozen=True)
class Work:
    """Notes where each piece is done, and takes a while."""

    scratch: Path

    def __call__(self) -> Any:
        import ray

        node = ray.get_runtime_context().get_node_id()

        def work(piece: Any) -> tuple[int, str]:
            if piece == "bad":
                raise DataError("row 3 is bad")
            (self.scratch / f"{piece}-{node}-{os.getpid()}").touch()
            time.sleep(WORK_S)
            return piece * piece, node

        return work


def test_a_node_that_dies_half_way_costs_nothing_but_time(ray_cluster: Any, tmp_path: Path) -> None:
    second = ray_cluster.add_node(num_cpus=1, object_store_memory=10**8)
    found, nodes = [], set()
    for number, (value, node) in spread(Work(tmp_path), range(12), description="squares", total=12, unit="pieces"):
        found.append((number, value))
        nodes.add(node)
        if second is not None and len(nodes) == 2:
            wait_until_both_have_begun_another(tmp_path, nodes)
            ray_cluster.remove_node(second, allow_graceful=False)  # both have worked; now one is gone, with a piece in hand
            second = None
    assert second is None, "only one node ever worked"
    assert sorted(found) == [(number, number * number) for number in range(12)]
    assert len(list(tmp_path.iterdir())) > 12  # something was done twice


def wait_until_both_have_begun_another(notes: Path, nodes: set[str]) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        just_begun = {path.name.split("-")[1] for path in notes.iterdir() if time.time() - path.stat().st_mtime < WORK_S / 3}
        if just_begun == nodes:
            return
        time.sleep(0.02)
    raise AssertionError("the nodes were never at work at the same time")


def test_errors_come_through(ray_cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^row 3 is bad$"):
        list(spread(Work(tmp_path), [1, "bad", 2], description="squares", total=3, unit="pieces"))
