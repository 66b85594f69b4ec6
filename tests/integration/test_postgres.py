"""The team's registry in PostgreSQL: an advisory lock across machines, and a log that takes no change. A real server on loopback."""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import RegistryError

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), None)
ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BIN is None and shutil.which("initdb") is None, reason="no PostgreSQL server here (package postgresql)"),
    pytest.mark.skipif(
        os.getuid() == 0 and "nobody" not in {user.pw_name for user in pwd.getpwall()}, reason="PostgreSQL does not run as root"
    ),
]
HOLDER = """
import sys, time
from mlembed_core.artifacts import Workspace
from mlembed_core.registry.client import Registry
from mlembed_core.registry.moves import _postgres
with _postgres(sys.argv[1], "house", lock=True):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a fresh database, without a password, on loopback."""
    programs = Path(shutil.which("initdb") or BIN / "initdb").parent
    folder = tmp_path_factory.mktemp("postgres")
    user = None
    if os.getuid() == 0:  # initdb refuses to run as root
        user = "nobody"
        for path in (folder, *list(folder.parents)[:3]):
            path.chmod(0o755)
        shutil.chown(folder, user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    data, options = folder / "data", {"user": user, "cwd": folder, "check": True, "capture_output": True}
    subprocess.run([programs / "initdb", "-D", data, "-A", "trust", "-U", "mlembed", "--no-sync"], **options)
    settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    subprocess.run([programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", settings, "start"], **options)
    try:
        yield f"postgresql+psycopg2://mlembed@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], **options)


@pytest.fixture
def workspace(tmp_path, monkeypatch, server):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("MLEMBED_USER", "ada")
    return Workspace(tmp_path)


def test_the_lock_and_the_log_are_the_databases(workspace, server):
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import InternalError

    from mlembed_core.registry.client import open_registry
    from mlembed_core.registry.moves import LOG, TABLE, Act, moving, reading

    with open_registry(workspace) as registry:
        registry.client.create_registered_model("house")
        for _ in range(2):
            registry.client.create_model_version("house", source="s3://bucket/model")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "MLEMBED_USER": "grace"}
        with subprocess.Popen([sys.executable, "-c", HOLDER, server], env=environment, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout.readline() == "held\n"
            with (
                pytest.raises(RegistryError, match=r"moved by somebody else \(mlembed promote, grace\)"),
                moving(registry, workspace, "house"),
            ):
                pass
            holder.kill()
        end = time.monotonic() + 20
        while True:  # the server notices in a moment that its client is gone
            try:
                with moving(registry, workspace, "house") as record:
                    record.move(Act.PROMOTE, "1", "the first", {"gain": 0.5})
                    record.move(Act.PROMOTE, "2", "", {})
                break
            except RegistryError:
                assert time.monotonic() < end
                time.sleep(0.2)
        with reading(registry, workspace, "house") as record:
            assert [(move.who, move.before, move.after) for move in record.moves()] == [("ada", None, "1"), ("ada", "1", "2")]
            assert record.moves()[0].figures == {"gain": 0.5}
            assert record.champion() == "2"
            assert server.split("@")[1] in record.log.place
    assert not (workspace.root / LOG).exists()
    engine = create_engine(server)
    with engine.connect() as connection:
        for statement in (f"DELETE FROM {TABLE}", f"UPDATE {TABLE} SET move = ''", f"TRUNCATE {TABLE}"):
            with pytest.raises(InternalError, match="append-only"):
                connection.execute(text(statement))
            connection.rollback()
    engine.dispose()
