"""The code server, which starts the runs: ``python -m workflows.code_server``, with the options of ``dagster code-server start``.

Before it starts, it fails the runs of a code server that is gone (a kill, a reboot, a container made anew): Dagster has nobody else who
would, and they would hold their place in the pools for ever.
"""

from __future__ import annotations

import json
import socket
import sys

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter
from dagster._core.storage.tags import GRPC_INFO_TAG

HOST = "127.0.0.1"
RUNNING = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]
START = ("code-server", "start", "--module-name", "workflows.definitions")


def end_orphans(instance: DagsterInstance) -> None:
    """Fail the runs whose code server listens no more; ours, which will have the same port, does not listen yet."""
    for run in instance.get_runs(RunsFilter(statuses=RUNNING)):
        server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        if server.get("port") and not listens(int(server["port"])):
            instance.report_run_failed(run, "The code server that ran it is gone. Start it again; what was done by then is kept.")


def listens(port: int) -> bool:
    """Whether somebody takes connections on the port, on loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((HOST, port)) == 0


def main() -> None:
    try:
        with DagsterInstance.get() as instance:
            end_orphans(instance)
    except Exception as error:  # whatever the database says: without it, too, there is code to serve
        print(f"no look at the runs of the code server before: {error}", file=sys.stderr, flush=True)
    from dagster._cli import main as dagster

    sys.argv[1:] = [*START, *sys.argv[1:]]
    dagster()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
