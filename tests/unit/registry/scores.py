"""Score tables for the tests of the gate: main scores and single questions, as stage `evaluate` writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FULL = "l2-d16-r8"
Task = tuple[Sequence[str], np.ndarray]  # the language and the score of each question


def questions(seed: int, count: int, level: float, languages: Sequence[str] = ("eng",)) -> Task:
    """``count`` questions answered right with probability ``level``; the same ones for every ``level`` of a seed."""
    draw = np.random.default_rng(seed).random(count)
    return [languages[index % len(languages)] for index in range(count)], (draw < level).astype(float)


def write_table(
    path: Path, tasks: Mapping[str, Task], *, weights: str, setting: str = "3d", data: str = "1", alone: Mapping[str, float] | None = None
) -> None:
    """
    Args:
        alone: tasks without single questions.
        data: the revision of every dataset.
    """
    rows = []
    common = {"setting": setting, "submodel": FULL, "split": "test", "subset": "default", "language": "mul"}
    for task, (languages, scores) in tasks.items():
        rows.append({**common, "task": task, "query": None, "score": float(scores.mean()), "main": True})
        rows += [
            {**common, "task": task, "language": language, "query": f"q{index:04d}", "score": float(score), "main": False}
            for index, (language, score) in enumerate(zip(languages, scores, strict=True))
        ]
    rows += [{**common, "task": task, "query": None, "score": score, "main": True} for task, score in (alone or {}).items()]
    facts = {"weights": weights, "datasets": {task: f"local/{task}@{data}" for task in [*tasks, *(alone or {})]}}
    table = pa.Table.from_pylist(rows)
    # What registration reads besides.
    table = table.append_column("suite", pa.array([path.stem] * len(rows)))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata({"mlembed": json.dumps(facts)}), path)
