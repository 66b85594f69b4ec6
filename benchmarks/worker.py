"""A process of a benchmark's own for each variant, so that none runs with what another has set or left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


class Worker:
    """``python -m MODULE …``, which answers every line on its stdin with a line of JSON."""

    def __init__(self, module: str, options: Sequence[str]) -> None:
        self._process = subprocess.Popen([sys.executable, "-m", module, *options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> dict[str, Any]:
        """Raises RuntimeError where the process is gone."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("a worker has pipes")
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"it ended with status {self._process.wait()} (-9: out of memory)")
        result: dict[str, Any] = json.loads(answer)
        return result

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
