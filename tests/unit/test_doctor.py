"""Each thing that the doctor looks at, well and ill."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from mlembed_core import doctor
from mlembed_core.artifacts import Workspace
from mlembed_core.doctor import Finding, Status

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "configs").mkdir()
    shutil.copyfile(REPOSITORY / "configs" / "params.yaml", tmp_path / "configs" / "params.yaml")
    shutil.copyfile(REPOSITORY / "constraints.txt", tmp_path / "constraints.txt")
    return Workspace(tmp_path)


@pytest.fixture
def edit(workspace: Workspace) -> Callable[[str, str], None]:
    def edit(old: str, new: str) -> None:
        text = workspace.params_file.read_text()
        assert old in text
        workspace.params_file.write_text(text.replace(old, new))

    return edit


def params_findings(workspace: Workspace) -> dict[str, Finding]:
    return {finding.name: finding for finding in doctor.check_params(workspace)}


def test_every_ill_finding_says_what_to_do(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    findings = list(doctor.diagnose(workspace.root))
    assert {"git", "dvc"} <= {finding.name for finding in findings if finding.status == Status.FAIL}
    assert all(finding.advice for finding in findings if finding.status != Status.OK)
    assert not any(finding.advice for finding in findings if finding.status == Status.OK)


def test_outside_of_a_clone(tmp_path: Path) -> None:
    findings = list(doctor.diagnose(tmp_path))
    assert findings[-1].name == "workspace"
    assert findings[-1].status == Status.FAIL


def test_packages_are_held_against_the_pins(tmp_path: Path) -> None:
    def check(text: str) -> dict[str, Finding]:
        (tmp_path / "constraints.txt").write_text(text)
        return {finding.name: finding for finding in doctor.check_packages(tmp_path / "constraints.txt")}

    real = (REPOSITORY / "constraints.txt").read_text()
    assert check(real)["packages"].status == Status.OK
    assert "numpy 2.4.6 (pinned 1.0)" in check("# old\nnumpy==1.0\n")["packages"].message
    assert check("# nothing\n")["packages"].status == Status.FAIL
    (tmp_path / "constraints.txt").unlink()
    assert next(doctor.check_packages(tmp_path / "constraints.txt")).status == Status.FAIL


def test_a_missing_package_fails_and_a_missing_extra_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = doctor._installed
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name in {"torch", "mteb", "mypy"} else installed(name))
    findings = {finding.name: finding for finding in doctor.check_packages(REPOSITORY / "constraints.txt")}
    assert findings["packages"] == Finding("packages", Status.FAIL, "missing: torch", "run `make setup` again")
    assert (findings["extras"].status, findings["extras"].message) == (Status.WARN, "not installed: mteb")


def test_a_foreign_mlembed_on_the_path_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mlembed").write_text("#!/bin/sh\n")
    (tmp_path / "mlembed").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.check_commands().status == Status.WARN
    assert str(tmp_path / "mlembed") in doctor.check_commands().message


def test_a_program_must_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    script = tmp_path / "dvc"
    script.write_text("#!/bin/sh\necho 3.67.1\n")
    script.chmod(0o755)
    assert doctor.check_program("dvc", "install it") == Finding("dvc", Status.OK, f"3.67.1 ({script})")
    script.write_text("#!/bin/sh\nexit 3\n")
    assert doctor.check_program("dvc", "install it").status == Status.FAIL


@pytest.mark.parametrize(("free", "status"), [(0.5, Status.FAIL), (3, Status.WARN), (50, Status.OK)])
def test_disk_and_memory_have_bounds(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, free: float, status: Status) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free * 2**30))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free * 2**30))
    assert doctor.check_disk(workspace).status == status
    assert doctor.check_memory().status == status


def test_a_folder_that_cannot_be_written_is_named(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_writable(workspace).status == Status.OK

    def refuse(**_: object) -> object:
        raise PermissionError(13, "Permission denied")

    # Tests may run as root, whom no mode bits stop.
    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    finding = doctor.check_writable(workspace)
    assert (finding.status, finding.message) == (Status.FAIL, f"cannot write in {workspace.root} (Permission denied)")


def test_invalid_params_are_shown(workspace: Workspace, edit: Callable[[str, str], None]) -> None:
    edit("  learning_rate:", "  learnin_rate:")
    finding = params_findings(workspace)["params"]
    assert finding.status == Status.FAIL
    assert "learnin_rate" in finding.message


def test_more_threads_than_cores(workspace: Workspace, edit: Callable[[str, str], None]) -> None:
    edit("evaluation:\n  num_threads: 1", "evaluation:\n  num_threads: 4096")
    finding = params_findings(workspace)["threads"]
    assert finding.status == Status.WARN
    assert "4096 threads" in finding.message


def test_a_local_backbone_must_be_there(workspace: Workspace) -> None:
    text = workspace.params_file.read_text()
    start, end = text.index("backbone:\n"), text.index("\ncache:")
    workspace.params_file.write_text(f"{text[:start]}backbone: {{type: local, path: given/model}}\n{text[end:]}")
    folder = workspace.root / "given" / "model"
    assert "no config.json" in params_findings(workspace)["backbone"].message.replace(f"{folder}/", "")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert "no *.safetensors" in params_findings(workspace)["backbone"].message
    (folder / "model.safetensors").write_text("")
    assert params_findings(workspace)["backbone"].status == Status.OK


@pytest.mark.parametrize("outside", [False, True])
def test_a_local_tokenizer_and_local_sources_must_be_there(
    workspace: Workspace, edit: Callable[[str, str], None], tmp_path_factory: pytest.TempPathFactory, outside: bool
) -> None:
    pairs = tmp_path_factory.mktemp("disk") / "mine" if outside else Path("mine")
    edit("tokenizer: {type: trained, vocab_size: 4000, max_length: 48}", "tokenizer: {type: local, path: tok, max_length: 48}")
    edit("sources:\n", f"sources:\n  own: {{kind: retrieval, origin: {{type: local, files: ['{pairs}/*.parquet']}}}}\n")
    findings = params_findings(workspace)
    assert findings["tokenizer"].status == Status.FAIL
    assert findings["sources.own"].status == Status.FAIL
    assert f"nothing matches '{pairs}/*.parquet'" in findings["sources.own"].message
    for name in ("tok/tokenizer.json", pairs / "a.parquet"):
        (workspace.root / name).parent.mkdir()
        (workspace.root / name).write_text("{}")
    findings = params_findings(workspace)
    assert findings["tokenizer"].status == findings["sources.own"].status == Status.OK


def test_a_database_is_looked_into(workspace: Workspace, mlflow_database: Path) -> None:
    path = workspace.root / "mlflow.db"
    assert "will be made" in doctor.check_mlflow(workspace).message
    shutil.copyfile(mlflow_database, path)
    assert doctor.check_mlflow(workspace).status == Status.OK
    path.write_bytes(b"no database " * 100)
    finding = doctor.check_mlflow(workspace)
    assert finding.status == Status.FAIL
    assert "register --all" in finding.advice


@pytest.fixture
def server() -> Iterator[int]:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    listener = HTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=listener.serve_forever)
    thread.start()
    yield listener.server_port
    listener.shutdown()
    thread.join()
    listener.server_close()


def test_a_server_is_asked(workspace: Workspace, server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server}")
    assert doctor.check_mlflow(workspace).status == Status.OK
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{port}")  # pragma: allowlist secret
    finding = doctor.check_mlflow(workspace)
    assert finding.status == Status.FAIL
    assert "secret" not in finding.message


def test_files_of_the_hub_may_be_missing_until_they_are_fetched(
    workspace: Workspace, edit: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLEMBED_DATASETS", str(tmp_path / "mirror"))
    edit("origin: {type: embedded, builder: cldr_bitext}", "origin: {type: hub, repo: team/pairs, files: [a.parquet]}")
    finding = params_findings(workspace)["sources.cldr_bitext"]
    assert (finding.status, finding.message) == (Status.WARN, "files of team/pairs are not on this machine yet")
    assert "`mlembed prefetch --sources`" in finding.advice
    folder = tmp_path / "mirror" / "team" / "pairs" / ("1" * 40)
    folder.mkdir(parents=True)
    (folder / "a.parquet").touch()
    assert params_findings(workspace)["sources.cldr_bitext"].message == "1 files of team/pairs at 111111111111 are there"
