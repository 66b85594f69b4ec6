"""``mlembed lineage``: from a registered version back to the raw text, by hashes.

A version's tags name the manifest of its model; each manifest names those of its inputs, so that one hash stands for all that lies
behind it. Manifests are looked for among the outs on disk and then in DVC's cache, where those of older commits are; an md5 is told
where a ``dvc.lock`` (of the working tree, or of the version's commit) has it for that very manifest.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import MANIFEST, Workspace, manifest_hash, verify_files
from mlembed_core.errors import ArtifactError, RegistryError
from mlembed_core.registry.client import DVC_MD5_TAG, WEIGHTS_HASH_TAG, open_registry
from mlembed_core.registry.dvc_record import dvc_directory_md5, recorded_outs
from mlembed_core.registry.resolve import REFERENCE, resolve
from mlembed_core.registry.versions import find_version
from mlembed_core.train.tracking import GIT_COMMIT_TAG, GIT_DIRTY_TAG, OUTPUT_HASH_TAG, PACKAGES_TAG, SETTING_TAG

SHORT = 12  # digits of a hash that people see


class Place(StrEnum):
    """Where the bytes of an out are."""

    DISK = "on disk"
    CACHE = "in DVC's cache"
    NOWHERE = "not on this machine"


@dataclass(frozen=True)
class Out:
    """One out that a version was made from.

    Attributes:
        item: as DVC names it, ``source@cldr_bitext``.
        md5: DVC's, where it is known to be of these bytes.
        inputs: item → hash of its manifest; empty too where the manifest is nowhere.
        licences: of a source.
    """

    item: str
    path: str
    manifest_hash: str
    place: Place
    md5: str | None
    inputs: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    licences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """All that a version stands on.

    Attributes:
        aliases: of this version.
        problems: what ``check`` found wrong; None where nothing was recomputed.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    setting: str
    run_id: str
    git_commit: str | None
    git_dirty: bool
    weights_hash: str
    packages: dict[str, str]
    outs: tuple[Out, ...]
    problems: tuple[str, ...] | None = None
    checked: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def licences(self) -> dict[str, list[str]]:
        """Licence → sources."""
        found: dict[str, list[str]] = {}
        for out in self.outs:
            if out.item.startswith("source@"):
                for licence in out.licences or ("unknown",):
                    found.setdefault(licence, []).append(out.item.removeprefix("source@"))
        return found

    @property
    def summary(self) -> str:
        aliases = f" ({', '.join(self.aliases)})" if self.aliases else ""
        lines = [
            f"{self.name} version {self.version}{aliases}, setting {self.setting}, weights {self.weights_hash[:SHORT]}",
            f"run     {self.run_id}",
            f"commit  {self.git_commit or 'unknown'}{', with changes that were not committed' if self.git_dirty else ''}",
            "",
        ]
        width = max(len(out.item) for out in self.outs)
        lines += [
            f"{out.item:{width}}  manifest {out.manifest_hash[:SHORT]}  md5 {(out.md5 or 'unknown')[:SHORT]:{SHORT}}  {out.place}"
            for out in self.outs
        ]
        lines += ["", *(f"{licence}: {', '.join(sources)}" for licence, sources in sorted(self.licences.items()))]
        if self.problems is not None:
            lines += ["", *(self.problems or [f"checked: the files of {self.checked} outs are as recorded"])]
        return "\n".join(lines)

    @property
    def mermaid(self) -> str:
        """The graph in the form that GitHub and most editors draw."""
        ids = {out.item: f"n{index}" for index, out in enumerate(self.outs)}
        lines = ["graph LR", f'  v["{self.name} version {self.version}"]']
        for out in self.outs:
            lines.append(f'  {ids[out.item]}["{out.item}<br/>{out.manifest_hash[:SHORT]}"]')
            lines += [f"  {ids[name]} --> {ids[out.item]}" for name in out.inputs if name in ids]
        return "\n".join([*lines, f"  {ids[self.outs[0].item]} --> v"])


def lineage(ref: str, workspace: Workspace, *, check: bool = False) -> Lineage:
    """Everything behind a registered version.

    Args:
        ref: ``models:/NAME@alias`` or ``models:/NAME/VERSION``.
        check: recompute the hashes of every out that is on disk, and of the version's own files.

    Raises:
        RegistryError: no such version, or one that was not registered by this project.
    """
    match = REFERENCE.fullmatch(ref)
    if match is None:
        raise RegistryError(f"{ref!r} is no registered version; write models:/NAME@alias or models:/NAME/VERSION")
    with open_registry(workspace) as registry:
        version = find_version(registry, match["name"], match["alias"] or match["version"])
        aliases = registry.client.get_registered_model(version.name).aliases
    tags: Mapping[str, str] = version.tags
    if OUTPUT_HASH_TAG not in tags or SETTING_TAG not in tags:
        raise RegistryError(
            f"{version.name} version {version.version} has no tag {OUTPUT_HASH_TAG}: it is none of `mlembed register`, so nothing tells "
            "what it was made from."
        )
    commit = tags.get(GIT_COMMIT_TAG)
    outs = tuple(walk(workspace, f"train@{tags[SETTING_TAG]}", tags[OUTPUT_HASH_TAG], commit=commit))
    problems = tuple(_problems(workspace, f"models:/{version.name}/{version.version}", tags, outs)) if check else None
    return Lineage(
        name=version.name,
        version=str(version.version),
        aliases=tuple(sorted(alias for alias, number in aliases.items() if str(number) == str(version.version))),
        setting=tags[SETTING_TAG],
        run_id=version.run_id,
        git_commit=commit,
        git_dirty=tags.get(GIT_DIRTY_TAG) == "true",
        weights_hash=tags.get(WEIGHTS_HASH_TAG, "unknown"),
        packages=json.loads(tags.get(PACKAGES_TAG, "{}")),
        outs=outs,
        problems=problems,
        checked=sum(out.place is Place.DISK for out in outs),
    )


def walk(workspace: Workspace, item: str, manifest_hash: str, *, commit: str | None) -> Iterator[Out]:
    """An out and all that it was made from, each once, the nearest first."""
    store = Store(workspace, commit)
    wanted, seen = [(item, manifest_hash)], {item}
    while wanted:
        out = store.find(*wanted.pop(0))
        yield out
        new = [(name, digest) for name, digest in out.inputs.items() if name not in seen]
        seen |= {name for name, _ in new}
        wanted += new


class Store:
    """Finds outs by the hash of their manifest."""

    def __init__(self, workspace: Workspace, commit: str | None) -> None:
        self._workspace, self._commit = workspace, commit

    def path(self, item: str) -> Path:
        """Raises ArtifactError for an item that no stage has: a manifest's word is not trusted with paths."""
        stage, _, key = item.partition("@")
        folders = {
            "source": self._workspace.sources,
            "tokenize": self._workspace.corpora,
            "train": self._workspace.models,
            "tokenizer": self._workspace.tokenizer,
            "cache": self._workspace.cache,
            "backbone": self._workspace.backbone,
        }
        if stage not in folders or (key and not key.replace("_", "a").isalnum()):
            raise ArtifactError(f"a manifest names the input {item!r}, which is no item of the pipeline; it was changed by hand")
        return folders[stage] / key if key else folders[stage]

    def find(self, item: str, digest: str) -> Out:
        path = self.path(item)
        name = path.relative_to(self._workspace.root).as_posix()
        place, content, md5 = Place.NOWHERE, b"", None
        if (path / MANIFEST).is_file() and _sha256(on_disk := (path / MANIFEST).read_bytes()) == digest:
            place, content = Place.DISK, on_disk
        recorded = [lock[name] for lock in self._locks if name in lock]
        for candidate in recorded:
            cached = self._cached_manifest(candidate)
            if cached is not None and _sha256(cached) == digest:
                md5 = candidate
                place, content = (Place.CACHE, cached) if place is Place.NOWHERE else (place, content)
                break
        if md5 is None and place is Place.DISK and recorded:  # outs that came without a cache
            on_disk_md5 = dvc_directory_md5(path)
            md5 = on_disk_md5 if on_disk_md5 in recorded else None
        manifest = json.loads(content) if content else {}
        licences = tuple(manifest.get("details", {}).get("licences") or ())
        return Out(item, name, digest, place, md5, manifest.get("inputs", {}), manifest.get("counts", {}), licences)

    @cached_property
    def _locks(self) -> list[dict[str, str]]:
        """Path → md5, by the lock of the working tree and by that of the version's commit."""
        texts = [path.read_text(encoding="utf-8") for path in [self._workspace.root / "dvc.lock"] if path.is_file()]
        if self._commit is not None:
            shown = subprocess.run(
                ["git", "-C", str(self._workspace.root), "show", f"{self._commit}:./dvc.lock"], capture_output=True, text=True, check=False
            )
            texts += [shown.stdout] if shown.returncode == 0 else []
        return [recorded_outs(text) for text in texts]

    def _cached_manifest(self, md5: str) -> bytes | None:
        """The manifest in a folder that DVC keeps, None where it has not got it."""
        listed = self._cached(md5)
        entries = [] if listed is None else json.loads(listed)
        manifest = next((entry["md5"] for entry in entries if entry["relpath"] == MANIFEST), None)
        return None if manifest is None else self._cached(manifest)

    def _cached(self, md5: str) -> bytes | None:
        path = self._workspace.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        return path.read_bytes() if path.is_file() else None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _problems(workspace: Workspace, ref: str, tags: Mapping[str, str], outs: tuple[Out, ...]) -> Iterator[str]:
    """One line for everything that is not as recorded."""
    try:
        folder = resolve(ref)
        verify_files(folder)
        if manifest_hash(folder) != tags[OUTPUT_HASH_TAG]:
            yield f"{ref}: its artifacts are another model than its tag {OUTPUT_HASH_TAG} names"
    except (ArtifactError, RegistryError) as error:
        yield f"{ref}: {error}"
    if tags.get(DVC_MD5_TAG) and outs[0].md5 and tags[DVC_MD5_TAG] != outs[0].md5:
        yield f"{outs[0].path}: its md5 is {outs[0].md5}, the version says {tags[DVC_MD5_TAG]}"
    for out in outs:
        if out.place is not Place.DISK:
            continue
        path = workspace.root / out.path
        try:
            verify_files(path)
        except ArtifactError as error:
            yield str(error)
            continue
        if out.md5 is not None and dvc_directory_md5(path) != out.md5:
            yield f"{out.path} holds other files than DVC recorded (md5 {out.md5}). Run `dvc checkout {out.path}`."
