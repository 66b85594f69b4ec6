"""Scores in mteb's own files, and as the section of a model card: made from a score table, so that there is one truth.

``mteb.ResultCache(folder)`` reads what :func:`write_results` writes; each submodel is a revision of its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import mteb
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from huggingface_hub import EvalResult, ModelCardData
from mteb.results import TaskResult

from mlembed_core.errors import ArtifactError
from mlembed_core.evaluate.encoder import model_meta
from mlembed_core.evaluate.scoring import FORMAT_VERSION

Rows = list[dict[str, Any]]


def write_results(table: Path, folder: Path) -> None:
    """Write a setting's score table as mteb's result files into ``folder``, and a model card's section per submodel into ``folder/cards``.

    Raises:
        ArtifactError: the table is damaged or of another format version.
    """
    rows, facts = _read(table)
    cache = mteb.ResultCache(folder)
    (folder / "cards").mkdir(parents=True, exist_ok=True)
    for (setting, submodel), of_model in _grouped(rows, "setting", "submodel").items():
        meta = model_meta(f"mlembed/{setting}", f"{facts['weights']}-{submodel}", embed_dim=of_model[0]["dim"])
        results = [_task_result(name, part, facts) for (name,), part in _grouped(of_model, "task").items()]
        for result in results:
            cache.save_to_cache(result, meta)
        card = ModelCardData(model_name=f"{setting} {submodel}", eval_results=_eval_results(of_model, facts))
        (folder / "cards" / f"{submodel}.yaml").write_text(card.to_yaml() + "\n", encoding="utf-8")


def _read(table: Path) -> tuple[Rows, dict[str, Any]]:
    """The rows but for those of single questions, and the table's facts."""
    try:
        whole = pq.read_table(table)
        facts: dict[str, Any] = json.loads(whole.schema.metadata[b"mlembed"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{table} is no readable score table ({error!r}). Score the model again.") from error
    if facts.get("format_version") != FORMAT_VERSION:
        raise ArtifactError(
            f"{table} has format version {facts.get('format_version')!r}, this code reads {FORMAT_VERSION}. Score the model again."
        )
    return whole.filter(pa.compute.is_null(whole["query"])).to_pylist(), facts


def _grouped(rows: Rows, *keys: str) -> dict[tuple[Any, ...], Rows]:
    groups: dict[tuple[Any, ...], Rows] = defaultdict(list)
    for row in rows:
        groups[tuple(row[key] for key in keys)].append(row)
    return groups


def _task_result(name: str, rows: Rows, facts: dict[str, Any]) -> TaskResult:
    """Mteb's form of one task's rows. It has no date and no duration: the table keeps neither."""
    scores: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (split, subset), part in _grouped(rows, "split", "subset").items():
        main = next(row for row in part if row["main"])
        entry = {row["metric"]: row["score"] for row in part}
        scores[split].append({**entry, "main_score": main["score"], "hf_subset": subset, "languages": main["languages"]})
    return TaskResult(
        task_name=name,
        dataset_revision=facts["datasets"][name].rpartition("@")[2],
        mteb_version=facts["versions"]["mteb"],
        scores=dict(scores),
        evaluation_time=None,
    )


def _eval_results(rows: Rows, facts: dict[str, Any]) -> list[EvalResult]:
    """The hub's form of the main scores."""
    results = []
    for row in rows:
        if row["main"]:
            path, _, revision = facts["datasets"][row["task"]].rpartition("@")
            results.append(
                EvalResult(
                    task_type=row["task_type"],
                    dataset_type=path,
                    dataset_name=f"MTEB {row['task']} ({row['subset']})",
                    dataset_config=row["subset"],
                    dataset_split=row["split"],
                    dataset_revision=revision,
                    metric_type=row["metric"],
                    metric_value=row["score"],
                )
            )
    return results
