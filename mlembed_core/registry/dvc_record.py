"""What DVC has on record of an out: the md5 in a ``dvc.lock``, and the one that it gives a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import yaml

from mlembed_core.artifacts import Workspace


def recorded_outs(lock: str) -> dict[str, str]:
    """Path of an out → its md5, from the text of a ``dvc.lock``. The base loader in C: a lock has thousands of lines."""
    stages = (yaml.load(lock, Loader=yaml.CBaseLoader) or {}).get("stages") or {}  # noqa: S506  # builds nothing but text
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage.get("outs", ()) if "md5" in out}


def recorded_md5(workspace: Workspace, setting: str) -> str | None:
    """The md5 of ``models/SETTING`` in ``dvc.lock``; None where that is missing or describes other bytes than those on disk."""
    lock = workspace.root / "dvc.lock"
    if not lock.is_file():
        return None
    recorded = recorded_outs(lock.read_text(encoding="utf-8")).get(f"models/{setting}")
    return recorded if recorded is not None and recorded == dvc_directory_md5(workspace.models / setting) else None


def dvc_directory_md5(folder: Path) -> str:
    """The md5 that DVC gives a directory: of the JSON list of its files' md5s, by relative path (dvc-data, ``Tree``)."""
    entries = []
    for path in sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.relative_to(folder).parts):
        with path.open("rb") as handle:
            digest = hashlib.file_digest(handle, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        entries.append({"md5": digest, "relpath": path.relative_to(folder).as_posix()})
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"
