"""For all tests: one thread. The models here are tiny, and threads that wait for each other crawl when another program wants the cores."""

import os

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
