"""Runs whose code server is gone are failed; those of a server that listens, and those that never reached one, are left alone."""

import json
import socket

from dagster import DagsterInstance, DagsterRunStatus
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from workflows.code_server import end_orphans


def test_only_runs_of_a_server_that_listens_no_more_are_failed():
    with socket.socket() as gone, socket.socket() as there:
        for probe in (gone, there):
            probe.bind(("127.0.0.1", 0))
        there.listen()  # the other port is ours, too, but nobody answers there
        tags = {
            name: {GRPC_INFO_TAG: json.dumps({"host": "127.0.0.1", "port": probe.getsockname()[1]})}
            for name, probe in [("gone", gone), ("there", there)]
        }
        with DagsterInstance.ephemeral() as instance:
            runs = {
                (name, status): create_run_for_test(instance, tags=of, status=status).run_id
                for name, of in (tags | {"nowhere": {}}).items()
                for status in (DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING, DagsterRunStatus.NOT_STARTED, DagsterRunStatus.SUCCESS)
            }
            end_orphans(instance)
            changed = {key for key, run_id in runs.items() if instance.get_run_by_id(run_id).status != key[1]}
            assert changed == {("gone", DagsterRunStatus.STARTED), ("gone", DagsterRunStatus.CANCELING)}
            assert {instance.get_run_by_id(runs[key]).status for key in changed} == {DagsterRunStatus.FAILURE}
