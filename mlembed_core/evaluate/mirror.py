"""Where the datasets of mteb's tasks lie on this machine. Scoring never downloads: `mlembed prefetch` does, and says what it fetched.

A *mirror* is a folder with one folder per dataset and revision, ``ORG/NAME/REVISION/``, each a copy of the hub's repository. It can be
carried to a machine without network. Datasets are looked for in the folders of ``MLEMBED_DATASETS``, then in the user's cache, then
among those that the `datasets` library has prepared before (where it holds that revision and no other).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from mlembed_core.errors import MachineError
from mlembed_core.evaluate.tasks import is_local

MIRRORS = "MLEMBED_DATASETS"  # folders, separated as in PATH


class HubUnreachableError(MachineError):
    """Nobody answers: not for this dataset, nor for another."""


@dataclass(frozen=True, order=True)
class HubDataset:
    """A dataset at a revision."""

    path: str
    revision: str

    def __str__(self) -> str:
        return f"{self.path}@{self.revision}"

    def folder(self, mirror: Path) -> Path:
        return mirror / self.path / self.revision

    def find(self, mirrors: Sequence[Path]) -> Path | None:
        """Its folder in the first mirror that has it."""
        return next((folder for mirror in mirrors if (folder := self.folder(mirror)).is_dir()), None)

    @property
    def prepared(self) -> bool:
        """Whether the `datasets` library has it. Without network it takes the newest revision there is, so there must be one alone."""
        from datasets import config
        from datasets.naming import camelcase_to_snakecase

        *owner, name = self.path.split("/")
        folder = Path(config.HF_DATASETS_CACHE).expanduser() / "___".join([*owner, camelcase_to_snakecase(name)])
        return {path.name for path in folder.glob("*/*/*") if path.is_dir()} == {self.revision}


def mirrors() -> list[Path]:
    """The mirrors of this machine, in the order in which they are looked into."""
    named = [Path(name) for name in os.environ.get(MIRRORS, "").split(os.pathsep) if name]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlembed" / "datasets"
    return [path.absolute() for path in (*named, cache)]


def datasets_of(tasks: Iterable[AbsTask]) -> list[HubDataset]:
    """What the tasks read from the hub, each once, in the tasks' order."""
    return list(dict.fromkeys(_dataset(task) for task in _parts(tasks)))


def use_mirrors(tasks: Sequence[AbsTask], places: Sequence[Path], *, command: str) -> None:
    """Point every task to its data on this machine.

    Args:
        command: what fetches the data, for the message.

    Raises:
        MachineError: some are not there; one message names them all.
    """
    absent = [dataset for dataset in datasets_of(tasks) if dataset.find(places) is None and not dataset.prepared]
    if absent:
        from datasets import config

        lines = "\n".join(f"  {dataset}" for dataset in absent)
        looked = ", ".join(map(str, (*places, config.HF_DATASETS_CACHE)))
        raise MachineError(
            f"{len(absent)} dataset(s) are not on this machine:\n{lines}\nLooked for in: {looked}.\nWith network access, `{command}` "
            f"fetches them. Without it, fetch them elsewhere (`{command} --mirror DIR`), carry DIR here and set {MIRRORS}=DIR."
        )
    for task in _parts(tasks):
        dataset = _dataset(task)
        folder = dataset.find(places)
        if folder is not None:
            inner: Any = task
            inner.dataset_path = dataset.path  # what the scores are filed under
            inner.metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, "path": str(folder)}})


def fetch(dataset: HubDataset, mirror: Path, *, endpoint: str | None = None) -> Path:
    """Download a dataset's repository into a mirror: whole, or not at all.

    Args:
        endpoint: of the hub; None: the usual one (``HF_ENDPOINT``).

    Raises:
        HubUnreachableError: the hub cannot be reached (the client has tried for half a minute).
        MachineError: it refuses.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    target = dataset.folder(mirror)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".fetch-", dir=target.parent))
    try:
        snapshot_download(dataset.path, repo_type="dataset", revision=dataset.revision, local_dir=draft, endpoint=endpoint)
        shutil.rmtree(draft / ".cache", ignore_errors=True)  # the downloader's own notes
        draft.chmod(0o755)
        draft.replace(target)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        if not target.is_dir():  # else another process fetched it meanwhile
            kind = MachineError if isinstance(error, HfHubHTTPError) else HubUnreachableError
            raise kind(f"{dataset} cannot be fetched ({type(error).__name__}: {error})") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _parts(tasks: Iterable[AbsTask]) -> Iterator[AbsTask]:
    """The tasks that have data of their own on the hub: an aggregate's are those of its parts."""
    for task in tasks:
        if isinstance(task, AbsTaskAggregate):
            yield from _parts(task.metadata.tasks)
        elif not is_local(task.metadata):
            yield task


def _dataset(task: AbsTask) -> HubDataset:
    dataset = task.metadata.dataset
    return HubDataset(str(getattr(task, "dataset_path", dataset["path"])), str(dataset["revision"]))
