"""Files of a model repository of the hub at a pinned commit, in the hub's own cache on this machine; what lies there needs no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mlembed_core.errors import ConfigError, MachineError

MODEL_FILES = ("*.json", "*.safetensors")  # no pickle and no code
IN_FOLDERS = "*/*.safetensors"  # weights in other forms beside those of the repository's root, as large again
WEIGHTS_INDEX = "model.safetensors.index.json"


def fetch(repo: str, revision: str, *, path: str, files: Sequence[str] = MODEL_FILES, optional: Sequence[str] = ()) -> Path:
    """The folder of the cache that holds the repository's files, downloaded unless there: a commit never changes, so a copy will do.

    Args:
        revision: a full commit hash.
        path: the parameter or option that names the repository, for messages.
        files: names, or patterns of names; a copy is whole that has a file for each, and every part of weights in parts.
        optional: further names, of which a copy may lack some.

    Raises:
        ConfigError: the hub has no such repository or commit, or hides it.
        MachineError: no copy, and the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    wanted = [*files, *optional]

    def snapshot(*, local_files_only: bool) -> Path:
        return Path(
            snapshot_download(
                repo_id=repo,
                revision=revision,
                allow_patterns=wanted,
                ignore_patterns=IN_FOLDERS,
                local_files_only=local_files_only,
            )
        )

    try:
        copy = snapshot(local_files_only=True)
        if _is_whole(copy, files):
            return copy
    except OSError:
        pass  # no copy yet
    except HFValidationError as error:
        raise ConfigError(f"{path}: {repo!r} is no name of a hub repository ({error}); write owner/name") from None
    try:
        return snapshot(local_files_only=False)
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ConfigError(
            f"{path}: the hub has no commit {revision} of {repo}, or hides it from you ({error}). "
            "Check the name and the commit; `hf auth login` for a private repository."
        ) from error
    except OSError as error:
        options = " ".join(f"--include '{name}'" for name in wanted)
        raise MachineError(
            f"{path}: cannot fetch {repo} at {revision} from the hub ({type(error).__name__}: {error}).\n"
            f"Where there is a network, run `hf download {repo} --revision {revision} {options}` (HF_HOME says where it goes); "
            "with that cache this machine needs none."
        ) from error


def _is_whole(folder: Path, files: Sequence[str]) -> bool:
    index = folder / WEIGHTS_INDEX
    parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.is_file() else ()
    return all(any(folder.glob(name)) for name in (*files, *parts))
