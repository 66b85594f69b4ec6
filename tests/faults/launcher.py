"""``mlembed train`` for the tests: the project's launcher around a small training; ``python -m tests.faults.launcher FOLDER``."""

import sys
from pathlib import Path

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import MlembedError
from mlembed_core.train.launch import launch

if __name__ == "__main__":
    try:
        launch(Workspace(Path(__file__).resolve().parents[2]), sys.argv[1], module="tests.faults.worker")
    except MlembedError as error:
        print(f"mlembed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
