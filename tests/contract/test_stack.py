"""The team stack's files agree: the compose file is what both ways of starting read, and nothing secret or open stands in it."""

import os
import re
import shutil
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import ConfigError, MachineError
from workflows import stack
from workflows.stack import SECRETS, Service, interpolate, native_variables, read_services

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
SET = {name: f"secret-{name}" for name in SECRETS}


def compose(**variables):
    text, _ = interpolate(COMPOSE.read_text(), {**SET, **variables})
    return yaml.safe_load(text)


def test_natively_every_address_is_loopback_and_every_folder_our_own(tmp_path):
    services = read_services(COMPOSE, {**SET, **native_variables(Workspace(ROOT), tmp_path)})
    assert services[0].name == "postgres"
    words = [word for service in services for word in (*service.command, *service.check, *service.environment.values())]
    assert not [word for word in words if "0.0.0.0" in word or "/var/lib" in word or "${" in word]
    hosts = [value for service in services for name, value in service.environment.items() if name.endswith("HOST")]
    assert set(hosts) == {"127.0.0.1"}
    assert {service.environment["MLEMBED_LAUNCHER"] for service in services if service.name == "code"} == {""}  # nobody chose one


def test_a_service_comes_after_those_it_waits_for():
    names = [service.name for service in read_services(COMPOSE, SET)]
    for service in read_services(COMPOSE, SET):
        assert all(names.index(name) < names.index(service.name) for name in service.after)


@pytest.mark.parametrize("name", SECRETS)
def test_a_missing_secret_is_named(name):
    with pytest.raises(ConfigError, match=rf"^{name}: not set"):
        read_services(COMPOSE, {**SET, name: ""})


def test_ports_are_published_on_loopback_unless_told_otherwise():
    published = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:5000:5000", "127.0.0.1:3000:3000"]
    assert "0.0.0.0:5000:5000" in compose(BIND="0.0.0.0")["services"]["mlflow"]["ports"]


def test_services_are_pinned_checked_and_restarted():
    for name, service in compose()["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["restart"] == "unless-stopped", name
        assert re.search(r":(local|\d+\.\d+)", service["image"]), name


def test_secrets_come_from_the_environment_only():
    text = COMPOSE.read_text()
    for line in text.splitlines():
        if re.search(r"(PASSWORD|SECRET_KEY)\b.*:\s", line) and not line.lstrip().startswith("#"):
            assert re.search(r": \$\{[A-Z_]+:\?", line), line
    example = (ROOT / ".env.example").read_text()
    assert re.findall(r"^([A-Z_]+)=$", example, re.MULTILINE) == list(SECRETS)


def test_no_secret_stands_in_a_command():
    for service in read_services(COMPOSE, SET):
        assert not [word for word in (*service.command, *service.check) if "secret-" in word], service.name


def test_dagsters_instance_is_the_local_one_with_another_storage():
    local, team = (yaml.safe_load((ROOT / path).read_text()) for path in ("configs/dagster.yaml", "configs/stack/dagster.yaml"))
    assert team.pop("storage") == {"postgres": {"postgres_url": "postgresql+psycopg2:///dagster"}}
    assert team == local


def test_variables_are_filled_in_as_compose_does():
    text, missing = interpolate("a ${A} b ${B:-c} ${D:?why} $${E} ${F:-}", {"A": "1", "D": ""})
    assert text == "a 1 b c  ${E} "
    assert missing == ["D"]


def test_a_comment_needs_no_variable():
    assert interpolate("# ${NO:?way}\nx: 1", {}) == ("# ${NO:?way}\nx: 1", [])


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="no docker-compose here to read the files with")
@pytest.mark.parametrize("files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.gpu.yml")])
def test_compose_takes_the_files(files):
    options = [word for name in files for word in ("-f", str(ROOT / name))]
    done = subprocess.run(["docker-compose", *options, "config", "-q"], env={**os.environ, **SET}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_no_database_is_left_alone(tmp_path, monkeypatch):
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "initdb").touch(mode=0o755)  # the server's programs need not be here for this
    monkeypatch.setattr(stack, "_account", lambda: None)
    variables = {**SET, **native_variables(Workspace(ROOT), tmp_path)}
    service = next(service for service in read_services(COMPOSE, variables) if service.name == "postgres")
    (tmp_path / "postgres" / "data").mkdir(parents=True)
    (tmp_path / "postgres" / "data" / "mine").touch()
    with pytest.raises(MachineError, match="no database of PostgreSQL"):
        stack._postgres(service, tmp_path, service.environment | {"PATH": str(bin_folder)}, ROOT)
    assert (tmp_path / "postgres" / "data" / "mine").is_file()


def service(name, *after):
    return Service(name, [name], {}, [], list(after))


class Order:
    """Services that become healthy when told, in the place of programs; `started` is the order of their start."""

    def __init__(self, monkeypatch, slow=(), broken=()):
        self.started, self.slow, self.broken, self.released = [], slow, broken, threading.Event()
        monkeypatch.setattr(stack, "wait_until_healthy", self.wait)

    def start(self, service):
        self.started.append((service.name, threading.current_thread() is threading.main_thread()))
        return service.name

    def wait(self, service, _program, _root):
        if service.name in self.broken:
            raise MachineError(f"{service.name} did not become healthy")
        if service.name in self.slow:
            assert self.released.wait(10)

    def run(self, *services):
        with ThreadPoolExecutor(len(services)) as pool:
            try:
                stack.start_in_order(services, self.start, ROOT, pool)
            finally:
                self.released.set()


def test_services_start_side_by_side_as_far_as_they_do_not_wait_for_each_other(monkeypatch):
    order = Order(monkeypatch, slow=("registry",))
    threading.Timer(0.2, order.released.set).start()
    order.run(
        service("database"),
        service("registry", "database"),
        service("code", "database"),
        service("pages", "code"),
        service("last", "registry"),
    )
    # The pages did not wait for the registry; the kernel ends a program with the thread that started it, so that has to be this one.
    assert order.started == [(name, True) for name in ("database", "registry", "code", "pages", "last")]


def test_a_service_that_fails_stops_the_start(monkeypatch):
    order = Order(monkeypatch, broken=("code",))
    with pytest.raises(MachineError, match="code did not become healthy"):
        order.run(service("database"), service("code", "database"), service("pages", "code"))
    assert [name for name, _ in order.started] == ["database", "code"]
