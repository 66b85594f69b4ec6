"""What an evaluation has done so far, task by task, under ``.work/evaluate/FINGERPRINT/``: a killed one goes on where it was.

The fingerprint stands for everything that shapes a score: weights, submodels, arithmetic, versions of the libraries and our own code.
So a retrained model, another cut or another version never gets an old score. A file is written aside, synced and renamed; its
pages carry checksums, and one that does not read is named, thrown away and made again.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from mteb.abstasks.abstask import AbsTask

from mlembed_core.artifacts import hash_of, sha256_file

KEPT = 20  # evaluations whose state stays around
LIBRARIES = ("mteb", "numpy", "scikit-learn", "torch", "transformers")
CODE = ("evaluate/*.py", "model/*.py", "data/*.py", "prompts.py")


def fingerprint(**shapes: Any) -> str:
    """16 hex digits that name an evaluation.

    Args:
        shapes: JSON-able; everything that the caller knows to shape the scores.
    """
    root = Path(__file__).parents[1]
    code = {path.relative_to(root).as_posix(): sha256_file(path) for pattern in CODE for path in sorted(root.glob(pattern))}
    return hash_of({"shapes": shapes, "libraries": versions(), "code": code})[:16]


def versions() -> dict[str, str]:
    """Of the libraries that can move a score."""
    return {name: version(name) for name in LIBRARIES}


class State:
    """The finished tasks of one evaluation.

    Args:
        folder: of all evaluations' states.
        name: the evaluation's fingerprint.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        os.utime(self.folder)
        newest_first = sorted((path for path in folder.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in newest_first[KEPT:]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, task: AbsTask, schema: pa.Schema) -> pa.Table | None:
        """The rows of a task that was finished before, None where it was not or its file does not read."""
        path = self._path(task)
        if not path.is_file():
            return None
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            if not table.schema.equals(schema):
                raise pa.ArrowInvalid("other columns than expected")
        except (pa.ArrowException, OSError) as error:
            print(f"{path} is damaged ({error}); the task is scored again", file=sys.stderr, flush=True)
            path.unlink(missing_ok=True)
            return None
        return table

    def save(self, task: AbsTask, table: pa.Table) -> None:
        """Keep the rows of a finished task."""
        path = self._path(task)
        draft = path.with_suffix(".partial")
        pq.write_table(table, draft, compression="zstd", write_page_checksum=True)
        with draft.open("rb") as handle:
            os.fsync(handle.fileno())
        draft.replace(path)

    def forget(self, tasks: Iterable[AbsTask]) -> None:
        """Drop what was kept of ``tasks``: they stand in an out now."""
        for task in tasks:
            self._path(task).unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _path(self, task: AbsTask) -> Path:
        return self.folder / f"{task.metadata.name}-{hash_of(_identity(task))[:12]}.parquet"


def _identity(task: AbsTask) -> Mapping[str, Any]:
    """What else than its name tells a task from others: its data, and how much of them is asked."""
    metadata = task.metadata
    return {
        "dataset": f"{metadata.dataset['path']}@{metadata.dataset['revision']}",
        "splits": list(task.eval_splits),
        "subsets": list(task.hf_subsets),
        "parameters": getattr(task, "parameters", None),
    }
