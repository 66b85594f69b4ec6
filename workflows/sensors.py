"""Sensors: what happened in a shell shows in Dagster's UI, changed files of a team's own sources are read again, and new candidates
are put to the gate.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from dagster import (
    DagsterInstance,
    DefaultSensorStatus,
    RunRequest,
    RunsFilter,
    SensorDefinition,
    SensorEvaluationContext,
    SensorResult,
    SkipReason,
    sensor,
)

from assets import graph
from assets.importing import UNFINISHED, import_outs, unfinished_items
from assets.partitions import PARAMS, WORKSPACE
from assets.raw_sources import raw_sources
from assets.stages import FORCE_TAG, STAGES
from mlembed_core.artifacts import MANIFEST, Workspace, hash_of, read_json
from mlembed_core.config.data import LocalOrigin
from workflows.jobs import JOBS
from workflows.pipeline import PIPELINE
from workflows.promotion import CANDIDATE_TAG, asking, promote

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


@sensor(
    asset_selection=[raw_sources.definition],
    minimum_interval_seconds=INTERVAL_S,
    default_status=DefaultSensorStatus.RUNNING,
    description="Reads a source of type local again when its files are new or changed; DVC does not look where they lie.",
)
def source_files(context: SensorEvaluationContext) -> SensorResult | SkipReason:
    """A run for each source with files that are newer than its rows, or not those of the last look."""
    seen = json.loads(context.cursor) if context.cursor else {}
    now = {
        name: sorted({path for pattern in source.origin.patterns for path in pattern.matches(WORKSPACE.root)})
        for name, source in PARAMS.sources.items()
        if isinstance(source.origin, LocalOrigin)
    }
    prints = {name: fingerprint_of(files, ()) for name, files in now.items() if files}
    changed = [name for name, print_ in prints.items() if seen.get(name) != print_ and (name in seen or _is_newer(name, now[name]))]
    requests = [RunRequest(run_key=f"{name}-{prints[name]}", partition_key=name, tags={FORCE_TAG: "true"}) for name in changed]
    if not requests:
        context.update_cursor(json.dumps(prints))
        return SkipReason(f"no file of {len(now)} sources of type local is new or changed")
    return SensorResult(run_requests=requests, cursor=json.dumps(prints))


def _is_newer(name: str, files: Sequence[Path]) -> bool:
    """Whether a file changed after the source's rows were made; what never was made waits for the first person who wants it."""
    made = WORKSPACE.sources / name / MANIFEST
    return made.is_file() and max(path.stat().st_mtime_ns for path in files) > made.stat().st_mtime_ns


def candidate_sensor(name: str, *, only_ask: bool, status: DefaultSensorStatus, description: str) -> SensorDefinition:
    """Requests the job `promote` once for each candidate, with the scores that it has and the gate as it stands."""

    @sensor(name=name, job_name=promote.name, minimum_interval_seconds=INTERVAL_S, default_status=status, description=description)
    def look(_context: SensorEvaluationContext) -> SensorResult | SkipReason:
        requests = [
            RunRequest(
                run_key=f"{name}-{hash_of([record, PARAMS.gate.model_dump(mode='json')])[:16]}",
                run_config=asking(record["version"], only_ask=only_ask),
                tags={CANDIDATE_TAG: record["setting"]},
            )
            for record in map(read_json, sorted(WORKSPACE.registration("any").parent.glob("*.json")))
            if record["name"] == PARAMS.name and record["setting"] in PARAMS.settings
        ]
        return SensorResult(run_requests=requests) if requests else SkipReason("nothing was registered from this clone")

    return look


SENSORS = [
    dvc_state,
    source_files,
    candidate_sensor(
        "candidates_ask_for_promotion",
        only_ask=True,
        status=DefaultSensorStatus.RUNNING,
        description="Puts every new candidate to the gate; one that passes asks for promotion, on its page and in the run's log.",
    ),
    candidate_sensor(
        "candidates_are_promoted",
        only_ask=False,
        status=DefaultSensorStatus.STOPPED,
        description="Promotes every new candidate that passes the gate, without asking. Off until somebody turns it on.",
    ),
]
