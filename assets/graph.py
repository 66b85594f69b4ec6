"""What DVC has on file: the stages of ``dvc.yaml``, what ``dvc.lock`` recorded of each item, and what ``dvc status`` says changed.

An *item* is one run of a stage, named as DVC names it: ``cache``, ``train@3d``, ``evaluate@3d-embedded``. The executable is called
and the files are read; nobody imports ``dvc``, which lives in an environment of its own (docs/decisions/0002).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from mlembed_core.artifacts import Workspace, hash_of, sha256_file
from mlembed_core.config.load import read_yaml
from mlembed_core.errors import ArtifactError, MachineError

CODE = "mlembed_core/"  # the deps of a stage that are code
METRICS = ".json"
HASH_DIGITS = 16  # of hashes that only have to differ


@dataclass(frozen=True)
class LockedItem:
    """What ``dvc.lock`` holds of one item.

    Attributes:
        md5: of its out, a folder's ending in ``.dir``; where it has several, of the one that is no metrics file.
        size: bytes of that out.
        out: its path, relative to the workspace.
        entry: hash of the whole record: command, parameters, deps and outs.
    """

    md5: str
    size: int
    out: str
    entry: str


def stages(workspace: Workspace) -> dict[str, dict[str, Any]]:
    """Stage name → its definition in ``dvc.yaml`` (of a templated stage, its body)."""
    found = read_yaml(workspace.root / "dvc.yaml")["stages"]
    return {name: stage.get("do", stage) for name, stage in found.items()}


def code_version(workspace: Workspace, stage: Mapping[str, Any]) -> str:
    """A hash of the stage's command and of the bytes of its code, the files that DVC watches too."""
    return version_of(workspace, stage["cmd"], [str(dep) for dep in stage["deps"] if str(dep).startswith(CODE)])


def version_of(workspace: Workspace, command: str, files: Iterable[str]) -> str:
    """A hash of a command and of the bytes of files, by their paths from the root."""
    return hash_of([command, {name: sha256_file(workspace.root / name) for name in files}])[:HASH_DIGITS]


def read_lock(workspace: Workspace) -> dict[str, LockedItem]:
    """Item → what ``dvc.lock`` holds of it; empty where nothing was run yet.

    Raises:
        ArtifactError: the file is no lock of DVC's.
    """
    path = workspace.root / "dvc.lock"
    try:
        stat = path.stat()
    except FileNotFoundError:
        return {}
    return dict(_parse_lock(path, stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=2)
def _parse_lock(path: Path, _mtime_ns: int, _size: int) -> Mapping[str, LockedItem]:
    try:
        # The base loader in C: fast, and an md5 that looks like a number stays the text that it is.
        items = yaml.load(path.read_bytes(), Loader=yaml.CBaseLoader)["stages"]  # noqa: S506  # the base loader builds nothing but text
        return {name: _locked(entry) for name, entry in items.items() if entry.get("outs")}
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path} is not a lock file of DVC's ({error!r}). Bring it back with `git checkout dvc.lock`.") from None


def _locked(entry: Mapping[str, Any]) -> LockedItem:
    # DVC sorts outs by path, so a metrics file may stand first.
    out = min(entry["outs"], key=lambda out: out["path"].endswith(METRICS))
    return LockedItem(md5=out["md5"], size=int(out["size"]), out=out["path"], entry=hash_of(entry)[:HASH_DIGITS])


def dvc_environment() -> dict[str, str]:
    """The environment to call ``dvc`` in: this interpreter's ``bin`` first, so that stages run with it even where no shell activated it."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def dvc_executable() -> str:
    """Raises MachineError where there is none."""
    found = shutil.which("dvc", path=dvc_environment()["PATH"])
    if found is None:
        raise MachineError("dvc is not on PATH; `make setup` installs it in an environment of its own and links it into .venv/bin")
    return found


def status(workspace: Workspace, items: Sequence[str] = ()) -> dict[str, list[str]]:
    """What DVC calls changed: item → reasons, of ``items`` or of all. An item that is not in the answer is up to date.

    Raises:
        MachineError: DVC is missing, or refused (its own words follow).
    """
    done = subprocess.run(
        [dvc_executable(), "--wait-for-lock", "status", "--json", *items],
        cwd=workspace.root,
        env=dvc_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise MachineError(f"`dvc status` ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
    return {item: [reason for change in changes for reason in _reasons(change)] for item, changes in json.loads(done.stdout).items()}


def _reasons(change: Any) -> list[str]:
    """``{"changed deps": {"data/cache": "modified"}}`` → ``["changed deps: data/cache (modified)"]``; parameters nest one level more."""
    if not isinstance(change, dict):
        return [str(change)]
    lines = []
    for kind, entries in change.items():
        for path, state in entries.items():
            lines += (
                [f"{kind}: {path} {key} ({what})" for key, what in state.items()]
                if isinstance(state, dict)
                else [f"{kind}: {path} ({state})"]
            )
    return lines
