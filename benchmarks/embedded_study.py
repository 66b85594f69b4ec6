"""The embedded preset over several seeds: mean and range of every submodel's scores, for each setting. `make study` runs it.

Each seed of each variant of the parameters is a workspace of its own under ``.work/study`` that shares the data stages' outs with
this one (they depend on neither) and runs the pipeline's own commands from the backbone on. What is finished is not run again.

    python -m benchmarks.embedded_study [--set backbone.config.num_hidden_layers=2 …] [SEED …]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlembed_core.artifacts import Workspace, hash_of
from mlembed_core.config.base import parse
from mlembed_core.config.load import read_yaml
from mlembed_core.config.params import Params
from mlembed_core.errors import ArtifactError, ConfigError

SEEDS = (17, 18, 19)
SUITE = "embedded"
FROM_DATA = ("data/sources", "data/tokenizer", "data/cache")


def varied(workspace: Workspace, changes: list[str]) -> dict[str, Any]:
    """The workspace's parameters with ``dotted.path=value`` changes (values are YAML), checked."""
    values = read_yaml(workspace.params_file)
    for change in changes:
        path, _, text = change.partition("=")
        *parents, last = path.split(".")
        section = values
        for key in parents:
            if not isinstance(section.get(key), dict):
                raise ConfigError(f"--set {change}: {workspace.params_file} has no section {key!r} on that path")
            section = section[key]
        section[last] = YAML(typ="safe", pure=True).load(text)
    parse(Params, values, origin=f"{workspace.params_file} with {changes}")
    return values


def run_seed(workspace: Workspace, values: dict[str, Any], seed: int) -> Path:
    """Train and score every setting of the parameters ``values`` with ``seed``; the folder of the scores."""
    values = values | {"seed": seed}
    folder = workspace.work / "study" / f"{hash_of(values)[:12]}-seed-{seed}"
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    shutil.copytree(workspace.root / "configs" / "accelerate", folder / "configs" / "accelerate", dirs_exist_ok=True)
    with (folder / "configs" / "params.yaml").open("w", encoding="utf-8") as handle:
        YAML().dump(values, handle)
    for name in FROM_DATA:
        if not (workspace.root / name).is_dir():
            raise ArtifactError(f"{workspace.root / name} is missing; run `dvc repro` first")
        if not (folder / name).exists():
            (folder / name).symlink_to(workspace.root / name)
    commands = [["backbone"], ["control", SUITE]]
    for setting in values["settings"]:
        commands += [["train", setting], ["evaluate", setting, SUITE]]
    for command in commands:
        done = folder / ".done" / "-".join(command)
        if not done.is_file():
            environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}"}
            subprocess.run([sys.executable, "-m", "mlembed_core", *command], cwd=folder, env=environment, check=True)
            done.parent.mkdir(exist_ok=True)
            done.touch()
    return folder / "scores"


def collect(folders: list[Path], settings: list[str]) -> dict[str, dict[str, list[float]]]:
    """``{system and submodel: {task or average: a score per seed}}``."""
    found: dict[str, dict[str, list[float]]] = {}
    for folder in folders:
        for setting in (*settings, "controls"):
            for name, scores in json.loads((folder / setting / f"{SUITE}.json").read_text()).items():
                system = found.setdefault(name if setting == "controls" else f"{setting} {name}", {})
                for task, score in scores.items():
                    system.setdefault(task, []).append(score)
    return found


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Markdown: the mean over seeds, and for the average its range."""
    tasks = sorted({task for scores in found.values() for task in scores} - {"average"})
    lines = [f"| system | average | range | {' | '.join(tasks)} |", "|---" * (3 + len(tasks)) + "|"]
    for name, scores in found.items():
        average = scores.get("average", [])
        cells = [f"{statistics.mean(average):.3f}", f"{min(average):.3f}–{max(average):.3f}"] if average else ["–", "–"]
        cells += [f"{statistics.mean(scores[task]):.3f}" if task in scores else "–" for task in tasks]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="PATH=VALUE", help="change a parameter")
    arguments = parser.parse_args()
    workspace = Workspace.find()
    values = varied(workspace, arguments.changes)
    folders = [run_seed(workspace, values, seed) for seed in arguments.seeds]
    found = collect(folders, list(values["settings"]))
    print(f"{', '.join(arguments.changes) or 'as it stands'}; seeds {', '.join(map(str, arguments.seeds))}\n\n{table(found)}")


if __name__ == "__main__":
    main()
