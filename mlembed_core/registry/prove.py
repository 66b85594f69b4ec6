"""The process in which the gate lets a version be exported: ``python -m mlembed_core.registry.prove SCRATCH``.

It loads its libraries at once, reads the version's folder from stdin, and exports it to ``SCRATCH/export``; what another process
reads from there must be the version's vectors. The answer, one line of JSON on stdout, is the export's fingerprint and the largest
difference, or what is wrong. So the gate compares scores meanwhile, and needs no torch itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from mlembed_core.errors import ArtifactError, EvaluationError, SubmodelError
from mlembed_core.export.kinds import Format, StoredType
from mlembed_core.export.verify import ForkedProbe, Reader, VerificationError

PATIENCE_S = 900


class Prover:
    """The gate's side of it.

    Args:
        scratch: an empty folder.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        command = [sys.executable, "-m", "mlembed_core.registry.prove", str(scratch)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __enter__(self) -> Prover:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()
        self._process.wait()

    def dismiss(self) -> None:
        """There is nothing to prove."""
        if self._process.poll() is None:
            self._process.kill()

    def take(self, folder: Path) -> None:
        """Hand over the folder; the process goes to work on it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{folder.resolve()}\n")
            self._process.stdin.flush()
        except BrokenPipeError:  # it died; `answer` says of what
            pass

    def answer(self) -> dict[str, Any]:
        """``fingerprint`` and ``difference``.

        Raises:
            VerificationError: the version cannot be exported as it is; the message says why.
        """
        try:
            output, errors = self._process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise VerificationError(f"the export did not come to an end within {PATIENCE_S} s") from None
        try:
            said: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
        except (ValueError, IndexError):
            last = errors.strip().splitlines()[-1:] or [f"it ended with {self._process.returncode}"]
            raise VerificationError(f"the export failed: {last[0]}") from None
        if "wrong" in said:
            raise VerificationError(said["wrong"])
        return said


def main() -> None:
    from mlembed_core.export.slice import take_out

    with ForkedProbe([Reader.MLEMBED]) as probe:
        folder, target = Path(sys.stdin.readline().strip()), Path(sys.argv[1]) / "export"
        try:
            done = take_out(
                folder, target, probe, layers=None, dim=None, rank=None, form=Format.COMPAT, dtype=StoredType.FP32, instruction=None
            ).verification
        except (ArtifactError, SubmodelError, EvaluationError) as error:
            print(json.dumps({"wrong": str(error)}))
            sys.exit(error.exit_code)
    print(json.dumps({"fingerprint": done.fingerprint, "difference": max(done.differences.values())}))


if __name__ == "__main__":
    main()
