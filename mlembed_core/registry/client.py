"""The connection to MLflow's registry, and the tags that a registered version carries.

Here an MLflow failure becomes a :class:`RegistryError` that says which server or database was meant.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import RegistryError
from mlembed_core.train.tracking import connect, tracking_uri, without_secrets

WEIGHTS_HASH_TAG = "mlembed.weights_hash"
REPORT_HASH_TAG = "mlembed.report_hash"
CARD_HASH_TAG = "mlembed.card_hash"
REBUILT_TAG = "mlembed.rebuilt_from_outs"
AXES_TAG = "mlembed.axes"
INPUTS_TAG = "mlembed.inputs"
SCORES_TAG = "mlembed.scores"
DVC_MD5_TAG = "mlembed.dvc_md5"
MODEL_ARTIFACT = "model"  # the folder of a run's artifacts that holds the checkpoint


def candidate_alias(setting: str) -> str:
    """The alias of a setting's newest version; ``champion`` is given by the gate alone."""
    return f"candidate-{setting}"


@dataclass(frozen=True)
class Registry:
    """An open connection: MLflow's client, and the address it talks to."""

    client: Any
    uri: str

    @property
    def place(self) -> str:
        """The address as it may be shown."""
        return without_secrets(self.uri)


@contextmanager
def open_registry(workspace: Workspace | None) -> Iterator[Registry]:
    """Connect to the workspace's registry, or to ``MLFLOW_TRACKING_URI`` where that is set.

    Raises:
        RegistryError: MLflow is not installed, there is no address, or MLflow failed inside the body.
    """
    if workspace is not None:
        uri = tracking_uri(workspace)
    elif not (uri := os.environ.get("MLFLOW_TRACKING_URI", "")):
        raise RegistryError(
            "no registry to ask: this folder lies in no clone of the project, and MLFLOW_TRACKING_URI is not set. "
            "Run it inside a clone, or set MLFLOW_TRACKING_URI to your server (http://…) or database (sqlite:////path/mlflow.db)."
        )
    # MLflow's own default waits four minutes for a server that is down; uploads keep its long timeout.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    with _translated(uri):  # connecting opens the database
        yield Registry(connect(uri), uri)


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:
        raise RegistryError("MLflow is not installed; `pip install 'mlembed[mlflow]'` (or `make setup`) brings it") from None

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        raise RegistryError(
            without_secrets(f"MLflow at {uri} failed: {_first_line(error)}\n")
            + "Check that the server runs and that the address (MLFLOW_TRACKING_URI) is right; `mlembed doctor` looks at both. "
            "Then run the command again; it goes on where it stopped."
        ) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def registering(workspace: Workspace) -> Iterator[None]:
    """Let one process of this workspace register at a time, so that two cannot both make the version that is missing."""
    workspace.work.mkdir(parents=True, exist_ok=True)
    with (workspace.work / "registry.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
