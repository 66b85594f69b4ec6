"""For all tests: one thread. The models here are tiny, and threads that wait for each other crawl when another program wants the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in every process that a test starts
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
