"""Freed memory is kept where we ask for it."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from mlembed_core.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def work():  # blocks too large for glibc's own threshold, which would move up with smaller ones
    for _ in range(5):
        np.ones(2**23)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks how glibc behaves")
def test_large_blocks_are_faulted_in_once():
    def faults(how):
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=60).stdout)

    # Five blocks of 64 MiB: 160 faults where the system has huge pages of 2 MiB to give, 81,920 where it has none.
    assert faults("keep") < 80 < faults("leave")
