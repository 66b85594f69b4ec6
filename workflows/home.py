"""Dagster's home in a workspace: ``.dagster/``, with the configuration that is under version control."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mlembed_core.artifacts import Workspace

HOME_VARIABLE = "DAGSTER_HOME"
# What the local servers and everything they start have in common. A sensor's pass over hundreds of items takes longer than the
# minute that Dagster gives it by default.
QUIET = {
    "DAGSTER_DISABLE_TELEMETRY": "true",
    "DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS": "300",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven more processes, for evaluations of language models
}


def prepare_home(workspace: Workspace) -> Path:
    """Make the folder, put ``configs/dagster.yaml`` in it, and let this process and its children use it.

    ``DAGSTER_HOME`` from the environment is taken as it is: a team's instance has a configuration of its own.
    """
    os.environ.update({name: value for name, value in QUIET.items() if name not in os.environ})
    home = workspace.root / ".dagster"
    given = os.environ.get(HOME_VARIABLE)
    if given and Path(given).resolve() != home.resolve():
        return Path(given)
    home.mkdir(exist_ok=True)
    shutil.copyfile(workspace.root / "configs" / "dagster.yaml", home / "dagster.yaml")
    os.environ[HOME_VARIABLE] = str(home)
    return home
