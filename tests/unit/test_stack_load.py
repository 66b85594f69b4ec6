"""The load test stays on the machine that it is started on, and within bounds."""

import sys

import pytest

from benchmarks.stack_load import _options


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--dagster", "http://dagster.example.org:3000"], "is not on loopback"),
        (["--mlflow", "http://10.0.0.7:5000"], "is not on loopback"),
        (["--clients", "1000"], "1000 is not between 1 and 200"),
        (["--seconds", "100000"], "100000 is not between 1 and 600"),
    ],
)
def test_what_would_harm_others_is_refused(monkeypatch, capsys, arguments, says):
    monkeypatch.setattr(sys, "argv", ["stack_load", *arguments])
    with pytest.raises(SystemExit):
        _options()
    assert says in capsys.readouterr().err


def test_every_name_of_loopback_will_do(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["stack_load", "--dagster", "http://localhost:3000/", "--mlflow", "http://[::1]:5000", "--seconds", "2.5"]
    )
    options = _options()
    assert (options.dagster, options.mlflow, options.clients, options.seconds) == ("http://localhost:3000", "http://[::1]:5000", 50, 2.5)
