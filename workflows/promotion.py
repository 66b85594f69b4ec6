"""The registry's acts as jobs, with typed configuration: promote, roll back, score the champion again.

Each runs the command that a person would type, so that there is one gate; what a refusal says is the run's failure message.
"""

from typing import Any

from dagster import (
    AssetObservation,
    Config,
    DefaultScheduleStatus,
    Failure,
    JobDefinition,
    MetadataValue,
    OpExecutionContext,
    PipesSubprocessClient,
    RunConfig,
    ScheduleDefinition,
    job,
    op,
)
from pydantic import Field

from assets.partitions import PARAMS
from assets.registered_model import registered_model
from assets.stages import TRAINING_POOL, run_item

REFUSED = 11  # what `mlembed promote` ends with where the gate says no
CANDIDATE_TAG = "mlembed/setting"


class PromoteConfig(Config):
    """What `mlembed promote` is given."""

    version: str = Field("", description="number, alias or setting; empty: the best candidate")
    why: str = Field("", description="kept in the record")
    only_ask: bool = Field(False, description="put it through the gate and move nothing: where it passes, it asks for promotion")


class RollbackConfig(Config):
    """What `mlembed rollback` is given."""

    to: str = Field("", description="an earlier champion's version; empty: the one before the present one")
    why: str = Field("", description="kept in the record")


class RescoreConfig(Config):
    """What `mlembed rescore` is given."""

    version: str = Field("champion", description="number, alias or setting")


@op(description="Make a version the champion, if it passes the gate.")
def promote_through_the_gate(context: OpExecutionContext, config: PromoteConfig, pipes: PipesSubprocessClient) -> None:
    options = ["--dry-run"] if config.only_ask else _given("--why", config.why)
    says = "is the champion"
    try:
        run_item(context, pipes, ["--", "mlembed", "promote", *options, *_given("--", config.version)])
        if config.only_ask:
            says = f"passes the gate and asks for promotion: run the job `promote` with it, or `mlembed promote {config.version}`"
    except Failure as refusal:
        if not config.only_ask or refusal.metadata["status"].value != REFUSED:
            raise
        says = f"does not pass the gate:\n{refusal.description}"  # an answer, not a failure
    context.log.info(f"version {config.version} {says}")
    if setting := context.run.tags.get(CANDIDATE_TAG):
        metadata: dict[str, Any] = {"version": config.version, "gate": MetadataValue.md(f"version {config.version} {says}")}
        context.log_event(AssetObservation(registered_model.name, partition=setting, metadata=metadata))


@op(description="Give the alias champion back to an earlier champion.")
def give_the_alias_back(context: OpExecutionContext, config: RollbackConfig, pipes: PipesSubprocessClient) -> None:
    run_item(context, pipes, ["--", "mlembed", "rollback", *_given("--to", config.to), *_given("--why", config.why)])


@op(description="Score a registered version on the gate's suites as they are today.", pool=TRAINING_POOL)
def score_again(context: OpExecutionContext, config: RescoreConfig, pipes: PipesSubprocessClient) -> None:
    run_item(context, pipes, ["--", "mlembed", "rescore", config.version])


def _given(option: str, value: str) -> list[str]:
    return [part for part in (option, value) if part] if value else []


@job(description="Make a version the champion, if it passes the gate; a refusal lists every reason.")
def promote() -> None:
    promote_through_the_gate()


@job(description="Give the alias champion back to an earlier champion.")
def rollback() -> None:
    give_the_alias_back()


@job(description="Score the champion on today's suites, so that candidates can be compared with it.")
def rescore() -> None:
    score_again()


ACTS: list[JobDefinition] = [promote, rollback, rescore]

rescoring = ScheduleDefinition(
    name="rescore_the_champion",
    job=rescore,
    cron_schedule="0 3 * * 1",
    default_status=DefaultScheduleStatus.STOPPED,
    run_config=RunConfig(ops={"score_again": RescoreConfig(version="champion")}),
    description="Monday at three: the champion's scores on the suites as they are now. Off until somebody turns it on.",
)


def asking(version: str, *, only_ask: bool) -> RunConfig:
    """The configuration of the job `promote` for a candidate."""
    why = "" if only_ask else f"a new candidate of {PARAMS.name}"
    return RunConfig(ops={"promote_through_the_gate": PromoteConfig(version=version, why=why, only_ask=only_ask)})
