"""Progress where nobody watches: lines with a rate and the time left; what an earlier run did counts as done, not into the rate."""

import pytest

from mlembed_core import progress
from mlembed_core.progress import Reporter


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_the_rate_of_a_resumed_task_is_of_this_run(clock, capsys):
    with Reporter("training", 100, "steps", start=60) as reporter:
        clock[0] += 10
        reporter.advance(20, note="loss 1.0")
    assert capsys.readouterr().err == "training: 80/100 steps (2.0 steps/s, 10 s left) loss 1.0\n"


def test_of_several_processes_one_speaks(clock, capsys):
    with Reporter("training", 100, "steps", shown=False) as reporter:
        clock[0] += 10
        reporter.advance(20)
    assert capsys.readouterr().err == ""
