"""What could be open about the team stack, looked for in one go: ``python -m workflows.scan`` (``make scan``).

Four questions: do the pinned packages have known vulnerabilities (pip-audit, which asks a server), do secrets stand in files under version
control (detect-secrets), does something of the running stack listen elsewhere than on loopback, and does a password that nobody chose
open it. Nothing is changed. It exits with 0 where all was asked and nothing found, with 12 where something was found, and with 13
where nothing was found but not all could be asked, each with the reason: what was not scanned is not clean.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psutil
import yaml

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import ConfigError
from workflows.code_server import HOST
from workflows.stack import ENV_FILE, SECRETS, home_of, native_variables, variables_of
from workflows.ui import telling_errors

FOUND, NOT_ASKED = 12, 13  # exit codes
PINS = "constraints*.txt"
ACCEPTED = Path("configs") / "stack" / "accepted.yaml"
SERVICE = "osv"  # of pip-audit: one that is made for being asked about many packages
AUDIT_TIMEOUT_S = 300
SHORTEST_SECRET = 16  # characters; those that `python -m workflows.stack secrets` makes have 32
# What MLflow sets up without a configuration of its own, what PostgreSQL's image and tutorials use, and what people type.
KNOWN_PASSWORDS = ("password1234", "password", "postgres", "mlflow", "dagster", "admin", "changeme", "secret")
# Detectors of something that is a secret by its form. Those of mere randomness find every hash and commit of this repository.
DETECTORS = (
    "AWSKeyDetector",
    "ArtifactoryDetector",
    "AzureStorageKeyDetector",
    "BasicAuthDetector",
    "GitHubTokenDetector",
    "GitLabTokenDetector",
    "JwtTokenDetector",
    "KeywordDetector",
    "NpmDetector",
    "OpenAIDetector",
    "PrivateKeyDetector",
    "PypiTokenDetector",
    "SlackDetector",
)


@dataclass(frozen=True)
class Finding:
    """Something that is open, or may be.

    Attributes:
        name: of the vulnerability, file, port or account: what ``configs/stack/accepted.yaml`` calls it by.
        accepted: why it stays as it is; None: it should not.
    """

    check: str
    name: str
    message: str
    advice: str
    accepted: str | None = None


@dataclass
class Scan:
    """Everything that was asked.

    Attributes:
        asked: check → what it looked at.
        not_asked: check → why not.
    """

    findings: list[Finding] = field(default_factory=list)
    asked: dict[str, str] = field(default_factory=dict)
    not_asked: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The exit code."""
        if any(finding.accepted is None for finding in self.findings):
            return FOUND
        return NOT_ASKED if self.not_asked else 0

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "status": self.status}

    @property
    def summary(self) -> str:
        lines = [f"ok    {check}: {what}" for check, what in self.asked.items() if not self._of(check)]
        for finding in self.findings:
            known = finding.accepted is not None
            lines.append(f"{'known' if known else 'FOUND'} {finding.check}: {finding.name}: {finding.message}")
            lines.append(f"      → {finding.accepted if known else finding.advice}")
        return "\n".join(lines + [f"NOT SCANNED  {check}: {why}" for check, why in self.not_asked.items()])

    def _of(self, check: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.check == check]


class NotAskedError(Exception):
    """A check that could not be made here; the message says why."""


def scan(workspace: Workspace) -> Scan:
    """Ask everything that can be asked here.

    Raises:
        ConfigError: the list of what is accepted is none.
    """
    accepted = _accepted(workspace)
    done = Scan()
    checks: dict[str, Callable[[], tuple[str, Iterator[Finding]]]] = {
        "vulnerabilities": lambda: vulnerabilities(workspace),
        "secrets in files": lambda: secrets_in_files(workspace),
        "secrets of the stack": lambda: secrets_of_the_stack(workspace),
        "ports": lambda: ports(workspace),
        "logins": lambda: logins(workspace),
    }
    for check, ask in checks.items():
        try:
            what, found = ask()
            for each in found:
                done.findings.append(replace(each, accepted=accepted.get(each.name)))
            done.asked[check] = what
        except NotAskedError as why:
            done.not_asked[check] = str(why)
    return done


def _accepted(workspace: Workspace) -> dict[str, str]:
    """Name of a finding → why it is left as it is."""
    path = workspace.root / ACCEPTED
    found = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    if not isinstance(found or {}, dict) or not all(isinstance(why, str) and why.strip() for why in (found or {}).values()):
        raise ConfigError(f"{ACCEPTED}: expected lines `NAME: why it is accepted`, with the names that the scan prints")
    return {str(name): why for name, why in (found or {}).items()}


def vulnerabilities(workspace: Workspace) -> tuple[str, Iterator[Finding]]:
    """Known vulnerabilities of the pinned packages; every version counts, also of extras that are not installed."""
    program = shutil.which("pip-audit", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    if program is None:
        raise NotAskedError("pip-audit is not installed (pip install 'mlembed[scan]')")
    found = {file.name: _audited(program, file) for file in sorted(workspace.root.glob(PINS))}
    packages = sum(len(each) for each in found.values())

    def each() -> Iterator[Finding]:
        for file, dependencies in found.items():
            for package in dependencies:
                for flaw in package.get("vulns", []):
                    fixed = ", ".join(flaw["fix_versions"])
                    advice = f"take {fixed} in {file}" if fixed else "no fixed version yet"
                    words = " ".join(str(flaw.get("description", "")).split())[:200]
                    called = " ".join([package["name"], package["version"]])
                    message = f"{called} in {file}: {words}"
                    yield Finding("vulnerabilities", flaw["id"], message, f"{advice}, or say in {ACCEPTED} why it does not concern you")

    return f"{packages} pinned packages, none with a known vulnerability", each()


def _audited(program: str, file: Path) -> list[dict[str, Any]]:
    """pip-audit's answer on one file of pins.

    Raises:
        NotAskedError: it gave none; the vulnerabilities' server cannot be reached, for instance.
    """
    options = ["--requirement", str(file), "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    options += ["--vulnerability-service", SERVICE, *(["--osv-url", url] if (url := os.environ.get("MLEMBED_OSV_URL")) else [])]
    try:
        done = subprocess.run([program, *options], capture_output=True, text=True, timeout=AUDIT_TIMEOUT_S, check=False)
        return list(json.loads(done.stdout)["dependencies"])
    except subprocess.TimeoutExpired:
        raise NotAskedError(f"pip-audit had no answer within {AUDIT_TIMEOUT_S} s; it needs the network") from None
    except (ValueError, KeyError):
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["(it said nothing)"]
        raise NotAskedError(f"pip-audit gave no answer, it needs the network: {said[-1][:300]}") from None


def secrets_in_files(workspace: Workspace) -> tuple[str, Iterator[Finding]]:
    """Keys, tokens and passwords in the files that git has; and whether it would take ``.env``."""
    try:
        from detect_secrets import SecretsCollection
        from detect_secrets.settings import transient_settings
    except ImportError:
        raise NotAskedError("detect-secrets is not installed (pip install 'mlembed[scan]')") from None
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=workspace.root, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise NotAskedError(f"{workspace.root} is no git repository, so nothing says which files are shared")
    names = [name for name in listed.stdout.split("\0") if name and (workspace.root / name).is_file()]
    secrets = SecretsCollection(root=str(workspace.root))
    with transient_settings({"plugins_used": [{"name": name} for name in DETECTORS]}):
        for name in names:
            secrets.scan_file(name)

    def each() -> Iterator[Finding]:
        advice = "replace it, and take it out of the history; where it is none, end the line with `pragma: allowlist secret`"
        for name, secret in secrets:
            yield Finding("secrets in files", f"{name}:{secret.line_number}", secret.type, advice)
        if ENV_FILE in names:
            yield Finding("secrets in files", ENV_FILE, "is under version control", f"git rm --cached {ENV_FILE}, and make new secrets")

    return f"{len(names)} files under version control, none with a secret", each()


def secrets_of_the_stack(workspace: Workspace) -> tuple[str, Iterator[Finding]]:
    """The values of ``.env`` or the environment: there, long, no two alike, none that everybody knows; and the file's mode."""
    file = workspace.root / ENV_FILE
    variables = variables_of(workspace)
    values = {name: variables[name] for name in SECRETS if name in variables}
    if not values:
        raise NotAskedError(f"there is no {ENV_FILE} and no secret in the environment")
    return f"{len(SECRETS)} secrets, each its own and long enough", _weak(file, values)


def _weak(file: Path, values: Mapping[str, str]) -> Iterator[Finding]:
    advice = "take one that `python -m workflows.stack secrets` prints (changing those of a database: docs/operations.md)"
    for name in SECRETS:
        value = values.get(name, "")
        others = [other for other in SECRETS if other != name and values.get(other) == value]
        if not value:
            reason = "is empty"
        elif value.lower() in KNOWN_PASSWORDS:
            reason = "is one that everybody knows"
        elif len(value) < SHORTEST_SECRET:
            reason = f"has {len(value)} characters, fewer than {SHORTEST_SECRET}"
        elif others:
            reason = f"is that of {', '.join(others)}, too"
        else:
            continue
        yield Finding("secrets of the stack", name, reason, advice)
    if file.is_file() and file.stat().st_mode & 0o077:
        mode = f"can be read by others (mode {file.stat().st_mode & 0o777:o})"
        yield Finding("secrets of the stack", ENV_FILE, mode, f"chmod 600 {ENV_FILE}")


def ports(workspace: Workspace) -> tuple[str, Iterator[Finding]]:
    """Addresses on which the stack's programs listen, those below them included."""
    listening = _listening(_numbers(workspace))

    def each() -> Iterator[Finding]:
        for (address, port), name in sorted(listening.items()):
            if not _is_loopback(address):
                advice = "unset BIND; for others, put a proxy with TLS and authentication in front (docs/team_stack.md)"
                yield Finding("ports", f"{address}:{port}", f"{name} can be reached from other machines", advice)

    found = ", ".join(f"{port} ({name})" for (_, port), name in sorted(listening.items(), key=lambda item: item[0][1]))
    return f"on loopback only: {found}", each()


def _is_loopback(address: str) -> bool:
    found = ip_address(address)
    # A socket that speaks both versions has 127.0.0.1 as ::ffff:127.0.0.1, which Python does not call loopback before 3.13.
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def _numbers(workspace: Workspace) -> dict[int, str]:
    """Port → service, of the stack as it would start here."""
    variables = native_variables(workspace, home_of(workspace))
    return {int(value): name.removesuffix("_PORT").lower() for name, value in variables.items() if name.endswith("_PORT") and value}


def _listening(numbers: Mapping[int, str]) -> dict[tuple[str, int], str]:
    """(address, port) → service, of everything that listens on the stack's ports, and below whoever does.

    Raises:
        NotAskedError: nothing listens there, or the system does not say.
    """
    try:
        sockets = [(*each.laddr, each.pid) for each in psutil.net_connections(kind="tcp") if each.status == psutil.CONN_LISTEN]
    except psutil.AccessDenied:
        raise NotAskedError("this system lets only root see who listens") from None
    found = {(address, port): numbers[port] for address, port, _ in sockets if port in numbers}
    if not found:
        raise NotAskedError(f"the stack is not running here: nobody listens on {', '.join(map(str, sorted(numbers)))}")
    owners = {pid: numbers[port] for _, port, pid in sockets if port in numbers and pid}
    below = {pid: name for owner, name in owners.items() for pid in _tree(owner)}
    return {(address, port): below[pid] for address, port, pid in sockets if pid in below} | found


def _tree(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def logins(workspace: Workspace) -> tuple[str, Iterator[Finding]]:
    """Whether MLflow and PostgreSQL, as they run here, let in whoever knows no password of ours."""
    services = {name: port for (_, port), name in _listening(_numbers(workspace)).items() if name in ("mlflow", "postgres")}
    if not services:
        raise NotAskedError("neither MLflow nor PostgreSQL runs here")
    asked = {"mlflow": _open_to_mlflow, "postgres": _open_to_postgres}

    def each() -> Iterator[Finding]:
        for name in services:
            port = int(native_variables(workspace, home_of(workspace))[f"{name.upper()}_PORT"])
            for account in asked[name](port):
                yield Finding("logins", f"{name} {account}", "is let in", "change it (docs/operations.md, Security)")

    return f"{' and '.join(sorted(services))} turn away everybody without an account, and known passwords", each()


def _open_to_mlflow(port: int) -> Iterator[str]:
    for password in (None, *KNOWN_PASSWORDS):
        call = urllib.request.Request(f"http://{HOST}:{port}/api/2.0/mlflow/experiments/search?max_results=1")  # our own server
        if password is not None:
            call.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
        try:
            with urllib.request.urlopen(call, timeout=10):  # noqa: S310
                yield "anybody" if password is None else f"admin with the password {password!r}"
        except urllib.error.HTTPError as error:
            if error.code not in (401, 403):
                raise NotAskedError(f"MLflow answered {error.code}") from None
        except OSError as error:
            raise NotAskedError(f"MLflow did not answer: {error}") from None


def _open_to_postgres(port: int) -> Iterator[str]:
    try:
        import psycopg2
    except ImportError:
        raise NotAskedError("psycopg2 is not installed (pip install 'mlembed[stack]')") from None
    for user in ("postgres", "mlflow", "dagster"):
        for password in ("none", *KNOWN_PASSWORDS):  # libpq insists on one; where none is asked for, any will do
            try:
                psycopg2.connect(host=HOST, port=port, user=user, password=password, dbname="postgres", passfile="/dev/null").close()
            except psycopg2.OperationalError as error:
                if "authentication failed" not in str(error):
                    raise NotAskedError(f"PostgreSQL did not answer: {str(error).strip()}") from None
            else:
                yield f"{user} with the password {password!r}"
                break


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON, for machines")
    as_json = parser.parse_args(arguments).json
    with telling_errors():
        done = scan(Workspace.find())
        print(json.dumps(done.as_dict(), indent=1) if as_json else done.summary)
        sys.exit(done.status)


if __name__ == "__main__":
    main()
