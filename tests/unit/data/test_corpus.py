"""Tokenising in pieces: a killed run goes on, several processes make them, a damaged one is made again; the bytes are always the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlembed_core.data import corpus
from mlembed_core.data.corpus import Job, make_corpus
from mlembed_core.data.rows import Row, RowWriter, to_table
from mlembed_core.spread import PROCESSES
from tests.tiny import tokenizer_folder

PIECES = 6


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Six pieces; most documents stand in several of them."""
    root = tmp_path_factory.mktemp("job")
    patch = pytest.MonkeyPatch()
    patch.setattr("mlembed_core.data.rows.ROW_GROUP", 100)
    splits = ("train", "dev", "test", None)
    rows = [
        Row(f"query {n % 700}", f"text {n % 350}", [f"text {(n * 7 + k) % 450}" for k in range(n % 3)], None, None, splits[n % 4])
        for n in range(2 * 100 * PIECES - 50)
    ]
    with RowWriter(root, 2) as writer:
        writer.write(to_table(rows, 2))
    patch.undo()
    tokenizer = tokenizer_folder(root / "tokenizer")
    return Job(root / "rows.parquet", tokenizer, root / "state", "Find", True, 2, 20)


@pytest.fixture(autouse=True)
def _fresh(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(job.state, ignore_errors=True)
    monkeypatch.delenv(PROCESSES, raising=False)
    corpus._batches.cache_clear()


def make(job: Job, folder: Path) -> tuple[dict[str, int], bytes, bytes]:
    folder.mkdir()
    counts = make_corpus(job, folder, scratch=folder, description="tokenize")
    return counts, (folder / "documents.parquet").read_bytes(), (folder / "rows.parquet").read_bytes()


def test_pieces_that_are_done_are_not_made_again(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert job.num_pieces == PIECES
    whole = make(job, tmp_path / "whole")
    shutil.rmtree(job.state)
    made: list[int] = []
    finish = corpus._finish

    def stop_after_three(job: Job, number: int, *rest: Any) -> None:
        finish(job, number, *rest)
        made.append(number)
        if len(made) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "_finish", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        make(job, tmp_path / "stopped")
    assert make(job, tmp_path / "again") == whole
    assert made == list(range(PIECES))


def test_a_killed_process_s_pieces_are_kept(job: Job, tmp_path: Path) -> None:
    whole = make(job, tmp_path / "whole")
    shutil.rmtree(job.state)
    code = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mlembed_core.data import corpus\n"
        "finish = corpus._finish\n"
        "def kill(job, number, *rest):\n"
        "    if number == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    finish(job, number, *rest)\n"
        "corpus._finish = kill\n"
        f"job = corpus.Job(Path({str(job.rows_file)!r}), Path({str(job.tokenizer)!r}), Path({str(job.state)!r}), 'Find', True, 2, 20)\n"
        f"corpus.make_corpus(job, Path({str(tmp_path)!r}), scratch=Path({str(tmp_path)!r}), description='')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, env=os.environ | {"PYTHONHASHSEED": "5"})
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in job.state.glob("*.json")) == [f"{number:06}.json" for number in range(4)]
    assert make(job, tmp_path / "again") == whole


@pytest.mark.parametrize("part", ["documents", "rows", "keys", "json"])
def test_a_damaged_piece_is_made_again(job: Job, tmp_path: Path, part: str) -> None:
    whole = make(job, tmp_path / "whole")
    file = job.state / f"000002.{part}"
    file.write_bytes(file.read_bytes()[:-20])
    assert make(job, tmp_path / "again") == whole


def test_two_processes_make_the_same_bytes(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(job, tmp_path / "whole")
    shutil.rmtree(job.state)
    monkeypatch.setenv(PROCESSES, "2")
    assert make(replace(job, alone=False), tmp_path / "two") == whole


def test_every_document_stands_once_over_all_pieces(job: Job, tmp_path: Path) -> None:
    counts, _, _ = make(job, tmp_path / "whole")
    assert counts["documents"] == 450
    assert counts["rows"] == counts["rows_train"] + counts["rows_dev"] + counts["rows_unsplit"] == (2 * 100 * PIECES - 50) * 3 // 4 + 1
