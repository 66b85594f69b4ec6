"""Tell Dagster what was done outside it: items that DVC has on record, run by ``dvc repro`` or brought by ``pull`` or ``checkout``.

Each becomes a materialisation with the data version, the code version and the provenance that a run of Dagster's own would have
left, so that staleness goes on from there as usual. An item that Dagster knows already in this very record is left alone: a second
pass adds nothing. What ``dvc status`` says is reported beside it, as the check ``matches_dvc``.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckEvaluation,
    AssetCheckKey,
    AssetKey,
    AssetMaterialization,
    AssetRecordsFilter,
    DagsterInstance,
    DagsterRunStatus,
    RunsFilter,
)
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DATA_VERSION_TAG,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.events import DagsterEvent, DagsterEventType
from dagster._core.instance.utils import RUNLESS_JOB_NAME
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.utils import make_new_run_id

from assets.checks import MATCHES_DVC, metadata, severity, verdict_of_status
from assets.graph import CODE, LockedItem
from assets.partitions import WORKSPACE
from assets.stages import ENTRY_TAG, StageAsset, ask
from mlembed_core.predicates import PREDICATES

Report = Callable[[Any], None]  # of AssetMaterialization and AssetCheckEvaluation
Items = Collection[tuple[str, str | None]]  # (asset, partition)
UNFINISHED = [
    DagsterRunStatus.QUEUED,
    DagsterRunStatus.NOT_STARTED,
    DagsterRunStatus.STARTING,
    DagsterRunStatus.STARTED,
    DagsterRunStatus.CANCELING,
]
OUT_OF_DATE = ".outdated"  # after a record's hash: it was not up to date when it was told; once it is, it is told again
ASK_UP_TO_BYTES = 1 << 30  # of an out: reading more would keep the sensor. A run of Dagster's own asks whatever the size
ANOTHER = "another"  # a version that is not the current one; which one it was, nobody knows


@dataclass(frozen=True)
class Imported:
    """What one pass told Dagster."""

    materialisations: int = 0
    checks: int = 0

    def __str__(self) -> str:
        return f"{self.materialisations} materialisations, {self.checks} check results"


def import_outs(
    instance: DagsterInstance,
    assets: Sequence[StageAsset],
    *,
    status: Mapping[str, list[str]],
    report: Report | None = None,
    busy: Items = (),
    ask_checks: bool = False,
) -> Imported:
    """Report what Dagster does not know yet.

    Args:
        assets: each after those upstream of it.
        status: of the whole workspace (``graph.status``).
        report: takes each event at once; default: the instance itself, as events of no run.
        busy: items that a run of Dagster's is about to report itself.
        ask_checks: also ask the predicates about what is imported; reads the data, so it takes time.
    """
    report = report or _outside_runs(instance)
    materialisations = checks = 0
    with _one_at_a_time(Path(instance.root_directory)):
        for this in assets:
            reasons = this.reasons(status)
            recorded = {key: locked for key, locked in this.recorded().items() if (this.name, key) not in busy}
            known = _entries_known(instance, this)
            made_from = _MadeFrom(instance, this)
            for key, locked in recorded.items():
                told = locked.entry if not reasons[key] else f"{locked.entry}{OUT_OF_DATE}"
                if known.get(key) in (locked.entry, told) or not _is_on_disk(locked, reasons[key]):
                    continue
                report(_materialisation(this, key, locked, reasons[key], made_from, told))
                known[key] = told
                materialisations += 1
                if ask_checks and locked.size <= ASK_UP_TO_BYTES:
                    for name, verdict in ask(this.stage, locked).items() if this.stage in PREDICATES else ():
                        report(_evaluation(this, key, name, verdict.passed, metadata(verdict)))
                        checks += 1
            standing = [key for key in known if key in reasons and (this.name, key) not in busy]
            checks += _report_status(instance, this, {key: reasons[key] for key in standing}, report)
    return Imported(materialisations, checks)


def _outside_runs(instance: DagsterInstance) -> Report:
    """Reports events that belong to no run."""
    pass_id = make_new_run_id()

    def report(event: AssetMaterialization | AssetCheckEvaluation) -> None:
        if isinstance(event, AssetCheckEvaluation) and event.partition is not None:
            # Dagster keeps one answer per run, check and partition, and events of no run share the empty run id: a second answer
            # would be refused (1.13). So the answers of one pass carry an id of their own.
            kind = DagsterEventType.ASSET_CHECK_EVALUATION.value
            instance.report_dagster_event(DagsterEvent(kind, RUNLESS_JOB_NAME, event_specific_data=event), run_id=pass_id)
        else:
            instance.report_runless_asset_event(event)

    return report


def unfinished_items(instance: DagsterInstance) -> set[tuple[str, str | None]]:
    """What runs that have not ended are materialising."""
    return {
        (key.to_user_string(), run.tags.get("dagster/partition"))
        for run in instance.get_runs(RunsFilter(statuses=UNFINISHED))
        for key in run.asset_selection or ()
    }


def _is_on_disk(locked: LockedItem, reasons: Sequence[str]) -> bool:
    """Whether the recorded bytes are there: not deleted, not changed by hand, not only in a lock file that came with git."""
    return (WORKSPACE.root / locked.out).exists() and not any(reason.startswith("changed outs") for reason in reasons)


def _entries_known(instance: DagsterInstance, this: StageAsset) -> dict[str | None, str]:
    """Partition key → the record that its newest materialisation tells of, ``""`` where it tells of none.

    Two queries for all partitions: one for each would take seconds where there are hundreds.
    """
    asset = AssetKey(this.name)
    if this.partitions is None:
        records = instance.fetch_materializations(asset, limit=1).records
    else:
        newest = instance.event_log_storage.get_latest_storage_id_by_partition(asset, DagsterEventType.ASSET_MATERIALIZATION)
        wanted = AssetRecordsFilter(asset_key=asset, storage_ids=list(newest.values()))
        records = instance.fetch_materializations(wanted, limit=len(newest)).records if newest else []
    events = [record.asset_materialization for record in records]
    return {event.partition: (event.tags or {}).get(ENTRY_TAG, "") for event in events if event}


class _MadeFrom:
    """What the items of one asset were made from, for the provenance of their materialisations; looked up once for all of them."""

    def __init__(self, instance: DagsterInstance, this: StageAsset):
        self._instance = instance
        self._deps = this.deps

    @cached_property
    def _outs(self) -> dict[str, list[str]]:
        return {dep.name: [locked.out for locked in dep.recorded().values()] for dep in self._deps}

    @cached_property
    def _newest(self) -> dict[str, tuple[str, str] | None]:
        return {dep.name: _newest(self._instance, dep) for dep in self._deps}

    def tags(self, reasons: Sequence[str]) -> dict[str, str]:
        """For an item with these reasons not to be up to date."""
        changed = [reason.removeprefix("changed deps: ").rsplit(" (", 1)[0] for reason in reasons if reason.startswith("changed deps: ")]
        tags = {}
        for dep in self._deps:
            pointer, version = NULL_EVENT_POINTER, ANOTHER
            if not _overlap(self._outs[dep.name], changed) and (found := self._newest[dep.name]):
                pointer, version = found
            tags[get_input_event_pointer_tag(AssetKey(dep.name))] = pointer
            tags[get_input_data_version_tag(AssetKey(dep.name))] = version
        return tags


def _overlap(outs: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether one of the outs is one of the paths, or in it: a stage may depend on a whole folder of outs (data/sources)."""
    return any(out == path or out.startswith(f"{path}/") or path.startswith(f"{out}/") for path in paths for out in outs)


def _materialisation(
    this: StageAsset, key: str | None, locked: LockedItem, reasons: Sequence[str], made_from: _MadeFrom, told: str
) -> AssetMaterialization:
    code_is_current = not any(f": {CODE}" in reason or reason == "changed command" for reason in reasons)
    tags = {
        DATA_VERSION_TAG: locked.md5,
        DATA_VERSION_IS_USER_PROVIDED_TAG: "true",
        CODE_VERSION_TAG: this.code_version() if code_is_current else ANOTHER,
        ENTRY_TAG: told,
    }
    return AssetMaterialization(
        asset_key=this.name,
        partition=key,
        description="As recorded in dvc.lock",
        metadata=this.facts(key, locked),
        tags=tags | made_from.tags(reasons),
    )


def _newest(instance: DagsterInstance, dep: StageAsset) -> tuple[str, str] | None:
    """(storage id, data version) of the newest materialisation of any partition: what Dagster compares later ones with."""
    records = instance.fetch_materializations(AssetKey(dep.name), limit=1).records
    if not records or records[0].asset_materialization is None:
        return None
    return str(records[0].storage_id), (records[0].asset_materialization.tags or {}).get(DATA_VERSION_TAG, ANOTHER)


def _report_status(instance: DagsterInstance, this: StageAsset, reasons: Mapping[str | None, list[str]], report: Report) -> int:
    """Report ``matches_dvc`` where the answer is not the one that stands there."""
    check = AssetCheckKey(AssetKey(this.name), MATCHES_DVC)
    infos = instance.event_log_storage.get_asset_check_partition_info([check])
    passed = {info.partition_key: info.latest_execution_status is AssetCheckExecutionRecordStatus.SUCCEEDED for info in infos}
    told = 0
    for key, why in reasons.items():
        verdict = verdict_of_status(why)
        if passed.get(key) is not verdict.passed or (why and _said_last(instance, check, key) != verdict.figures):
            report(_evaluation(this, key, MATCHES_DVC, verdict.passed, verdict.figures))
            told += 1
    return told


def _said_last(instance: DagsterInstance, check: AssetCheckKey, key: str | None) -> Mapping[str, Any] | None:
    """The figures of the check's newest answer."""
    found = instance.event_log_storage.get_latest_asset_check_execution_by_key([check], partition_filter=PartitionKeyFilter(key=key)).get(
        check
    )
    return found.event.asset_check_evaluation.metadata if found and found.event and found.event.asset_check_evaluation else None


def _evaluation(this: StageAsset, key: str | None, name: str, passed: bool, figures: Mapping[str, Any]) -> AssetCheckEvaluation:
    return AssetCheckEvaluation(
        asset_key=AssetKey(this.name),
        check_name=name,
        passed=passed,
        severity=severity(this.stage, name),
        metadata=dict(figures),
        partition=key,
    )


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """The sensor, a job and a person may all import at once; the second then finds nothing left to do."""
    handle = os.open(folder / "import.lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
