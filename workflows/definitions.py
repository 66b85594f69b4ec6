"""The one ``defs`` that Dagster loads: ``dagster … -m workflows.definitions``."""

from __future__ import annotations

from dagster import Definitions, PipesSubprocessClient, in_process_executor

from workflows.jobs import JOBS
from workflows.pipeline import PIPELINE
from workflows.promotion import ACTS, rescoring
from workflows.sensors import SENSORS

# Ten seconds are what a person waits for a cancelled run; the runner has ended its tree by then.
CANCEL_PATIENCE_S = 10.0

defs = Definitions(
    assets=[this.definition for this in PIPELINE],
    jobs=[*JOBS, *ACTS],
    sensors=SENSORS,
    schedules=[rescoring],
    # A run is one partition of one asset, or DVC with the whole graph: a process for each step would only cost its start.
    executor=in_process_executor,
    resources={"pipes": PipesSubprocessClient(termination_timeout_seconds=CANCEL_PATIENCE_S)},
)
