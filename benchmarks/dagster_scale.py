"""How long DVC and Dagster take over a graph of hundreds of items, with nothing to do: what a person waits for each time.

Makes a workspace of its own (``benchmarks/scaled_workspace.py``), times in it what people and the sensor call, and prints the table of
benchmarks/README.md.

    python -m benchmarks.dagster_scale [--sources 159] [--settings 4] [--suites 17] [--folder FOLDER]

A folder that is filled already is timed as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.scaled_workspace import SETTINGS, make
from mlembed_core.artifacts import Workspace
from mlembed_core.config.load import read_yaml

LOCATION = "from workflows.definitions import defs; defs.get_repository_def().load_all_definitions()"


@dataclass(frozen=True)
class Measured:
    """One line of the table: seconds by the clock and of the processors, and what they may be at most."""

    what: str
    seconds: float
    cpu_seconds: float
    at_most: float | None = None

    def __str__(self) -> str:
        limit = "–" if self.at_most is None else f"≤ {self.at_most:g}"
        return f"| {self.what} | {self.seconds:.2f} | {self.cpu_seconds:.2f} | {limit} |"


def environment(root: Path) -> dict[str, str]:
    """Programs import the copy's code, not that of an installed package."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    kept = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    return {**kept, "PATH": path, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}


def run(root: Path, *command: str) -> str:
    """Standard output of a command in the workspace; a failure shows what it said."""
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"`{' '.join(command)}` in {root} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def measure(root: Path, rounds: int) -> list[Measured]:
    """Time everything; the workspace is up to date before and after."""
    first = next(iter(read_yaml(root / "configs" / "params.yaml")["sources"]))

    def timed(what: str, *command: str, at_most: float | None = None) -> Measured:
        print(f"timing: {what}", file=sys.stderr)
        return median(what, lambda: run(root, *command), rounds, at_most)

    lines = [
        timed("`dvc status`", "dvc", "status", "--json", at_most=20),
        timed("`dvc repro`, nothing to do", "dvc", "repro", at_most=25),
        timed(f"`dvc repro --single-item source@{first}`, nothing to do", "dvc", "repro", "--single-item", f"source@{first}", at_most=10),
        timed("code location, in a fresh process", sys.executable, "-c", LOCATION, at_most=3),
    ]
    print("timing: the importer and the sensor", file=sys.stderr)
    probed = json.loads(run(root, sys.executable, "-m", "benchmarks.dagster_scale", "--probe", "--rounds", str(rounds)).splitlines()[-1])
    return lines + [Measured(**line) for line in probed]


def median(what: str, call: Callable[[], object], rounds: int, at_most: float | None = None) -> Measured:
    """Medians of wall and of processor time, this process's and its children's."""
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), _cpu_seconds()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(_cpu_seconds() - cpu)
    return Measured(what, statistics.median(walls), statistics.median(cpus), at_most)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def probe(rounds: int) -> list[Measured]:
    """What the importer and the sensor take, from an empty Dagster on; to be called in a process of the workspace's own."""
    from dagster import DagsterInstance, build_sensor_context

    from assets import graph
    from assets.importing import Imported, import_outs
    from assets.partitions import WORKSPACE
    from workflows.pipeline import PIPELINE
    from workflows.sensors import dvc_state

    status = graph.status(WORKSPACE)
    told: list[Imported] = []
    with TemporaryDirectory() as home, DagsterInstance.local_temp(home) as instance:
        lines = [
            median(
                "first import, every check asked",
                lambda: told.append(import_outs(instance, PIPELINE, status=status, ask_checks=True)),
                1,
            ),
            median("import again", lambda: told.append(import_outs(instance, PIPELINE, status=status)), rounds),
        ]
    if told[0].materialisations != len(graph.read_lock(WORKSPACE)) or set(told[1:]) != {Imported()}:
        sys.exit(f"the first import should tell everything and the others nothing, but: {'; '.join(map(str, told))}")
    with TemporaryDirectory() as home, DagsterInstance.local_temp(home) as instance:
        context = build_sensor_context(instance=instance)
        lines.append(median("sensor, first pass (`dvc status` and the import)", lambda: dvc_state(context), 1))
        context = build_sensor_context(instance=instance, cursor=context.cursor)
        lines.append(median("sensor, nothing changed", lambda: dvc_state(context), rounds, 0.1))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sources", type=int, default=159, help="as many as were published with the recipe")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), choices=range(1, len(SETTINGS) + 1))
    parser.add_argument("--suites", type=int, default=17, help="as many benchmarks as the recipe's models were scored on")
    parser.add_argument("--rounds", type=int, default=5, help="the figures are medians of so many")
    parser.add_argument("--folder", type=Path, help="where the workspace is made, or lies already (default: .work/scale)")
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps([asdict(line) for line in probe(arguments.rounds)]))
        return
    root = (arguments.folder or Workspace.find().work / "scale").resolve()
    if not (root / "dvc.lock").is_file():
        print(f"making a workspace in {root}", file=sys.stderr)
        make(Workspace.find().root, root, sources=arguments.sources, settings=arguments.settings, suites=arguments.suites)
    print("| what | seconds | CPU seconds | at most |", "|---|---|---|---|", *measure(root, arguments.rounds), sep="\n")


if __name__ == "__main__":
    main()
