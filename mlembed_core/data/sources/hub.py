"""Files of pairs from a dataset of the hub: found on this machine, or fetched there once, with the revision and licence that they have.

A file that was fetched stays in the first mirror (``mlembed_core/mirror.py``), under its revision, with the list of all files of that
revision beside it, so that a later call knows whether a pattern has all that it stands for. A killed download goes on with the file that
it was at.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlembed_core.artifacts import read_json, write_json
from mlembed_core.config.data import FileParams, HubOrigin
from mlembed_core.data.sources.files import SourceFile, only_language
from mlembed_core.errors import ConfigError, DataError, MachineError
from mlembed_core.mirror import MIRRORS, HubDataset, mirrors
from mlembed_core.progress import track

LISTING = ".files.json"  # beside the files of a revision: the names of all that it has
CARD = "README.md"
COMMIT = re.compile(r"[0-9a-f]{40}")
SHOWN_FILES = 6


@dataclass(frozen=True)
class Copy:
    """Files of a revision on this machine.

    Attributes:
        licence: as its dataset card says, None where it says nothing.
        fetched: whether something had to be fetched just now.
    """

    folder: Path
    revision: str
    licence: str | None
    files: tuple[SourceFile, ...]
    fetched: bool


def find_hub(
    name: str,
    origin: HubOrigin,
    *,
    languages: Sequence[str] | None = None,
    places: Sequence[Path] | None = None,
    fetch: bool = True,
    endpoint: str | None = None,
) -> Copy:
    """The files of a source, fetched unless they are here: a commit never changes, so a copy will do.

    Args:
        name: the source's, for messages.
        languages: of the source as a whole.
        places: mirrors to look into and, the first, to fetch into; None: the machine's, and the hub's own cache.
        fetch: false: only look.
        endpoint: of the hub; None: the usual one (``HF_ENDPOINT``).

    Raises:
        ConfigError: the hub has no such repository or revision; or none is named, and the machine has several.
        DataError: a pattern stands for no file.
        MachineError: files are missing and cannot be fetched; the message says what would fetch them.
    """
    looked = mirrors() if places is None else list(places)
    revisions = [place / origin.repo for place in looked] + ([_hub_cache(origin.repo)] if places is None else [])
    here = _on_this_machine(name, origin, revisions)
    if here is None and not fetch:
        raise MachineError(_missing(name, origin, looked, "nothing was fetched"))
    folder = here or _fetch(name, origin, looked, endpoint)
    files = [
        SourceFile(folder / path, path, only_language(pattern.languages or languages))
        for pattern in reversed(origin.patterns)  # what comes first in the parameters has the last word
        for path in _matching(pattern.path, _names_in(folder))
    ]
    chosen = {file.shown: file for file in files}
    return Copy(folder, folder.name, _licence(folder), tuple(chosen[path] for path in sorted(chosen)), fetched=here is None)


def _on_this_machine(name: str, origin: HubOrigin, places: Sequence[Path]) -> Path | None:
    """The first folder of the revision that has every file.

    Args:
        places: folders of revisions.
    """
    for place in places:
        folders = sorted(place.glob("*")) if origin.revision is None else [place / origin.revision]
        whole = [folder for folder in folders if COMMIT.fullmatch(folder.name) and _is_whole(folder, origin.patterns)]
        if len(whole) > 1:
            found = ", ".join(folder.name for folder in whole)
            raise ConfigError(f"sources.{name}.origin.revision is null, and {place} holds several revisions: {found}. Name one of them.")
        if whole:
            return whole[0]
    return None


def _hub_cache(repo: str) -> Path:
    """Where huggingface_hub keeps the revisions of a dataset that others fetched."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"datasets--{repo.replace('/', '--')}" / "snapshots"


def _is_whole(folder: Path, patterns: Sequence[FileParams]) -> bool:
    if not folder.is_dir():
        return False
    there = _names_in(folder)
    all_names = read_json(folder / LISTING) if (folder / LISTING).is_file() else there
    return all((wanted := _matching(pattern.path, all_names)) and set(wanted) <= set(there) for pattern in patterns)


def _names_in(folder: Path) -> list[str]:
    """Files of a revision's folder, without the notes of those who fetched them."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name.as_posix() for name in names if not name.parts[0].startswith("."))


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Those that a pattern stands for: of whole paths, or of names in any folder where it has no ``/``. Case counts."""
    return [name for name in names if fnmatchcase(name if "/" in pattern else name.rpartition("/")[2], pattern)]


def _fetch(name: str, origin: HubOrigin, places: Sequence[Path], endpoint: str | None) -> Path:
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi(endpoint=endpoint).dataset_info(origin.repo, revision=origin.revision)
        revision, names = str(info.sha), sorted(item.rfilename for item in info.siblings or [])
        wanted = _wanted(name, origin, revision, names)
        folder = HubDataset(origin.repo, revision).folder(places[0])
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / LISTING, names)  # first: without it, half of the files would look like all
        for path in track(wanted, description=f"fetching {name}", total=len(wanted), unit="files"):
            hf_hub_download(origin.repo, path, repo_type="dataset", revision=revision, local_dir=folder, endpoint=endpoint)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise ConfigError(
            f"sources.{name}: the hub has no dataset {origin.repo} at {origin.revision or 'any revision'}, or hides it from you ({error}). "
            "Check origin.repo and origin.revision; `hf auth login` for a private one."
        ) from error
    except OSError as error:
        raise MachineError(_missing(name, origin, places, f"{type(error).__name__}: {error}")) from error
    return folder


def _wanted(name: str, origin: HubOrigin, revision: str, names: Sequence[str]) -> list[str]:
    wanted: dict[str, None] = {}
    for pattern in origin.patterns:
        found = _matching(pattern.path, names)
        if not found:
            near = difflib.get_close_matches(pattern.path, names, n=3)
            hint = f"; near to it: {', '.join(near)}" if near else ""
            where = f"{origin.repo} at {revision}"
            raise DataError(f"sources.{name}.origin.files: {where} has no file {pattern.path!r}{hint}. Correct the pattern.")
        wanted |= dict.fromkeys(found)
    return [*(CARD for _ in names if _ == CARD), *wanted]


def _missing(name: str, origin: HubOrigin, places: Sequence[Path], reason: str) -> str:
    patterns = [pattern.path for pattern in origin.patterns]
    shown = ", ".join(patterns[:SHOWN_FILES]) + (f" and {len(patterns) - SHOWN_FILES} more" if len(patterns) > SHOWN_FILES else "")
    revision = origin.revision or "its newest revision"
    return (
        f"sources.{name}: files of the dataset {origin.repo} at {revision} are not on this machine: {shown}. Looked for in "
        f"{', '.join(map(str, places))}. With network access `mlembed source {shlex.quote(name)}` fetches them, `mlembed prefetch "
        f"--sources` those of all sources. Without it, run `mlembed prefetch --sources --mirror DIR` elsewhere, carry DIR here and set "
        f"{MIRRORS}=DIR. ({reason})"
    )


def _licence(folder: Path) -> str | None:
    """From the head of the dataset card, where the hub keeps it."""
    if not (folder / CARD).is_file():
        return None
    head = re.match(r"---\s*\n(.*?)\n---", (folder / CARD).read_text(encoding="utf-8", errors="replace"), flags=re.DOTALL)
    try:
        facts: Any = YAML(typ="safe").load(head[1]) if head else None
    except YAMLError:
        return None
    licence = facts.get("license") if isinstance(facts, dict) else None
    return ", ".join(map(str, licence)) if isinstance(licence, list) else licence
