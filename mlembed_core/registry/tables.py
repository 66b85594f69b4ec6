"""The score tables of a registered version: kept among its run's artifacts, so that two versions can be compared without their outs.

``scores/SUITE.parquet`` is the version's own, ``scores/controls/SUITE.parquet`` what stood beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlembed_core.artifacts import CONTROLS, Workspace, sha256_file
from mlembed_core.config.grid import Shape, resolve_submodel
from mlembed_core.errors import ArtifactError, RegistryError
from mlembed_core.evaluate.bootstrap import Answers, Part
from mlembed_core.registry.client import Registry

TABLES_TAG = "mlembed.tables_hash"  # on the run: of the tables that lie among its artifacts
FOLDER = "scores"
COLUMNS = ["setting", "submodel", "task", "subset", "split", "language", "query", "score", "main"]


def tables_of(workspace: Workspace, setting: str) -> dict[str, Path]:
    """Place among the artifacts → file, of the tables that belong to a setting."""
    own = {f"{FOLDER}/{path.name}": path for path in sorted((workspace.scores / setting).glob("*.parquet"))}
    controls = sorted((workspace.scores / CONTROLS).glob("*.parquet"))
    return own | {f"{FOLDER}/{CONTROLS}/{path.name}": path for path in controls}


def upload_tables(client: Any, run: Any, tables: Mapping[str, Path]) -> int:
    """Put tables beside the run, unless they are there; returns how many."""
    digest = hashlib.sha256("".join(f"{place}:{sha256_file(path)}\n" for place, path in sorted(tables.items())).encode()).hexdigest()
    if not tables or run.data.tags.get(TABLES_TAG) == digest:
        return 0
    for place, path in tables.items():
        client.log_artifact(run.info.run_id, str(path), str(Path(place).parent))
    client.set_tag(run.info.run_id, TABLES_TAG, digest)
    return len(tables)


def fetch_tables(registry: Registry, version: Any, suites: Sequence[str], target: Path) -> dict[str, Path]:
    """Download the tables of ``suites`` (and of their controls, where there are) into ``target``; place → file.

    Raises:
        RegistryError: the version has no table of a suite; the message says what brings it.
    """
    from mlflow.artifacts import download_artifacts

    there = {item.path for folder in (FOLDER, f"{FOLDER}/{CONTROLS}") for item in registry.client.list_artifacts(version.run_id, folder)}
    found = {}
    for suite in suites:
        own, control = f"{FOLDER}/{suite}.parquet", f"{FOLDER}/{CONTROLS}/{suite}.parquet"
        if own not in there:
            raise RegistryError(
                f"{version.name} version {version.version} has no scores of suite {suite!r}. Where the scores of its weights lie, "
                f"`mlembed register SETTING` adds them; anywhere else, `mlembed rescore {version.version}` computes them anew."
            )
        for place in (own, control) if control in there else (own,):
            folder = target / Path(place).parent  # MLflow keeps the last part of the place only
            folder.mkdir(parents=True, exist_ok=True)
            got = download_artifacts(
                run_id=version.run_id, artifact_path=place, dst_path=str(folder), tracking_uri=registry.uri, registry_uri=registry.uri
            )
            found[place] = Path(got)
    return found


@dataclass(frozen=True)
class Scored:
    """What one system got on the gate's suites.

    Attributes:
        name: for messages.
        tasks: label (``suite/task``, with the cut where several count) → main score; None where it cannot do the task.
        answers: scores of single questions; the part's task is the label.
        languages: of those questions, in their order.
        datasets: label → dataset at its revision.
        weights: suite → the hash of the weights that were scored.
    """

    name: str
    tasks: dict[str, float | None]
    answers: dict[Part, Answers]
    languages: dict[Part, list[str]]
    datasets: dict[str, str]
    weights: dict[str, str | None]


def read_scored(
    name: str,
    files: Mapping[str, Path],
    *,
    cuts: Sequence[Mapping[str, int | None]],
    shape: Shape | None = None,
    setting: str | None = None,
) -> Scored:
    """Read one system's rows.

    Args:
        files: suite → table.
        cuts: the submodels that count, as axis → size.
        shape: of the model, to say what a cut is called in the table; without it all rows of ``setting`` (a control) are one submodel.

    Raises:
        ArtifactError: a table is damaged or of an older form, or lacks a cut.
        SubmodelError: a cut that the model does not have.
    """
    scored = Scored(name, {}, {}, {}, {}, {})
    names = {"": None} if shape is None else {_label(cut): resolve_submodel(shape, **cut).name for cut in cuts}
    for suite, path in files.items():
        table, facts = _read(path)
        scored.weights[suite] = facts.get("weights")
        for label, submodel in names.items():
            keep = pc.equal(table["setting"], setting) if submodel is None else pc.equal(table["submodel"], submodel)
            rows = table.filter(keep)
            if not len(rows):
                raise ArtifactError(
                    f"{path.name}: {name} was not scored at {submodel or setting}. Add it to evaluation.submodels (or take it out of the "
                    "gate), and score again: `dvc repro`, `mlembed register`."
                )
            _collect(scored, suite, label if len(names) > 1 else "", rows, facts)
    return scored


def _label(cut: Mapping[str, int | None]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in cut.items() if size is not None) or "full"


def _read(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    try:
        table = pq.read_table(path, columns=COLUMNS)
        facts = json.loads((table.schema.metadata or {})[b"mlembed"])
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged, or a score table of an older form, without single questions ({type(error).__name__}: {error}). "
            "Score again (`dvc repro`) and `mlembed register SETTING`."
        ) from None
    return table, facts


def _collect(scored: Scored, suite: str, cut: str, rows: pa.Table, facts: Mapping[str, Any]) -> None:
    parts: dict[str, list[float | None]] = defaultdict(list)
    main = rows.filter(rows["main"])
    for task, score in zip(main["task"].to_pylist(), main["score"].to_pylist(), strict=True):
        parts[task].append(score)
    for task, scores in parts.items():
        label = f"{suite}/{task}" + (f" at {cut}" if cut else "")
        known = [score for score in scores if score is not None]
        scored.tasks[label] = fmean(known) if len(known) == len(scores) else None
        scored.datasets[label] = facts.get("datasets", {}).get(task, "unknown")
    single = rows.filter(pc.is_valid(rows["query"])).to_pandas()
    for (task, subset, split), group in single.groupby(["task", "subset", "split"], sort=True):
        part = Part(f"{suite}/{task}" + (f" at {cut}" if cut else ""), str(subset), str(split))
        ordered = group.sort_values("query", kind="stable")
        scored.answers[part] = Answers(tuple(ordered["query"]), ordered["score"].to_numpy(np.float64))
        scored.languages[part] = [str(language) for language in ordered["language"]]
