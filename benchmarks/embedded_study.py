"""The embedded preset over several seeds: mean and range of every submodel's scores, for each setting. `make study` runs it.

Each seed is a workspace of its own under ``.work/study`` that shares the data stages' outs with this one (they do not depend on
the seed) and runs the pipeline's own commands from the backbone on. Seeds that are finished are not run again.

    python -m benchmarks.embedded_study [SEED …]
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from mlembed_core.artifacts import Workspace
from mlembed_core.config.load import load_all
from mlembed_core.config.params import Params
from mlembed_core.errors import ArtifactError

SEEDS = (17, 18, 19)
SUITE = "embedded"
FROM_DATA = ("data/sources", "data/tokenizer", "data/cache")


def run_seed(workspace: Workspace, seed: int) -> Path:
    """Train and score every setting with ``seed``; the folder of the scores."""
    folder = workspace.work / "study" / f"seed-{seed}"
    params = load_all(workspace.params_file, Params)
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "data").mkdir(exist_ok=True)
    shutil.copytree(workspace.root / "configs" / "accelerate", folder / "configs" / "accelerate", dirs_exist_ok=True)
    text = workspace.params_file.read_text(encoding="utf-8")
    (folder / "configs" / "params.yaml").write_text(text.replace(f"\nseed: {params.seed}\n", f"\nseed: {seed}\n"), encoding="utf-8")
    for name in FROM_DATA:
        if not (workspace.root / name).is_dir():
            raise ArtifactError(f"{workspace.root / name} is missing; run `dvc repro` first")
        if not (folder / name).exists():
            (folder / name).symlink_to(workspace.root / name)
    commands = [["backbone"], ["control", SUITE]]
    for setting in params.settings:
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
    workspace = Workspace.find()
    seeds = [int(argument) for argument in sys.argv[1:]] or list(SEEDS)
    folders = [run_seed(workspace, seed) for seed in seeds]
    found = collect(folders, list(load_all(workspace.params_file, Params).settings))
    print(f"seeds {', '.join(map(str, seeds))}\n\n{table(found)}")


if __name__ == "__main__":
    main()
