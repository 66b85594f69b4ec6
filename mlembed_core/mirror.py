"""Where datasets of the hub lie on this machine, for sources and for tasks of evaluation alike, and how they get there.

A *mirror* is a folder with one folder per dataset and revision, ``ORG/NAME/REVISION/``, each a copy of the hub's repository or of a part
of it. It can be carried to a machine without network. Datasets are looked for in the folders of ``MLEMBED_DATASETS``, then in the user's
cache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlembed_core.errors import MachineError

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


def mirrors() -> list[Path]:
    """The mirrors of this machine, in the order in which they are looked into."""
    named = [Path(name) for name in os.environ.get(MIRRORS, "").split(os.pathsep) if name]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlembed" / "datasets"
    return [path.absolute() for path in (*named, cache)]


def fetch(dataset: HubDataset, mirror: Path, *, endpoint: str | None = None) -> Path:
    """Download a dataset's repository into a mirror: whole, or not at all.

    Args:
        endpoint: of the hub; None: the usual one (``HF_ENDPOINT``).

    Raises:
        HubUnreachableError: the hub cannot be reached (its client has tried for half a minute).
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
