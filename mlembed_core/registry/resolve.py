"""From a reference to a folder: a checkpoint folder, ``models:/NAME@alias`` and ``models:/NAME/VERSION`` of the registry, or
``ORG/NAME@COMMIT`` of the hub.

A registered version is downloaded once, checked against its manifest and kept; its folder is named by version and weights, so that an
alias that moves is followed and a version that was made anew is not mistaken for the old one.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import Workspace, hash_of, verify_files
from mlembed_core.errors import ArtifactError, RegistryError
from mlembed_core.hub import fetch
from mlembed_core.registry.client import WEIGHTS_HASH_TAG, Registry, open_registry
from mlembed_core.registry.versions import known

SCHEME = "models:/"
HUB = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<revision>[0-9a-f]{40})")  # pinned: a branch would be another model tomorrow
REFERENCE = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[0-9]+))")


def resolve(ref: str | Path) -> Path:
    """The folder that ``ref`` means; downloads a registered version where it is not there yet.

    Raises:
        ArtifactError: there is no such folder.
        ConfigError: the hub has no such repository or commit.
        MachineError: the hub cannot be reached.
        RegistryError: no such model, alias or version, or no MLflow to ask.
    """
    if isinstance(ref, str) and ref.startswith("models:"):
        return _registered_folder(ref)
    folder = Path(ref)
    match = HUB.fullmatch(str(ref))
    if match is not None and not folder.is_dir():
        return fetch(match["repo"], match["revision"], path=str(ref))
    if not folder.is_dir():
        raise ArtifactError(
            f"there is no model at {folder}{_others()}. Give a checkpoint folder, a registered version ({SCHEME}NAME@alias) or a hub "
            "repository at a full commit (ORG/NAME@COMMIT)."
        )
    return folder


def cache_folder() -> Path:
    """Where downloads and vectors are kept: ``.work/`` of the workspace, outside of one the user's cache folder."""
    workspace = _workspace()
    if workspace is not None:
        return workspace.work
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlembed"


def _workspace() -> Workspace | None:
    try:
        return Workspace.find()
    except ArtifactError:
        return None


def _others() -> str:
    """``; there are models/3d, …`` for a message, or what makes them."""
    workspace = _workspace()
    if workspace is None:
        return " (and this folder lies in no clone of the project)"
    there = sorted(path.parent for path in workspace.models.glob("*/config.json"))
    if not there:
        return f" ({workspace.models} is empty: `dvc repro` trains, `dvc pull` fetches)"
    return f" (there are: {', '.join(os.path.relpath(path) for path in there)})"


def _registered_folder(ref: str) -> Path:
    match = REFERENCE.fullmatch(ref)
    if match is None:
        raise RegistryError(f"{ref!r} is no reference to a registered model; write {SCHEME}NAME@alias or {SCHEME}NAME/VERSION")
    with open_registry(_workspace()) as registry:
        version = _find_version(registry, match["name"], alias=match["alias"], number=match["version"])
        identity = version.tags.get(WEIGHTS_HASH_TAG) or hash_of([version.source, version.creation_timestamp])
        if not identity.isalnum():  # it becomes a folder's name, and anybody who can write tags chose it
            identity = hash_of(identity)
        folder = cache_folder() / "registry" / f"{version.name}-v{version.version}-{identity[:12]}"
        if not folder.is_dir():
            _download(registry, version, folder)
    return folder


def _find_version(registry: Registry, name: str, *, alias: str | None, number: str | None) -> Any:
    aliases, versions = known(registry, name)
    if alias is not None:
        number = aliases.get(alias)
    if number is None or number not in versions:
        wanted = f"alias {alias!r}" if alias is not None else f"version {number}"
        there = ", ".join(f"{each} → {version}" for each, version in sorted(aliases.items())) or "none"
        raise RegistryError(
            f"model {name!r} at {registry.place} has no {wanted} (aliases: {there}; versions: {', '.join(versions) or 'none'}). "
            "`mlembed register SETTING` gives candidate-SETTING."
        )
    return versions[number]


def _download(registry: Registry, version: Any, folder: Path) -> None:
    """Fetch a version's checkpoint into ``folder``: whole and unchanged, or not at all."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=folder.parent))
    try:
        got = Path(
            download_artifacts(artifact_uri=version.source, dst_path=str(scratch), tracking_uri=registry.uri, registry_uri=registry.uri)
        )
        verify_files(got)
        got.replace(folder)
    except (MlflowException, OSError, ArtifactError) as error:
        if folder.is_dir():  # another process fetched it meanwhile
            return
        raise RegistryError(
            f"{version.name} version {version.version} cannot be fetched from {registry.place} ({version.source}): {error}\n"
            "Its artifacts are gone or damaged (was mlartifacts/ moved or emptied?). Where the setting's model folder is, "
            "`mlembed register SETTING` uploads what is gone; or take another version."
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
