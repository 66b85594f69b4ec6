"""The scan finds what is open, says what it could not ask, and leaves with the code for it. Servers are real, on loopback."""

import base64
import contextlib
import json
import shutil
import socket
import stat
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import ConfigError
from workflows import scan
from workflows.scan import FOUND, NOT_ASKED, Finding, NotAskedError, Scan
from workflows.stack import SECRETS

STRONG = {name: f"{name}-of-its-own-and-long" for name in SECRETS}


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    for name in (*SECRETS, "BIND", "DAGSTER_PORT", "MLFLOW_PORT", "CODE_PORT", "POSTGRES_PORT", "MLEMBED_STACK"):
        monkeypatch.delenv(name, raising=False)
    return Workspace(tmp_path)


@contextlib.contextmanager
def listening(address="127.0.0.1"):
    with socket.socket() as server:
        server.bind((address, 0))
        server.listen()
        yield server.getsockname()[1]


def names(found):
    return [finding.name for finding in found]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("", "is empty"),
        ("Password1234", "is one that everybody knows"),
        ("short", "has 5 characters, fewer than 16"),
        (STRONG[SECRETS[1]], f"is that of {SECRETS[1]}, too"),
    ],
)
def test_weak_secrets_are_named_and_never_shown(workspace, value, says):
    lines = {**STRONG, SECRETS[0]: value}
    (workspace.root / ".env").write_text("".join(f"{name}={secret}\n" for name, secret in lines.items()))
    (workspace.root / ".env").chmod(0o600)
    _, found = scan.secrets_of_the_stack(workspace)
    found = list(found)
    assert (found[0].name, found[0].message) == (SECRETS[0], says)
    assert not value or value not in json.dumps([finding.message for finding in found])


def test_strong_secrets_are_fine_and_a_file_for_all_to_read_is_not(workspace):
    file = workspace.root / ".env"
    file.write_text("".join(f"{name}={secret}\n" for name, secret in STRONG.items()))
    file.chmod(0o600)
    assert list(scan.secrets_of_the_stack(workspace)[1]) == []
    file.chmod(0o644)
    assert [finding.message for finding in scan.secrets_of_the_stack(workspace)[1]] == ["can be read by others (mode 644)"]


def test_a_port_that_others_reach_is_found(workspace, monkeypatch):
    with listening("0.0.0.0") as everywhere, listening() as loopback:
        monkeypatch.setenv("DAGSTER_PORT", str(everywhere))
        monkeypatch.setenv("MLFLOW_PORT", str(loopback))
        what, found = scan.ports(workspace)
        found = list(found)
    assert f"{loopback} (mlflow)" in what
    # Whatever else this process listens on counts, too: it is below the owner of the port.
    assert f"0.0.0.0:{everywhere}" in names(found)
    assert not any("127.0.0.1" in name for name in names(found))


def test_loopback_has_several_names():
    assert [scan._is_loopback(address) for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1")] == [True] * 3
    assert [scan._is_loopback(address) for address in ("0.0.0.0", "::", "::ffff:10.0.0.7")] == [False] * 3


def test_where_nothing_runs_nothing_was_asked(workspace, monkeypatch):
    for name in ("DAGSTER_PORT", "MLFLOW_PORT", "CODE_PORT", "POSTGRES_PORT"):
        with listening() as port:
            monkeypatch.setenv(name, str(port))
    for ask in (scan.ports, scan.logins):
        with pytest.raises(NotAskedError, match="the stack is not running here"):
            ask(workspace)


class Registry(BaseHTTPRequestHandler):
    """As MLflow with its own default password."""

    password = "password1234"  # pragma: allowlist secret

    def do_GET(self):
        given = self.headers.get("Authorization", "")
        well = given == "Basic " + base64.b64encode(f"admin:{self.password}".encode()).decode()
        self.send_response(200 if well or self.password is None else 401)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("password", "expected"),
    [("password1234", ["mlflow admin with the password 'password1234'"]), ("a-long-and-secret-one", [])],
)
def test_a_known_password_of_mlflow_is_tried(workspace, monkeypatch, password, expected):
    monkeypatch.setattr(Registry, "password", password)
    with ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with listening() as nobody:
            pass
        for name in ("DAGSTER_PORT", "CODE_PORT", "POSTGRES_PORT"):
            monkeypatch.setenv(name, str(nobody))
        monkeypatch.setenv("MLFLOW_PORT", str(server.server_port))
        assert names(scan.logins(workspace)[1]) == expected
        server.shutdown()


def test_secrets_in_files_of_git_are_found(workspace):
    pytest.importorskip("detect_secrets", reason="detect-secrets is not installed (extra scan)")
    subprocess.run(["git", "init", "--quiet"], cwd=workspace.root, check=True)
    key = "AKIA" + "Z" * 16  # of the form of a key of AWS
    (workspace.root / "deploy.sh").write_text(f"echo\nexport KEY={key}\n")
    (workspace.root / "known.sh").write_text(f"export KEY={key}  # pragma: allowlist secret\n")
    (workspace.root / "ignored.sh").write_text(f"export KEY={key}\n")
    (workspace.root / ".env").write_text("POSTGRES_PASSWORD=\n")
    subprocess.run(["git", "add", "deploy.sh", "known.sh", ".env"], cwd=workspace.root, check=True)
    found = list(scan.secrets_in_files(workspace)[1])
    assert sorted(names(found)) == [".env", "deploy.sh:2"]
    assert key not in str(found)


class Osv(BaseHTTPRequestHandler):
    """OSV's answer about one package, as its interface documents it."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        affected = {
            "package": {"name": "mlflow", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.11.0"}]}],
        }
        flaw = {
            "id": "GHSA-0000-0000-0000",
            "aliases": ["CVE-2026-0000"],
            "summary": "reads any file",
            "details": "reads any file",
            "affected": [affected],
        }
        body = json.dumps({"vulns": [flaw]} if asked["package"]["name"] == "mlflow" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def pins(workspace, monkeypatch):
    if shutil.which("pip-audit", path=str(Path(sys.executable).parent)) is None:
        pytest.skip("pip-audit is not installed (extra scan)")
    (workspace.root / "constraints.txt").write_text("mlflow==3.10.0\nrich==15.0.0\n")
    (workspace.root / "constraints-dvc.txt").write_text("dvc==3.67.0\n")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow  # pip-audit takes seconds to start
def test_vulnerabilities_are_those_that_the_server_knows(workspace, monkeypatch, pins):
    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLEMBED_OSV_URL", f"http://127.0.0.1:{server.server_port}/v1/query")
        what, found = scan.vulnerabilities(workspace)
        (finding,) = found
        server.shutdown()
    assert what.startswith("3 pinned packages")
    assert finding.name == "CVE-2026-0000"  # pip-audit calls it by its better known name
    assert finding.message == "mlflow 3.10.0 in constraints.txt: reads any file"
    assert finding.advice.startswith("take 3.11.0 in constraints.txt")


@pytest.mark.slow  # pip-audit takes seconds to start
def test_without_its_server_nothing_is_called_clean(workspace, monkeypatch, pins):
    with listening() as nobody:
        pass
    monkeypatch.setenv("MLEMBED_OSV_URL", f"http://127.0.0.1:{nobody}/v1/query")
    with pytest.raises(NotAskedError, match="pip-audit gave no answer, it needs the network"):
        scan.vulnerabilities(workspace)


def test_without_pip_audit_it_says_how_to_get_it(workspace, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(NotAskedError, match=r"pip install 'mlembed\[scan\]'"):
        scan.vulnerabilities(workspace)


@pytest.mark.parametrize(
    ("findings", "not_asked", "status"),
    [
        ([], {}, 0),
        ([], {"ports": "why"}, NOT_ASKED),
        (["known"], {}, 0),
        (["known"], {"ports": "why"}, NOT_ASKED),
        (["new"], {"ports": "why"}, FOUND),
    ],
)
def test_the_exit_code_tells_found_from_not_asked(findings, not_asked, status):
    done = Scan([Finding("c", name, "m", "a", accepted="why" if name == "known" else None) for name in findings], {"c": "w"}, not_asked)
    assert done.status == status
    assert done.as_dict()["status"] == status
    assert all(f"NOT SCANNED  {name}: {why}" in done.summary for name, why in not_asked.items())


def test_what_is_accepted_is_told_with_its_reason(workspace, monkeypatch):
    accepted = workspace.root / scan.ACCEPTED
    accepted.parent.mkdir(parents=True)
    accepted.write_text("POSTGRES_PASSWORD: a machine for trying\n")
    (workspace.root / ".env").write_text("".join(f"{name}={value}\n" for name, value in {**STRONG, SECRETS[0]: "short"}.items()))
    (workspace.root / ".env").chmod(stat.S_IRUSR)
    monkeypatch.setattr(scan, "vulnerabilities", lambda _: ("nothing", iter(())))
    monkeypatch.setattr(scan, "secrets_in_files", lambda _: ("nothing", iter(())))
    for name in ("ports", "logins"):
        monkeypatch.setattr(scan, name, lambda _: ("nothing", iter(())))
    done = scan.scan(workspace)
    assert done.status == 0
    assert "known secrets of the stack: POSTGRES_PASSWORD: has 5 characters, fewer than 16\n      → a machine for trying" in done.summary
    accepted.write_text("- POSTGRES_PASSWORD\n")
    with pytest.raises(ConfigError, match="expected lines `NAME: why it is accepted`"):
        scan.scan(workspace)
