"""Where every file of a workspace lies, and how a stage writes its out: whole or not at all, with a manifest.

A *workspace* is a checkout: the folder that holds ``configs/params.yaml`` and ``dvc.yaml``. A stage builds its out in a temporary
folder under ``.work/`` and moves it into place when it is complete, so that a crash never leaves half an out and never harms the
one from before. Each out directory carries a ``manifest.json`` that lists its files with their hashes and the hashes of its inputs'
manifests; manifests thus form a Merkle chain from the report back to the raw text. Nothing in a manifest depends on the run: no
times, host names or absolute paths.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlembed_core.errors import ArtifactError, MachineError

SCHEMA_VERSION = 1  # of the manifest itself; formats inside an out carry their own
MANIFEST = "manifest.json"
CONTROLS = "controls"  # the folder of scores beside those of the settings


@dataclass(frozen=True)
class Workspace:
    """The paths of one checkout. The only place where a folder's name is written down."""

    root: Path

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """The workspace around ``start`` (default: the current folder), looked for upwards.

        Raises:
            ArtifactError: no parent folder holds ``configs/params.yaml``.
        """
        here = (start or Path.cwd()).resolve()
        for folder in (here, *here.parents):
            if (folder / "configs" / "params.yaml").is_file():
                return cls(folder)
        raise ArtifactError(
            f"no workspace here: neither {here} nor a folder above it holds configs/params.yaml. "
            "Run mlembed inside a clone of the project, or write one with `mlembed preset embedded`."
        )

    @property
    def params_file(self) -> Path:
        return self.root / "configs" / "params.yaml"

    @property
    def sources(self) -> Path:
        return self.root / "data" / "sources"

    @property
    def tokenizer(self) -> Path:
        return self.root / "data" / "tokenizer"

    @property
    def corpora(self) -> Path:
        return self.root / "data" / "corpus"

    @property
    def backbone(self) -> Path:
        return self.root / "data" / "backbone"

    @property
    def cache(self) -> Path:
        return self.root / "data" / "cache"

    @property
    def card(self) -> Path:
        return self.root / "data" / "card"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def scores(self) -> Path:
        return self.root / "scores"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def work(self) -> Path:
        """Scratch and resume state. Git, DVC and every reader of outs ignore it."""
        return self.root / ".work"

    @property
    def evaluations(self) -> Path:
        """Finished tasks of evaluations, by fingerprint; and what `mlembed evaluate --model` wrote."""
        return self.work / "evaluate"

    def measured(self, item: str) -> Path:
        """What was measured when an item (``train@3d``) was last run here: times and rates have no place in outs."""
        return self.work / "measured" / f"{item}.json"

    def registration(self, setting: str) -> Path:
        """Where the last registration of a setting from this clone led: version, run, and the bytes that it is of."""
        return self.work / "registered" / f"{setting}.json"


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in constant memory."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with one spelling per value: sorted keys, no spaces. What gets hashed goes through here."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_of(value: Any) -> str:
    """Hex SHA-256 of a JSON-able value, equal on every machine."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Readable JSON with sorted keys and a final newline; the same value always gives the same bytes."""
    path.write_text(json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        ArtifactError: the file is missing or is not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist. `dvc repro` makes it, `dvc pull` fetches it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not valid JSON ({error}). Delete its folder and run `dvc repro`.") from None


def write_manifest(
    out: Path,
    *,
    stage: str,
    params: Mapping[str, Any],
    inputs: Mapping[str, Path] | None = None,
    counts: Mapping[str, int] | None = None,
    details: Mapping[str, Any] | None = None,
) -> None:
    """Close an out directory: list its files with size and SHA-256, and whatever it was made from.

    Args:
        out: the directory, complete but for the manifest.
        stage: e.g. ``"source@cldr_bitext"``.
        params: the parameters that shaped the out (JSON-able); stored, and hashed as ``params_hash``.
        inputs: name → directory of an earlier stage's out; its manifest's hash is recorded.
        counts: what a person wants to know first (rows, documents, languages, drops).
        details: anything else about the content (provenance, licences, shapes).
    """
    files = {
        path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_json(
        out / MANIFEST,
        {
            "stage": stage,
            "schema_version": SCHEMA_VERSION,
            "params": dict(params),
            "params_hash": hash_of(dict(params)),
            "inputs": {name: manifest_hash(path) for name, path in (inputs or {}).items()},
            "counts": dict(counts or {}),
            "details": dict(details or {}),
            "files": files,
        },
    )


def read_manifest(out: Path, *, made_by: str | None = None) -> dict[str, Any]:
    """The manifest of an out directory.

    Args:
        made_by: the command that makes the out, for the error message.

    Raises:
        ArtifactError: there is no such out, or its manifest is damaged or of another schema version.
    """
    if not (out / MANIFEST).is_file():
        how = f"`{made_by}` makes it" if made_by else "`dvc repro` makes it"
        raise ArtifactError(f"{out} is missing or incomplete (no {MANIFEST}). {how}; `dvc pull` fetches it from a remote.")
    manifest: dict[str, Any] = read_json(out / MANIFEST)
    version = manifest.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{out / MANIFEST} has schema version {version!r}, this code reads {SCHEMA_VERSION}. "
            "Make it again with `dvc repro`, or check out the commit that wrote it."
        )
    return manifest


def manifest_hash(out: Path) -> str:
    """The identity of an out: SHA-256 of its manifest, which in turn holds every file's hash and every input's identity."""
    read_manifest(out)
    return sha256_file(out / MANIFEST)


def verify_files(out: Path) -> None:
    """Recompute sizes and hashes of an out's files.

    Raises:
        ArtifactError: naming the first file that is missing, truncated or changed, or that would lie outside of the out.
    """
    for name, recorded in read_manifest(out)["files"].items():
        path = out / name
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ArtifactError(f"{out / MANIFEST} lists {name!r}, which lies outside of it: no stage writes that. Do not use this folder.")
        if not path.is_file():
            raise ArtifactError(f"{path} is missing, though {out / MANIFEST} lists it. Run `dvc checkout {out}`.")
        size = path.stat().st_size
        if size != recorded["bytes"]:
            raise ArtifactError(f"{path} has {size} bytes, its manifest says {recorded['bytes']}. Run `dvc checkout {out}`.")
        if sha256_file(path) != recorded["sha256"]:
            raise ArtifactError(f"{path} was changed after it was written (other SHA-256). Run `dvc checkout {out}`.")


@contextmanager
def writing(workspace: Workspace, target: Path) -> Iterator[Path]:
    """Give the body a fresh folder (or file path) to write, and move it to ``target`` when the body succeeds.

    A failing body leaves ``target`` as it was. ``target`` may be a directory or a file: whichever the body creates at the
    path that it is given; a directory is created beforehand unless ``target`` has a suffix.

    Raises:
        MachineError: the disk is full; the message says where and how much is free.
    """
    staging = workspace.work / "tmp"
    staging.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=staging))
    draft = scratch / target.name
    if not target.suffix:
        draft.mkdir()
    try:
        yield draft
        _fsync_tree(draft)
        target.parent.mkdir(parents=True, exist_ok=True)
        _replace(draft, target, scratch / "previous")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(workspace.root).free / 2**20
            raise MachineError(
                f"no space left on the disk while writing {target} ({free:.0f} MiB free in {workspace.root}). "
                "Earlier results are untouched. Free some space (`dvc gc -w` drops unused versions) and run it again."
            ) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(draft: Path, target: Path, previous: Path) -> None:
    """Put ``draft`` where ``target`` is. A directory cannot be renamed over a full one, so the old one steps aside first."""
    if target.is_dir():
        os.replace(target, previous)
    os.replace(draft, target)


def _fsync_tree(path: Path) -> None:
    for file in [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]:
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
