"""Jobs: a selection of assets brought up to date by one action.

Assets with different partitions cannot share a run of Dagster's own kind, and a backfill over them waits for the daemon's next tick
at each level of the graph. So a job here is one run that gives DVC the whole selection: DVC knows what is out of date and in
which order it goes. What came out is reported in the same run, asset by asset and partition by partition
(docs/decisions/0004).
"""

from collections.abc import Sequence

from dagster import AssetSelection, Failure, JobDefinition, OpExecutionContext, PipesSubprocessClient, job, op

from assets import graph
from assets.importing import import_outs, unfinished_items
from assets.partitions import WORKSPACE
from assets.registered_model import registered_model
from assets.stages import TRAINING_POOL, refuse_on_failed_checks, run_item
from assets.trained_model import trained_model
from workflows.pipeline import PIPELINE

EVERYTHING = AssetSelection.all()
DATA = AssetSelection.groups("data")
TRAIN_AND_SCORE = AssetSelection.groups("model", "evaluation")
GRAPH = [this.definition for this in PIPELINE]


def bring_up_to_date(name: str, selection: AssetSelection, description: str) -> JobDefinition:
    """A job of one step that brings the selected assets, and what they stand on, up to date.

    What a training stands on comes first and is asked its checks; while one that blocks stands failed, no training starts.
    """
    keys = {key.to_user_string() for key in selection.resolve(GRAPH)}
    chosen = [this for this in PIPELINE if this.name in keys]
    stages = [this.stage for this in chosen if this.stage]
    trains = trained_model in chosen

    @op(name=f"{name}_by_dvc", description=description, pool=TRAINING_POOL if trains else None)
    def run_dvc(context: OpExecutionContext, pipes: PipesSubprocessClient) -> None:
        if trains:
            _repro(context, pipes, [above.stage for above in trained_model.upstream().values()])
            refuse_on_failed_checks(context.instance, trained_model)
        _repro(context, pipes, stages)
        if registered_model in chosen:
            refuse_on_failed_checks(context.instance, registered_model)
            run_item(context, pipes, ["--", "mlembed", "register", "--all"])
            _report(context)

    @job(name=name, description=description, tags={"mlembed/stages": " ".join(stages)})
    def bring() -> None:
        run_dvc()

    return bring


def _repro(context: OpExecutionContext, pipes: PipesSubprocessClient, stages: Sequence[str]) -> None:
    try:
        run_item(context, pipes, ["repro", *stages])
    except Failure:
        _report(context)  # what was done before it was done
        raise
    _report(context)


def _report(context: OpExecutionContext) -> None:
    busy = unfinished_items(context.instance)
    done = import_outs(context.instance, PIPELINE, status=graph.status(WORKSPACE), report=context.log_event, busy=busy, ask_checks=True)
    context.log.info(f"reported {done}")


JOBS: Sequence[JobDefinition] = (
    bring_up_to_date("everything", EVERYTHING, "Bring the whole pipeline up to date, from raw sources to registered models."),
    bring_up_to_date("data", DATA, "Bring the data up to date, from raw sources to the training cache."),
    bring_up_to_date(
        "train_and_score", TRAIN_AND_SCORE, "Train every setting, score every submodel and compare; brings the data up to date first."
    ),
)
