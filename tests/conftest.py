"""For all tests: one thread. The models here are tiny, and threads that wait for each other crawl when another program wants the cores."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in every process that a test starts
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest


@pytest.fixture
def environment_stays():
    """Evaluation prepares its process by setting variables of the environment; the next test shall not see them."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def ray_cluster(monkeypatch):
    """A real Ray cluster on this machine, one node of one CPU, named in the environment; nodes can be added and killed."""
    for name, value in {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_health_check_period_ms": "500",  # a dead node is noticed after seconds, not half a minute
        "RAY_health_check_failure_threshold": "3",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
    }.items():
        monkeypatch.setenv(name, value)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8})
    try:
        monkeypatch.setenv("MLEMBED_RAY", cluster.address)
        yield cluster
    finally:
        cluster.shutdown()
