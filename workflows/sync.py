"""``python -m workflows.sync``: tell Dagster what DVC has on record, with every check asked. The sensor does it while Dagster runs."""

from __future__ import annotations

import sys

from dagster import DagsterInstance

from assets import graph
from assets.importing import import_outs, unfinished_items
from assets.partitions import WORKSPACE
from mlembed_core.errors import MlembedError
from workflows.home import prepare_home
from workflows.pipeline import PIPELINE


def main() -> None:
    prepare_home(WORKSPACE)
    try:
        with DagsterInstance.get() as instance:
            done = import_outs(instance, PIPELINE, status=graph.status(WORKSPACE), busy=unfinished_items(instance), ask_checks=True)
    except MlembedError as error:
        print(f"mlembed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    print(f"Dagster was told {done}. `make ui` shows them.")


if __name__ == "__main__":
    main()
