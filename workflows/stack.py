"""The team stack as plain processes: what ``docker-compose.yml`` describes, without containers.

    python -m workflows.stack                   # start everything, wait until it is healthy, print the addresses; until Ctrl-C
    python -m workflows.stack secrets > .env    # random secrets for a new stack
    python -m workflows.stack backup FOLDER     # while it runs; `restore FOLDER` puts it back into a stack without a database

The compose file is the one description: commands, environments, health checks and the order of the start are read from it. What differs
are the values of its variables (``native_variables``): addresses are loopback, folders lie in ``.stack/``. PostgreSQL comes from the
system's package and is set up as its container would be.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import re
import secrets
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from dotenv import dotenv_values

from assets.graph import dvc_environment
from mlembed_core.artifacts import Workspace
from mlembed_core.errors import ConfigError, MachineError
from workflows.code_server import HOST
from workflows.ui import LOOK_EVERY_S, Program, stay, telling_errors

COMPOSE = "docker-compose.yml"
DATABASES = "databases.tar"  # of a backup
ENV_FILE = ".env"
HOME = "MLEMBED_STACK"  # where the native stack keeps its state, instead of .stack/
SECRETS = ("POSTGRES_PASSWORD", "MLFLOW_DB_PASSWORD", "DAGSTER_DB_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY")
VARIABLE = re.compile(r"\$\$|\$\{(?P<name>[A-Z][A-Z0-9_]*)(?:(?P<kind>:[-?])(?P<rest>[^{}]*))?\}")
HEALTHY_WITHIN_S = 180.0
ENTRYPOINT = "/docker-entrypoint-initdb.d/"  # scripts that the postgres image runs in a new server
SERVER_PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))  # Debian keeps them off PATH
# From our own environment, services get what finds programs and files; what they are told stands in the compose file.
INHERITED = (
    *("HOME", "LANG", "LC_ALL", "PATH", "PYTHONPATH", "TMPDIR", "TZ", "USER"),
    *("HTTPS_PROXY", "HF_ENDPOINT", "HF_HOME", "HF_HUB_OFFLINE"),
)


@dataclass(frozen=True)
class Service:
    """A service of the compose file, its variables filled in.

    Attributes:
        check: the command of its health check.
        after: services that must be healthy first.
        mounts: (source, target) of the files and folders bound into it.
    """

    name: str
    command: list[str]
    environment: dict[str, str]
    check: list[str]
    after: list[str]
    mounts: list[tuple[str, str]] = field(default_factory=list)


def read_services(file: Path, variables: Mapping[str, str]) -> list[Service]:
    """The services of a compose file, each after those that it waits for.

    Raises:
        ConfigError: variables that must be set are not; all are named.
    """
    text, missing = interpolate(file.read_text(encoding="utf-8"), variables)
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: not set, and the stack does not start without. `python -m workflows.stack secrets > {ENV_FILE}` makes "
            f"random ones; {ENV_FILE}.example says what each is"
        )
    waiting = {name: _service(name, body) for name, body in yaml.safe_load(text)["services"].items()}
    ordered: list[Service] = []
    while waiting:
        ready = [service for service in waiting.values() if all(name not in waiting for name in service.after)]
        if not ready:
            raise ConfigError(f"{file.name}: {', '.join(waiting)} wait for each other")
        ordered += ready
        for service in ready:
            del waiting[service.name]
    return ordered


def _service(name: str, body: Mapping[str, Any]) -> Service:
    mounts = [str(volume).split(":")[:2] for volume in body.get("volumes", [])]
    return Service(
        name=name,
        command=[str(word) for word in body["command"]],
        # An empty value is YAML's null, which is not the word None.
        environment={key: "" if value is None else str(value) for key, value in body.get("environment", {}).items()},
        check=[str(word) for word in body["healthcheck"]["test"][1:]],
        after=list(body.get("depends_on", {})),
        mounts=[(source, target) for source, target in mounts if source.startswith(".")],
    )


def home_of(workspace: Workspace) -> Path:
    """Where the native stack keeps its state."""
    return Path(os.environ.get(HOME) or workspace.root / ".stack").resolve()


def interpolate(text: str, variables: Mapping[str, str]) -> tuple[str, list[str]]:
    """Fill in ``${NAME}``, ``${NAME:-default}`` and ``${NAME:?reason}`` as Compose does; also the names that must be set and are not."""
    missing: dict[str, None] = {}

    def fill(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        value = variables.get(match["name"], "")
        if not value and match["kind"] == ":?":
            missing[match["name"]] = None
        return value or (match["rest"] if match["kind"] == ":-" else "")

    lines = [line if line.lstrip().startswith("#") else VARIABLE.sub(fill, line) for line in text.splitlines()]
    return "\n".join(lines), list(missing)


def variables_of(workspace: Workspace) -> dict[str, str]:
    """What stands in ``.env``, and above it the process's environment, as Compose has it."""
    from_file = {name: value for name, value in dotenv_values(workspace.root / ENV_FILE, interpolate=False).items() if value is not None}
    return {**from_file, **os.environ}


def native_variables(workspace: Workspace, home: Path) -> dict[str, str]:
    """What the compose file's variables are where there are no containers: one host, folders of our own."""
    ports = {name: variables_of(workspace).get(name, default) for name, default in DEFAULT_PORTS.items()}
    return {
        **ports,
        "LISTEN": HOST,
        "POSTGRES_HOST": HOST,
        "MLFLOW_HOST": HOST,
        "CODE_HOST": HOST,
        "WORKSPACE": str(workspace.root),
        "PGDATA": str(home / "postgres" / "data"),
        "ARTIFACTS": str(home / "artifacts"),
        "DAGSTER_HOME": str(home / "dagster"),
        "MLFLOW_ALLOWED_HOSTS": ",".join(f"{host}{port}" for host in ("localhost", HOST) for port in ("", f":{ports['MLFLOW_PORT']}")),
    }


DEFAULT_PORTS = {"POSTGRES_PORT": "5433", "MLFLOW_PORT": "5000", "CODE_PORT": "4000", "DAGSTER_PORT": "3000"}


@dataclass
class Stack:
    """The running services, in the order of their start."""

    variables: Mapping[str, str]
    services: list[Service]
    programs: dict[str, Program]

    @property
    def dagster(self) -> str:
        return f"http://{HOST}:{self.variables['DAGSTER_PORT']}"

    @property
    def mlflow(self) -> str:
        return f"http://{HOST}:{self.variables['MLFLOW_PORT']}"


@contextlib.contextmanager
def running(workspace: Workspace) -> Iterator[Stack]:
    """The stack while the body runs.

    Raises:
        ConfigError: secrets are missing.
        MachineError: PostgreSQL is not installed, or a service did not become healthy; its log is named.
    """
    home = home_of(workspace)
    variables = {**variables_of(workspace), **native_variables(workspace, home)}
    services = read_services(workspace.root / COMPOSE, variables)
    logs = home / "logs"
    for folder in (logs, home / "artifacts", home / "dagster"):
        folder.mkdir(parents=True, exist_ok=True)
    home.chmod(0o711)  # PostgreSQL's account passes through it
    programs: dict[str, Program] = {}

    def start(service: Service) -> Program:
        _link_mounts(service, workspace.root, home)
        environment = _environment(service)
        command = service.command
        if service.name == "postgres":
            command = _postgres(service, home, environment, workspace.root)
        program = programs[service.name] = Program(service.name, command, logs / f"{service.name}.log", environment)
        program.ensure_running(workspace.root)
        return program

    # Left last: whoever still waits for a service ends with it.
    with ThreadPoolExecutor(len(services)) as pool:
        try:
            start_in_order(services, start, workspace.root, pool)
            yield Stack(variables, services, programs)
        finally:
            # The database last: the others end their transactions.
            list(pool.map(Program.stop, [program for name, program in programs.items() if name != "postgres"]))
            if "postgres" in programs:
                programs["postgres"].stop()


def start_in_order(services: Sequence[Service], start: Callable[[Service], Program], root: Path, pool: ThreadPoolExecutor) -> None:
    """Start each service as soon as those it waits for are healthy, and wait until all are.

    This thread starts them, since the kernel kills a program when the thread that started it ends; those of ``pool`` only wait.

    Raises:
        MachineError: see :func:`wait_until_healthy`.
    """
    waiting, well = list(services), set[str]()
    checks: dict[Future[None], str] = {}
    while waiting or checks:
        for service in [service for service in waiting if well.issuperset(service.after)]:
            waiting.remove(service)
            checks[pool.submit(wait_until_healthy, service, start(service), root)] = service.name
        for done in wait(checks, return_when=FIRST_COMPLETED).done:
            done.result()
            well.add(checks.pop(done))


def wait_until_healthy(service: Service, program: Program, root: Path) -> None:
    """Raises MachineError where a service ends, or is not healthy in time."""
    end = time.monotonic() + HEALTHY_WITHIN_S
    while not healthy(service, program.environment, root):
        if program.process is None or program.process.poll() is not None or time.monotonic() > end:
            raise MachineError(f"{service.name} did not become healthy; the reason stands at the end of {program.log}")
        time.sleep(LOOK_EVERY_S)


def healthy(service: Service, environment: Mapping[str, str], root: Path) -> bool:
    """Whether the service's own check says so."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return subprocess.run(service.check, cwd=root, env=environment, capture_output=True, timeout=30).returncode == 0
    return False


def _environment(service: Service) -> dict[str, str]:
    ours = _with_server_programs()
    inherited = {name: ours[name] for name in INHERITED if name in ours}
    return {**inherited, **{name: value for name, value in service.environment.items() if value}}


def _link_mounts(service: Service, root: Path, home: Path) -> None:
    """Files that a container would see under a folder of its own are linked there."""
    for source, target in service.mounts:
        path = Path(target)
        if path.is_relative_to(home) and not path.is_symlink():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to((root / source).resolve())


def _postgres(service: Service, home: Path, environment: dict[str, str], root: Path) -> list[str]:
    """The command that runs the server, set up as its image does: a new data folder, the password, the scripts of the entry point."""
    if shutil.which("initdb", path=environment["PATH"]) is None:
        raise MachineError("PostgreSQL's server programs are not installed; on Debian: apt-get install postgresql")
    account = _account()
    data = Path(environment["PGDATA"])
    folder = home / "postgres"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)  # whoever reaches the socket needs no password
    if account:
        shutil.chown(folder, account)
    sockets = ["-c", f"unix_socket_directories={folder}"]
    if not (data / "PG_VERSION").is_file():
        if data.exists():
            raise MachineError(f"{data} is no database of PostgreSQL (it has no PG_VERSION); mend it, or move it away and restore a backup")
        print("making a new database …", flush=True)
        draft = folder / "data.partial"
        options: dict[str, Any] = {
            "env": {**environment, "PGHOST": str(folder)},
            "cwd": folder,
            "check": True,
            "stdout": subprocess.DEVNULL,
        }
        shutil.rmtree(draft, ignore_errors=True)
        password = folder / "password"
        password.touch(mode=0o600)
        password.write_text(environment["POSTGRES_PASSWORD"], encoding="utf-8")
        if account:
            shutil.chown(password, account)
        try:
            arguments = environment["POSTGRES_INITDB_ARGS"].split()
            subprocess.run(_as(account, ["initdb", "-D", str(draft), "-U", "postgres", f"--pwfile={password}", *arguments]), **options)
            # As the image's entry point: the scripts run in a server that only listens to its socket.
            server = f"-c listen_addresses='' -c port={environment['PGPORT']} -c unix_socket_directories={folder}"
            subprocess.run(_as(account, ["pg_ctl", "-D", str(draft), "-w", "-o", server, "start"]), **options)
            for source, target in service.mounts:
                if target.startswith(ENTRYPOINT):
                    subprocess.run(["sh", str((root / source).resolve())], **options)
        finally:
            password.unlink()
            if (draft / "postmaster.pid").is_file():
                subprocess.run(_as(account, ["pg_ctl", "-D", str(draft), "-w", "-m", "fast", "stop"]), **options)
        draft.rename(data)
    return _as(account, [*service.command, *sockets, "-D", str(data)])


def backup(workspace: Workspace, target: Path) -> None:
    """Copy the state of a running stack to the new folder ``target``: the databases as of one moment, then the artifacts.

    In that order, since an artifact is written before a database speaks of it.

    Raises:
        MachineError: the folder is there already, or PostgreSQL does not run.
    """
    if target.exists():
        raise MachineError(f"{target} is there already; a backup goes into a new folder")
    home = home_of(workspace)
    port = native_variables(workspace, home)["POSTGRES_PORT"]
    draft = target.with_name(f"{target.name}.partial")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    where = [f"--host={home / 'postgres'}", f"--port={port}", "--username=postgres"]
    command = ["pg_basebackup", *where, "--pgdata=-", "--format=tar", "--wal-method=fetch", "--checkpoint=fast"]
    with (draft / DATABASES).open("wb") as handle:
        done = subprocess.run(command, stdout=handle, stderr=subprocess.PIPE, text=True, env=_with_server_programs(), check=False)
    if done.returncode:
        shutil.rmtree(draft)
        raise MachineError(f"no backup: {done.stderr.strip()}")
    shutil.copytree(home / "artifacts", draft / "artifacts")
    draft.rename(target)


def restore(workspace: Workspace, source: Path) -> None:
    """Put a backup into a stack that has no database (yet, or any more).

    Raises:
        MachineError: no backup, or there is a database, which is left alone.
    """
    home = home_of(workspace)
    folder, account = home / "postgres", _account()
    if not (source / DATABASES).is_file():
        raise MachineError(f"{source} is no backup: it has no {DATABASES}")
    if (folder / "data").exists() or any(home.glob("artifacts/*")):
        raise MachineError(f"{home} has a database or artifacts; a backup replaces none. Move them away first")
    draft = folder / "data.partial"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True, mode=0o700)
    with tarfile.open(source / DATABASES) as archive:
        archive.extractall(draft, filter="data")
    draft.chmod(0o700)
    for path in (folder, draft, *draft.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
        if account:
            shutil.chown(path, account)
    shutil.copytree(source / "artifacts", home / "artifacts", dirs_exist_ok=True)
    draft.rename(folder / "data")


def _with_server_programs() -> dict[str, str]:
    environment = dvc_environment()
    return {**environment, "PATH": os.pathsep.join([environment["PATH"], *map(str, SERVER_PROGRAMS[-1:])])}


def _account() -> str | None:
    """Whom PostgreSQL runs as where we are root, which it refuses to be.

    Raises:
        MachineError: the package's account is missing.
    """
    if os.getuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise MachineError("PostgreSQL does not run as root, and there is no account `postgres`; start the stack as another user") from None


def _as(account: str | None, command: list[str]) -> list[str]:
    return command if account is None else ["setpriv", f"--reuid={account}", f"--regid={account}", "--init-groups", *command]


def print_secrets() -> None:
    """Lines for a new ``.env``."""
    for name in SECRETS:
        print(f"{name}={secrets.token_urlsafe(24)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="The team stack without containers, until Ctrl-C")
    parser.add_argument("action", nargs="?", choices=("up", "secrets", "backup", "restore"), default="up")
    parser.add_argument("folder", nargs="?", type=Path, help="of the backup")
    arguments = parser.parse_args()
    if arguments.action == "secrets":
        print_secrets()
        return
    workspace = Workspace.find()
    if arguments.action in ("backup", "restore"):
        if arguments.folder is None:
            parser.error(f"{arguments.action} needs a folder")
        with telling_errors():
            (backup if arguments.action == "backup" else restore)(workspace, arguments.folder)
        return

    def told(stack: Stack) -> tuple[str, list[Program]]:
        words = f"Dagster  {stack.dagster}\nMLflow   {stack.mlflow} (with your account)\nCtrl-C stops everything; nothing is lost."
        return words, list(stack.programs.values())

    stay(workspace, "PostgreSQL, MLflow and Dagster", running(workspace), told)


if __name__ == "__main__":
    main()
