"""The sensor that follows DVC: what happened in a shell shows in Dagster's UI, and what DVC calls changed never looks fresh there."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from dagster import DagsterInstance, DefaultSensorStatus, RunsFilter, SensorEvaluationContext, SkipReason, sensor

from assets import graph
from assets.importing import UNFINISHED, import_outs, unfinished_items
from assets.partitions import WORKSPACE
from assets.stages import STAGES
from mlembed_core.artifacts import Workspace
from workflows.jobs import JOBS
from workflows.pipeline import PIPELINE

INTERVAL_S = 30


@sensor(
    minimum_interval_seconds=INTERVAL_S,
    default_status=DefaultSensorStatus.RUNNING,
    description="Imports what `dvc repro`, `dvc pull` or `dvc checkout` did outside Dagster, and reports what `dvc status` says.",
)
def dvc_state(context: SensorEvaluationContext) -> SkipReason:
    """One pass: nothing where no file has changed since the last one, else one `dvc status` and the news."""
    if running := unfinished_jobs(context.instance):
        return SkipReason(f"the job {', '.join(running)} is running and reports what it does itself")
    busy = unfinished_items(context.instance)
    fingerprint = fingerprint_of(watched_files(WORKSPACE), busy)
    cursor = json.loads(context.cursor) if context.cursor else {}
    if cursor.get("fingerprint") == fingerprint:
        return SkipReason("no file of the workspace has changed since the last look")
    status = graph.status(WORKSPACE)
    done = import_outs(context.instance, PIPELINE, status=status, busy=busy, ask_checks=True)
    context.update_cursor(json.dumps({"fingerprint": fingerprint}))
    return SkipReason(f"told Dagster {done}; DVC calls {len(status)} items changed")


def unfinished_jobs(instance: DagsterInstance) -> list[str]:
    """Names of our jobs that have not ended."""
    names = {job.name for job in JOBS}
    return sorted({run.job_name for run in instance.get_runs(RunsFilter(statuses=UNFINISHED)) if run.job_name in names})


def watched_files(workspace: Workspace) -> Iterator[Path]:
    """Whatever can change the answer of ``dvc status``, and the records of registrations."""
    yield from (workspace.root / name for name in ("dvc.yaml", "dvc.lock", "configs/params.yaml"))
    yield from sorted(
        {workspace.root / str(dep) for stage in STAGES.values() for dep in stage["deps"] if str(dep).endswith((".py", ".txt"))}
    )
    for folder in (workspace.root / "data", workspace.models, workspace.scores, workspace.reports):
        yield from sorted(folder.rglob("*"))
    yield from sorted(workspace.registration("any").parent.glob("*.json"))


def fingerprint_of(files: Iterable[Path], busy: Iterable[object]) -> str:
    """A hash of names, sizes and times: cheap, and different whenever a file was written."""
    digest = hashlib.sha256(repr(sorted(map(str, busy))).encode())
    for path in files:
        try:
            stat = path.stat()
            digest.update(f"{path}\\0{stat.st_size}\\0{stat.st_mtime_ns}\\n".encode())
        except OSError:
            digest.update(f"{path}\\0missing\\n".encode())
    return digest.hexdigest()
