"""Imported by every Python that starts with this folder on its path: the clock jumps once, some seconds after the start."""

import os
import time

_JUMP, _, _AFTER = os.environ.get("MLEMBED_TEST_CLOCK_JUMP", "0:0").partition(":")
_WHEN = time.monotonic() + float(_AFTER)
_time, _time_ns = time.time, time.time_ns


def _shift() -> float:
    return float(_JUMP) if time.monotonic() >= _WHEN else 0.0


time.time = lambda: _time() + _shift()
time.time_ns = lambda: _time_ns() + int(_shift() * 1e9)
