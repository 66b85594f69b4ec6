"""How a process of evaluations is set up before mteb is imported: libraries read these variables once, when they are loaded."""

from __future__ import annotations

import os
from pathlib import Path

from mlembed_core.allocator import keep_freed_memory

# Bars of tqdm inside mteb, one per encode call, would bury our own.
QUIET = {"TQDM_DISABLE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "true"}
NO_TELEMETRY = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def prepare_process(scratch: Path, *, offline: bool) -> None:
    """Set the environment of this process, and its allocator, for an evaluation.

    Args:
        scratch: where mteb makes the folder of its result cache, which it does on import; the cache itself stays unused, since DVC
            knows what is up to date.
        offline: nothing may touch the network. True for suites that need no download: an attempt then fails at once rather than
            after minutes of retries.
    """
    keep_freed_memory()
    os.environ.update(QUIET | NO_TELEMETRY | (OFFLINE if offline else {}))
    os.environ["MTEB_CACHE"] = str(scratch / "mteb")
