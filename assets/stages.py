"""One asset for each stage of ``dvc.yaml``: how it is run, what it returns, and when it refuses to start.

Dagster decides when; DVC runs the stage's command and records its bytes; the asset reports what DVC recorded. The md5 from
``dvc.lock`` is the data version, so that Dagster calls stale what has other bytes upstream, and fresh what has the same.

No postponed annotations here: Dagster looks at the types of a step's parameters.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dagster import (
    AssetCheckKey,
    AssetCheckResult,
    AssetCheckSpec,
    AssetExecutionContext,
    AssetKey,
    AssetsDefinition,
    Backoff,
    DagsterInstance,
    DataVersion,
    Failure,
    MaterializeResult,
    OpExecutionContext,
    PartitionsDefinition,
    PipesSubprocessClient,
    RetryPolicy,
    asset,
)
from dagster._core.errors import DagsterPipesExecutionError
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus

from assets import checks, graph
from assets.checks import MATCHES_DVC
from assets.facts import Facts, facts_of
from assets.graph import LockedItem
from assets.partitions import WORKSPACE, item_of
from assets.runner import REASON_FILE
from mlembed_core import lifeline
from mlembed_core.errors import MachineError, RegistryError
from mlembed_core.predicates import PREDICATES, Verdict

OWNER = "team:mlembed"
TRAINING_POOL = "gpu"  # trainings stay apart: one device, or all cores, belong to one at a time
FORCE_TAG = "mlembed/force"  # on a run: run the stage although DVC sees no change, for what it reads lies where DVC does not look
ENTRY_TAG = "mlembed/lock_entry"  # on a materialisation: which record of dvc.lock it tells of
RETRYABLE = (MachineError.exit_code, RegistryError.exit_code)
RETRIES = RetryPolicy(max_retries=2, delay=10, backoff=Backoff.EXPONENTIAL)
STAGES = graph.stages(WORKSPACE)


@dataclass(frozen=True)
class StageAsset:
    """An asset and the stage behind it.

    Attributes:
        name: the asset's key, a noun; ``stage`` is DVC's verb.
        deps: the assets upstream.
    """

    name: str
    stage: str
    deps: tuple["StageAsset", ...]
    partitions: PartitionsDefinition | None
    definition: AssetsDefinition

    def upstream(self) -> dict[str, "StageAsset"]:
        """All assets that it is made from, by name, the first first."""
        found: dict[str, StageAsset] = {}
        for dep in self.deps:
            found |= dep.upstream() | {dep.name: dep}
        return found

    def items(self) -> dict[str | None, str]:
        """Partition key (None where there are none) → DVC's item."""
        keys = [None] if self.partitions is None else self.partitions.get_partition_keys()
        return {key: item_of(self.stage, self.partitions, key) for key in keys}

    def recorded(self) -> dict[str | None, LockedItem]:
        """Partition key → what is on record, for those that were ever run."""
        lock = graph.read_lock(WORKSPACE)
        return {key: lock[item] for key, item in self.items().items() if item in lock}

    def reasons(self, status: Mapping[str, list[str]]) -> dict[str | None, list[str]]:
        """Partition key → why it is not up to date, nothing where it is.

        Args:
            status: of the whole workspace (``graph.status``).
        """
        return {key: status.get(item, []) for key, item in self.items().items()}

    def code_version(self) -> str:
        """Of the code as it is on disk now; the definition's is of when the code location was loaded."""
        return graph.code_version(WORKSPACE, STAGES[self.stage])

    def facts(self, key: str | None, locked: LockedItem) -> Facts:
        """Metadata for the page of one partition."""
        return facts_of(WORKSPACE, self.stage, self.items()[key], locked)


def stage_asset(
    name: str,
    *,
    stage: str,
    group: str,
    description: str,
    kinds: set[str],
    deps: Sequence[StageAsset] = (),
    partitions: PartitionsDefinition | None = None,
    expensive: bool = False,
    reaches_out: bool = False,
) -> StageAsset:
    """The asset ``name`` that runs ``stage``; its checks are those of ``checks.PREDICATES``, and ``matches_dvc``.

    Args:
        expensive: runs one at a time, and not at all while a blocking check upstream stands failed.
        reaches_out: to a server that may be down for a moment, so that trying again can help.
    """
    specs = [
        check_spec(name, item.name, item.description, blocking=item.blocking, partitions=partitions) for item in PREDICATES.get(stage, ())
    ]
    specs.append(check_spec(name, MATCHES_DVC, "`dvc status` calls it up to date.", partitions=partitions))

    @asset(
        name=name,
        deps=[dep.name for dep in deps],
        group_name=group,
        description=description,
        kinds={"dvc", *kinds},
        owners=[OWNER],
        code_version=graph.code_version(WORKSPACE, STAGES[stage]),
        partitions_def=partitions,
        check_specs=specs,
        pool=TRAINING_POOL if expensive else None,
        retry_policy=RETRIES if reaches_out else None,
        tags={"mlembed/stage": stage},
    )
    def run_stage(context: AssetExecutionContext, pipes: PipesSubprocessClient) -> Iterator[MaterializeResult[Any]]:
        key = context.partition_key if context.has_partition_key else None
        if expensive:
            refuse_on_failed_checks(context.instance, this)
        force = ["--force"] if context.run.tags.get(FORCE_TAG) else []
        run_item(context, pipes, ["repro", *force, "--single-item", this.items()[key]])
        yield result_of(this, key)

    this = StageAsset(name, stage, tuple(deps), partitions, run_stage)
    return this


def check_spec(
    asset_name: str, name: str, description: str, *, blocking: bool = False, partitions: PartitionsDefinition | None
) -> AssetCheckSpec:
    with warnings.catch_warnings():
        # Partitions of checks are in preview in this version. Without them one partition's pass would hide another's failure.
        warnings.simplefilter("ignore")
        return AssetCheckSpec(name, asset=asset_name, description=description, blocking=blocking, partitions_def=partitions)


def run_item(context: AssetExecutionContext | OpExecutionContext, pipes: PipesSubprocessClient, command: Sequence[str]) -> None:
    """Run a command of DVC's, or one of ours after ``--``, through ``assets.runner`` under Dagster's Pipes.

    Raises:
        Failure: it ended with another status than 0. Only where the machine or a server was the reason can trying again help.
    """
    status, reason = 1, ""
    with tempfile.TemporaryDirectory(prefix="mlembed-run-") as scratch:
        told = Path(scratch) / "reason"
        try:
            pipes.run(
                context=context,
                command=[sys.executable, "-m", "assets.runner", *command],
                cwd=str(WORKSPACE.root),
                env=lifeline.environment({REASON_FILE: str(told)}),  # Pipes adds it to this process's own
            )
            return
        except DagsterPipesExecutionError as error:
            if found := re.search(r"code (\d+)$", str(error)):
                status = int(found.group(1))
        if told.is_file():
            reason = told.read_text(encoding="utf-8")
    raise Failure(
        f"{reason or 'the reason stands in the log above'}\n"
        f"(`{' '.join(part for part in command if part != '--')}` ended with status {status}. "
        "Earlier results are untouched; `dvc checkout` puts back what DVC had cleared.)",
        metadata={"status": status, "command": " ".join(command)},
        allow_retries=status in RETRYABLE,
    )


def result_of(this: StageAsset, key: str | None) -> MaterializeResult[Any]:
    """What there is to tell of an item that has just been run.

    Raises:
        Failure: nothing was recorded, so there is nothing to vouch for.
    """
    locked = this.recorded().get(key)
    item = this.items()[key]
    if locked is None:
        raise Failure(f"there is no record of {item} after its run; look at `dvc status {item}`")
    reasons = this.reasons(graph.status(WORKSPACE, [item]))[key]
    verdicts = ask(this.stage, locked) | {MATCHES_DVC: checks.verdict_of_status(reasons)}
    return MaterializeResult(
        data_version=DataVersion(locked.md5),
        metadata=this.facts(key, locked),
        tags={ENTRY_TAG: locked.entry},
        check_results=[
            AssetCheckResult(
                check_name=name, passed=said.passed, severity=checks.severity(this.stage, name), metadata=checks.metadata(said)
            )
            for name, said in verdicts.items()
        ],
    )


def ask(stage: str, locked: LockedItem) -> dict[str, Verdict]:
    """Check name → verdict, for the out of one item."""
    out = WORKSPACE.root / locked.out
    return {predicate.name: predicate.ask(out) for predicate in PREDICATES.get(stage, ())}


def refuse_on_failed_checks(instance: DagsterInstance, this: StageAsset) -> None:
    """Stop where a blocking check of an asset upstream stands failed. Within one run Dagster does this; runs of other partitions
    know nothing of each other. A check that was planned and never answered (its run failed or was cancelled) stands against it too.

    Raises:
        Failure: naming the checks and their partitions.
    """
    failed = []
    for name, above in this.upstream().items():
        blocking = [AssetCheckKey(AssetKey(name), predicate.name) for predicate in PREDICATES.get(above.stage, ()) if predicate.blocking]
        items = above.items()  # a source that is no longer in the parameters stands against nobody
        failed += [
            f"{name}{f'[{info.partition_key}]' if info.partition_key else ''}: {info.check_key.name}"
            for info in (instance.event_log_storage.get_asset_check_partition_info(blocking) if blocking else ())
            if info.partition_key in items and info.latest_execution_status is not AssetCheckExecutionRecordStatus.SUCCEEDED
        ]
    if failed:
        raise Failure(
            f"{this.name} does not start, since checks of what it is made from have not passed: {'; '.join(failed)}. "
            "Mend it and materialise it again: that asks again.",
            allow_retries=False,
        )
