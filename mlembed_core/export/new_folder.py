"""A folder outside the pipeline's outs, written whole or not at all; what is there already is never touched."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlembed_core.errors import ArtifactError


def check_is_new(target: Path) -> None:
    """Raises ArtifactError where there is something at ``target``."""
    if target.exists():
        raise ArtifactError(f"{target} exists already; name another folder with --out, or remove it first")


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill beside ``target``, which takes its place when the body succeeds; nothing is left otherwise."""
    check_is_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    draft = scratch / target.name
    draft.mkdir()
    try:
        yield draft
        draft.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
