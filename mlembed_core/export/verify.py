"""``mlembed verify FOLDER``: an export's files are those that were written, and this machine's stack computes its vectors.

Hashes show what was changed since the export; golden vectors, recomputed in a process of their own by each stack that is installed,
show a stack that reads the files another way. Hashes inside a folder cannot show who wrote it: for that, compare the fingerprint
with the one that the export printed.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlembed_core.artifacts import MANIFEST, manifest_hash, read_manifest, sha256_file
from mlembed_core.errors import ArtifactError
from mlembed_core.export.golden import difference, read_golden

# Of two computations in float32: other processors and thread counts sum in another order (measured across stacks: 3e-7).
TOLERANCE = 1e-5
PROBE_TIMEOUT_S = 600
TOO_LONG = f"it was not encoded within {PROBE_TIMEOUT_S} s on this machine"
# What the hub puts beside a model, and the card that `mlembed push` writes: no stack computes from these.
BESIDE = {MANIFEST, "README.md", ".gitattributes"}
HUB_CACHE = ".cache/huggingface/"
STACK = ("torch", "transformers", "tokenizers", "sentence-transformers")


class VerificationError(ArtifactError):
    """An export is not what was written, or this machine's stack reads it another way."""


class Reader(StrEnum):
    """What an export is read with."""

    MLEMBED = "mlembed"
    SENTENCE_TRANSFORMERS = "sentence-transformers"

    @property
    def installed(self) -> bool:
        return self is Reader.MLEMBED or importlib.util.find_spec("sentence_transformers") is not None


@dataclass(frozen=True)
class Verification:
    """What held.

    Attributes:
        fingerprint: SHA-256 of the manifest, and so of every file.
        differences: reader → largest difference from the golden vectors.
        stack: package → version that computed them.
    """

    folder: str
    fingerprint: str
    files: int
    differences: dict[str, float]
    stack: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def summary(self) -> str:
        readers = ", ".join(f"{reader} within {gap:.1e}" for reader, gap in self.differences.items())
        return f"{self.folder}: {self.files} files as written, vectors as exported ({readers})\nfingerprint {self.fingerprint}"


def verify(folder: Path, *, fingerprint: str | None = None, probe: Probe | None = None) -> Verification:
    """Check an export against its hashes, then against its golden vectors.

    Args:
        fingerprint: what the export printed, to know it from another one; None takes the folder's word.
        probe: the process that computes; None starts one with every reader that is installed.

    Raises:
        ArtifactError: the folder is no export.
        VerificationError: a file was changed, is missing or was added, or a stack computes other vectors.
    """
    golden, _ = read_golden(folder)
    found = manifest_hash(folder)
    if fingerprint is not None and fingerprint != found:
        raise VerificationError(f"{folder} has the fingerprint {found}, not {fingerprint}: it is another export. Fetch the one you meant.")
    changes = list(changed_files(folder))
    if changes:
        listed = "\n".join(f"  {line}" for line in changes)
        raise VerificationError(f"{folder} is not what was exported:\n{listed}\nFetch or make it again.")
    with probe or Probe() as process:
        differences = process.differences(folder, golden)
    stack = {name: version(name) for name in STACK if importlib.util.find_spec(name.replace("-", "_")) is not None}
    wrong = {reader: gap for reader, gap in differences.items() if not gap <= TOLERANCE}
    if wrong:
        gaps = ", ".join(f"{reader} by {gap:.2g}" for reader, gap in wrong.items())
        raise VerificationError(
            f"{folder} gives other vectors here than where it was exported: {gaps} (allowed: {TOLERANCE:g}). Its files are unchanged, so "
            f"the stack reads them another way ({', '.join(f'{name} {number}' for name, number in stack.items())}). Install the versions "
            "of constraints.txt, or export again with this stack."
        )
    return Verification(str(folder), found, len(read_manifest(folder)["files"]), differences, stack)


def changed_files(folder: Path) -> Iterator[str]:
    """One line for every file that is not as the manifest says, or that it does not know."""
    recorded = read_manifest(folder)["files"]
    present = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    for name, facts in sorted(recorded.items()):
        if name not in present:
            yield f"{name} is missing"
        elif present[name].stat().st_size != facts["bytes"]:
            yield f"{name} has {present[name].stat().st_size} bytes, not {facts['bytes']}"
        elif sha256_file(present[name]) != facts["sha256"]:
            yield f"{name} was changed (other SHA-256)"
    for name in sorted(set(present) - set(recorded) - BESIDE):
        if not name.startswith(HUB_CACHE):
            yield f"{name} was added"


class Probe:
    """A fresh process that computes golden vectors with each stack: nothing of the process that wrote a folder may help in reading it.

    It loads its libraries at once, so that an export can start it first and hand it the folder when that is written.
    """

    def __init__(self, readers: Sequence[Reader] | None = None) -> None:
        self.readers = list(readers) if readers is not None else [reader for reader in Reader if reader.installed]
        command = [sys.executable, "-m", "mlembed_core.export.probe", *self.readers]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def differences(self, folder: Path, golden: NDArray[Any]) -> dict[str, float]:
        """Reader → largest difference from the golden vectors. Can be asked once.

        Raises:
            VerificationError: a reader cannot read the folder, or does not come to an end.
        """
        with tempfile.TemporaryDirectory(prefix="mlembed-verify-") as scratch:
            wrong = self._ask(folder.resolve(), Path(scratch))
            if wrong is not None:
                raise VerificationError(f"{folder} cannot be read: {wrong}")
            return {
                reader.value: difference(np.load(Path(scratch) / f"{reader}.npy", allow_pickle=False), golden) for reader in self.readers
            }

    def _ask(self, folder: Path, answers: Path) -> str | None:
        """Let the process write its vectors to ``answers``; what is wrong, or None."""
        try:
            _, errors = self._process.communicate(f"{folder}\n{answers}\n", timeout=PROBE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return TOO_LONG
        if self._process.returncode == 0:
            return None
        return (errors.strip().splitlines() or ["no message"])[-1]


class ForkedProbe(Probe):
    """The same as a fork of this process, which has loaded the libraries and used none of them: a fresh one without loading them again."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        from mlembed_core.export.probe import answer_on

        self.readers = list(readers)
        context = multiprocessing.get_context("fork")
        self._line, theirs = context.Pipe()
        self._forked = context.Process(target=answer_on, args=(theirs, self._line, self.readers), daemon=True)
        self._forked.start()
        theirs.close()

    def __exit__(self, *_: object) -> None:
        self._line.close()
        self._forked.kill()
        self._forked.join()

    def _ask(self, folder: Path, answers: Path) -> str | None:
        try:
            self._line.send_bytes(f"{folder}\n{answers}\n".encode())
            return (self._line.recv_bytes().decode() or None) if self._line.poll(PROBE_TIMEOUT_S) else TOO_LONG
        except (EOFError, OSError):
            return "the process that read it died"
