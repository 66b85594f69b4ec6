"""Work spread over processes gives what it gives in one, outlives its workers' deaths, and passes errors on."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlembed_core.errors import ConfigError, DataError, MachineError
from mlembed_core.spread import PROCESSES, RAY, spread


@dataclass(frozen=True)
class Squares:
    """Work that says where it was done, and does what a test asks of a process."""

    scratch: Path

    def __call__(self) -> Any:
        built = os.getpid()
        (self.scratch / f"built-{built}").touch()

        def work(piece: Any) -> tuple[int, int]:
            if piece == "bad":
                raise DataError("row 3 is bad")
            if piece == "deadly":
                os.kill(os.getpid(), signal.SIGKILL)
            number, delay = piece if isinstance(piece, tuple) else (piece, 0.0)
            marker = self.scratch / f"died-{number}"
            if delay < 0 and not marker.exists():  # dies once
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(max(delay, 0))
            return number * number, built

        return work


def run(scratch: Path, pieces: list[Any], **options: Any) -> list[tuple[int, tuple[int, int]]]:
    return list(spread(Squares(scratch), pieces, description="squares", total=len(pieces), unit="pieces", **options))


def test_in_this_process_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROCESSES, raising=False)
    assert run(tmp_path, [1, 2, 3]) == [(number, ((number + 1) ** 2, os.getpid())) for number in range(3)]
    assert [path.name for path in tmp_path.iterdir()] == [f"built-{os.getpid()}"]
    assert run(tmp_path, []) == []


def test_two_processes_build_once_each_and_a_dead_one_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROCESSES, "2")
    pieces = [(0, 0.3), *((number, 0.0) for number in range(1, 9)), (9, -1.0), (10, 0.0)]
    found = run(tmp_path, pieces, in_order=True)
    assert [(number, value) for number, (value, _) in found] == [(number, number * number) for number in range(11)]
    assert (tmp_path / "died-9").exists()
    processes = {pid for _, (_, pid) in found}
    assert os.getpid() not in processes
    assert len(list(tmp_path.glob("built-*"))) <= 4  # two pools of two


def test_an_error_of_the_work_is_told_as_it_was_and_ends_the_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROCESSES, "2")
    started = time.monotonic()
    with pytest.raises(DataError, match="row 3 is bad"):
        run(tmp_path, ["bad", (1, 60.0)])
    assert time.monotonic() - started < 30


def test_work_that_kills_its_process_every_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROCESSES, "2")
    monkeypatch.setattr("mlembed_core.spread.RETRIES", 0)
    with pytest.raises(MachineError, match=r"died 1 times over, the last with piece 0.*MLEMBED_PROCESSES"):
        run(tmp_path, ["deadly"])


@pytest.mark.parametrize("asked", ["0", "-1", "two", "1.5"])
def test_a_number_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    monkeypatch.setenv(PROCESSES, asked)
    with pytest.raises(ConfigError, match=f"MLEMBED_PROCESSES='{asked}'"):
        run(tmp_path, [1])


def test_a_cluster_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RAY, "127.0.0.1:9")
    with pytest.raises(MachineError, match=r"MLEMBED_RAY=127.0.0.1:9: no Ray cluster answers"):
        run(tmp_path, [1])
