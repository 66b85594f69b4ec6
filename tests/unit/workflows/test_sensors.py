"""What the sensor watches: it must see every write, and cost next to nothing where there was none."""

import os
import socket

import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import MachineError
from workflows.sensors import fingerprint_of, watched_files
from workflows.ui import Program, free_port

LOCK = (
    "stages: {cache: {cmd: x, outs: [{path: data/cache, md5: a.dir, size: 1}]}, report: {cmd: x, outs: [{path: r.json, md5: b, size: 1}]}}"
)


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / "dvc.lock").write_text(LOCK)
    (tmp_path / "data" / "cache" / "deep").mkdir(parents=True)
    (tmp_path / "data" / "cache" / "deep" / "file").write_text("1")
    (tmp_path / "scores" / "3d").mkdir(parents=True)
    return Workspace(tmp_path)


def look(workspace, busy=()):
    return fingerprint_of(watched_files(workspace), busy)


def test_nothing_changed(workspace):
    assert look(workspace) == look(workspace)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "data" / "cache" / "deep" / "file").write_text("22"),
        lambda root: os.utime(root / "data" / "cache" / "deep" / "file", ns=(1, 1)),
        lambda root: (root / "data" / "cache" / "deep" / "file").unlink(),
        lambda root: (root / "data" / "cache" / "new").write_text("1"),
        lambda root: (root / "scores" / "3d" / "eng.json").write_text("{}"),
        lambda root: (root / "dvc.lock").write_text(LOCK.replace("md5: b", "md5: c")),
        lambda root: (root / "dvc.yaml").write_text("stages: {}"),
    ],
)
def test_every_write_is_seen(workspace, change):
    before = look(workspace)
    change(workspace.root)
    assert look(workspace) != before


def test_a_registration_is_seen(workspace):
    before = look(workspace)
    workspace.registration("3d").parent.mkdir(parents=True)
    workspace.registration("3d").write_text("{}")
    assert look(workspace) != before


def test_runs_that_end_make_it_look_again(workspace):
    assert look(workspace, {("trained_model", "3d")}) != look(workspace)


def test_a_port_in_use_gives_way_to_the_next():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) > port


def test_a_server_that_keeps_dying_is_given_up(tmp_path):
    program = Program("daemon", ["/bin/sh", "-c", "echo no room >&2; exit 3"], tmp_path / "daemon.log", dict(os.environ))
    with pytest.raises(MachineError, match=r"daemon ended 5 times.*daemon\.log"):
        for _ in range(10):
            program.ensure_running(tmp_path)
            program.process.wait()
    assert (tmp_path / "daemon.log").read_text().count("no room") == 5
