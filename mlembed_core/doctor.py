"""``mlembed doctor``: what on this machine or in this clone would stop the pipeline, each with what to do.

Nothing is changed and nothing heavy is imported: the doctor must work where torch or MLflow do not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from mlembed_core.artifacts import Workspace
from mlembed_core.config.data import HubOrigin, HubTokenizer, LocalOrigin, LocalTokenizer
from mlembed_core.config.load import load_all
from mlembed_core.config.model import HubBackbone, LocalBackbone, RegistryBackbone
from mlembed_core.config.params import Params
from mlembed_core.errors import MachineError, MlembedError
from mlembed_core.train.tracking import tracking_uri, without_secrets

GIB = 2**30
# Measured on the demo: an environment of 3.5 GB beside it, outs and DVC's copies of under 1 GB, a peak of 6 GB of memory at most.
DISK_FAIL_GIB, DISK_WARN_GIB = 1.0, 5.0
MEMORY_FAIL_GIB, MEMORY_WARN_GIB = 2.0, 6.0
PROGRAM_TIMEOUT_S = 30
SERVER_TIMEOUT_S = 5


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What one check found; ``advice`` is empty where all is well."""

    name: str
    status: Status
    message: str
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def diagnose(start: Path | None = None) -> Iterator[Finding]:
    """All checks, one after the other.

    Args:
        start: where to look for the workspace (default: the current folder).
    """
    yield check_python()
    try:
        workspace = Workspace.find(start)
    except MlembedError as error:
        yield Finding("workspace", Status.FAIL, str(error).split(". ")[0], "run it inside a clone of the project")
        return
    yield Finding("workspace", Status.OK, str(workspace.root))
    yield from check_packages(workspace.root / "constraints.txt")
    yield check_commands()
    yield check_program("git", "install git: DVC keeps its outs by commit, and runs are tagged with theirs")
    yield check_program("dvc", "`make setup` installs DVC beside the environment and links it into .venv/bin")
    yield check_orchestrators_apart()
    yield check_disk(workspace)
    yield check_memory()
    yield check_writable(workspace)
    yield from check_params(workspace)
    yield check_mlflow(workspace)


def check_python() -> Finding:
    """The pins are tried with 3.11 (with an older one not even this file loads)."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info[:2] != (3, 11):
        return Finding("python", Status.WARN, f"Python {version}; the pinned packages are tried with 3.11", "prefer CPython 3.11")
    return Finding("python", Status.OK, f"Python {version} in {sys.prefix}")


def check_packages(constraints: Path) -> Iterator[Finding]:
    """Installed versions against the pins; what the core needs must be there, what an extra needs should be."""
    again = "run `make setup` again"
    pins = read_pins(constraints)
    if not pins:
        yield Finding("packages", Status.FAIL, f"{constraints} is missing or pins nothing", "restore it: `git checkout constraints.txt`")
        return
    needed, optional = _requirements()
    missing = sorted(name for name in needed if _installed(name) is None)
    without = sorted(name for name in optional if _installed(name) is None)
    others = [f"{name} {found} (pinned {pin})" for name, pin in pins.items() if (found := _installed(name)) is not None and found != pin]
    if missing:
        yield Finding("packages", Status.FAIL, f"missing: {', '.join(missing)}", again)
    elif others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        yield Finding("packages", Status.WARN, f"other versions than pinned: {shown}", f"results may differ; {again}")
    else:
        yield Finding("packages", Status.OK, f"{sum(_installed(name) is not None for name in pins)} packages as pinned")
    if without:
        advice = f"{again}, or `pip install -c constraints.txt 'mlembed[all]'`"
        yield Finding("extras", Status.WARN, f"not installed: {', '.join(without)}", advice)


def read_pins(path: Path) -> dict[str, str]:
    """Name → version of the ``name==version`` lines; empty without the file."""
    if not path.is_file():
        return {}
    lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {name.strip(): version.strip() for name, _, version in (line.partition("==") for line in lines) if version}


def _requirements() -> tuple[set[str], set[str]]:
    """Names that the package itself requires, and those that its extras add (tools for developing left out)."""
    needed, optional = set(), set()
    for requirement in importlib.metadata.requires("mlembed") or []:
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        if match is None or match[0] == "mlembed":
            continue
        extra = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if extra is None:
            needed.add(match[0])
        elif extra[1] != "dev":
            optional.add(match[0])
    return needed, optional


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name).split("+")[0]  # torch's build tag (+cpu) is no other version
    except importlib.metadata.PackageNotFoundError:
        return None


def check_commands() -> Finding:
    """Stages call ``mlembed`` by name: the one on PATH must be this environment's."""
    found = shutil.which("mlembed")
    here = Path(sys.prefix) / "bin"
    if found is not None and Path(found).parent.resolve() == here.resolve():
        return Finding("commands", Status.OK, f"mlembed is {found}")
    what = f"`mlembed` on PATH is {found}, not this environment's" if found else "`mlembed` is not on PATH"
    return Finding(
        "commands", Status.WARN, what, f"put {here} first on PATH before calling dvc (`make` does), so that stages run this code"
    )


def check_program(name: str, advice: str) -> Finding:
    """A program is on PATH and answers."""
    path = shutil.which(name)
    if path is None:
        return Finding(name, Status.FAIL, f"{name} is not on PATH", advice)
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding(name, Status.FAIL, f"{path} does not run ({error})", advice)
    return Finding(name, Status.OK, f"{done.stdout.strip().splitlines()[0].removeprefix(f'{name} version ')} ({path})")


def check_orchestrators_apart() -> Finding:
    """DVC's and Dagster's dependencies contradict each other in silence: selections by string break."""
    if importlib.util.find_spec("dvc") is not None and importlib.util.find_spec("dagster") is not None:
        advice = "`pip uninstall dvc` here, then `make setup`, which gives DVC an environment of its own"
        return Finding("environments", Status.WARN, "dvc and dagster are installed together; Dagster's selections will fail", advice)
    return Finding("environments", Status.OK, "DVC and Dagster are apart")


def check_disk(workspace: Workspace) -> Finding:
    free = shutil.disk_usage(workspace.root).free / GIB
    message = f"{free:.1f} GiB free in {workspace.root}"
    advice = "free some space; `dvc gc -w` drops versions of outs that nothing uses"
    if free < DISK_FAIL_GIB:
        return Finding("disk", Status.FAIL, message, advice)
    return Finding("disk", Status.WARN if free < DISK_WARN_GIB else Status.OK, message, advice if free < DISK_WARN_GIB else "")


def check_memory() -> Finding:
    free = psutil.virtual_memory().available / GIB
    message = f"{free:.1f} GiB available"
    advice = "close other programs, or lower train.batch_size and evaluation.batch_tokens"
    if free < MEMORY_FAIL_GIB:
        return Finding("memory", Status.FAIL, message, advice)
    return Finding("memory", Status.WARN if free < MEMORY_WARN_GIB else Status.OK, message, advice if free < MEMORY_WARN_GIB else "")


def check_writable(workspace: Workspace) -> Finding:
    """A file can be made in the workspace and in each folder of outs that exists."""
    folders = (workspace.root, workspace.work, workspace.root / "data", workspace.models, workspace.scores, workspace.reports)
    for folder in (folder for folder in folders if folder.is_dir()):
        try:
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            return Finding(
                "writing", Status.FAIL, f"cannot write in {folder} ({error.strerror})", f"give yourself the right: `chmod u+w {folder}`"
            )
    return Finding("writing", Status.OK, "the workspace can be written")


def check_params(workspace: Workspace) -> Iterator[Finding]:
    """The parameters are valid, and what they name outside of themselves is there."""
    try:
        params = load_all(workspace.params_file, Params)
    except MlembedError as error:
        yield Finding("params", Status.FAIL, str(error), "correct the file; `mlembed preset embedded` writes the default one")
        return
    yield Finding("params", Status.OK, f"{params.name}: {len(params.sources)} sources, {len(params.settings)} settings")
    yield _check_threads(params)
    yield _check_backbone(params, workspace)
    yield from _check_tokenizer(params, workspace)
    for name, source in params.sources.items():
        if isinstance(source.origin, HubOrigin):
            yield _check_hub_files(name, source.origin)
        if isinstance(source.origin, LocalOrigin):
            yield _check_files(f"sources.{name}", source.origin, workspace)


def _check_threads(params: Params) -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = max(params.train.num_threads, params.evaluation.num_threads)
    if wanted > cores:
        advice = (
            "it works, but slowly; the thread count is part of the result, so change it in configs/params.yaml for everyone or not at all"
        )
        return Finding("threads", Status.WARN, f"the parameters ask for {wanted} threads, this machine gives {cores} cores", advice)
    return Finding("threads", Status.OK, f"{wanted} threads on {cores} cores")


def _check_backbone(params: Params, workspace: Workspace) -> Finding:
    match params.backbone:
        case LocalBackbone(path=path):
            folder = workspace.root / path
            advice = "put a Hugging Face checkpoint with safetensors there, or choose another backbone in configs/params.yaml"
            if not (folder / "config.json").is_file():
                return Finding("backbone", Status.FAIL, f"backbone.path={path}: no model there (no {folder / 'config.json'})", advice)
            if not any(folder.glob("*.safetensors")):
                return Finding("backbone", Status.FAIL, f"backbone.path={path}: no *.safetensors in {folder}", advice)
            return Finding("backbone", Status.OK, f"checkpoint in {folder}")
        case HubBackbone(repo=repo, revision=revision):
            return Finding("backbone", Status.OK, f"{repo} at {revision[:12]} from the hub; needs the network once")
        case RegistryBackbone(name=name, version=version):
            return Finding("backbone", Status.OK, f"version {version} of {name} from the registry")
        case _:
            return Finding("backbone", Status.OK, "made here, no download")


def _check_tokenizer(params: Params, workspace: Workspace) -> Iterator[Finding]:
    match params.tokenizer:
        case LocalTokenizer(path=path):
            there = (workspace.root / path / "tokenizer.json").is_file()
            advice = "" if there else "put the tokenizer's folder there, or choose another tokenizer in configs/params.yaml"
            message = f"tokenizer.path={path}" + ("" if there else f": no {workspace.root / path / 'tokenizer.json'}")
            yield Finding("tokenizer", Status.OK if there else Status.FAIL, message, advice)
        case HubTokenizer(repo=repo, revision=revision):
            yield Finding("tokenizer", Status.OK, f"{repo} at {revision[:12]} from the hub; needs the network once")


def _check_files(path: str, origin: LocalOrigin, workspace: Workspace) -> Finding:
    for pattern in origin.patterns:
        if not pattern.matches(workspace.root):
            advice = "correct the path (relative to the workspace) or put the files there"
            return Finding(path, Status.FAIL, f"{path}.origin.files: nothing matches {pattern.path!r}", advice)
    return Finding(path, Status.OK, f"files of {path} are there")


def _check_hub_files(name: str, origin: HubOrigin) -> Finding:
    from mlembed_core.data.sources.hub import find_hub

    try:
        copy = find_hub(name, origin, fetch=False)
    except MachineError:
        advice = "`mlembed prefetch --sources` fetches the files of all sources; the stage does it too, where there is a network"
        return Finding(f"sources.{name}", Status.WARN, f"files of {origin.repo} are not on this machine yet", advice)
    except MlembedError as error:
        return Finding(f"sources.{name}", Status.FAIL, str(error), "correct the source in configs/params.yaml")
    return Finding(f"sources.{name}", Status.OK, f"{len(copy.files)} files of {origin.repo} at {copy.revision[:12]} are there")


def check_mlflow(workspace: Workspace) -> Finding:
    """Runs can be recorded: a server that answers, or a database that is one."""
    if importlib.util.find_spec("mlflow") is None:
        advice = "training works without; for runs and the registry `pip install -c constraints.txt 'mlembed[mlflow]'`"
        return Finding("mlflow", Status.WARN, "MLflow is not installed", advice)
    uri = tracking_uri(workspace)
    if uri.startswith(("http://", "https://")):
        return _check_server(uri)
    if uri.startswith("sqlite:///"):
        return _check_database(Path(uri.removeprefix("sqlite:///")))
    return Finding("mlflow", Status.OK, f"{without_secrets(uri)} (not asked)")


def _check_server(uri: str) -> Finding:
    advice = "start the server or correct MLFLOW_TRACKING_URI; training goes on without it, registering does not"
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_TIMEOUT_S) as answer:  # noqa: S310  # http(s) only, see the caller
            return Finding("mlflow", Status.OK, f"{without_secrets(uri)} answers {answer.status}")
    except (urllib.error.URLError, OSError) as error:
        return Finding("mlflow", Status.FAIL, without_secrets(f"{uri} does not answer ({error})"), advice)


def _check_database(path: Path) -> Finding:
    if not path.exists():
        return Finding("mlflow", Status.OK, f"{path} will be made with the first run")
    advice = f"move {path} away; `mlembed register --all` rebuilds runs and versions from the outs"
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=SERVER_TIMEOUT_S)
        try:
            row: Any = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        finally:
            connection.close()
    except sqlite3.Error as error:
        return Finding("mlflow", Status.FAIL, f"{path} is no MLflow database ({error})", advice)
    return Finding("mlflow", Status.OK, f"{path} (schema {row[0] if row else 'empty'})")
