"""Does 3D-ML work? Matched trainings of baseline, mrl, mrl_mll and 3d on a preset, over several seeds, scored full and cut. `make study`.

    python -m benchmarks.study [minilm] [embedded] [--seeds 17 18 19] [--set train.num_steps=200 …] [--table]

All settings of a seed start from the same weights and see the same rows in the same order, as many steps at the same rate: draws are
functions of (seed, step). Each seed of a preset is a workspace of its own under ``.work/study`` that runs the pipeline's own commands
from the backbone on; what no seed changes (tokenizer, training cache) is made once for all. Stopped or killed, it goes on where it was:
what is finished is not run again, and an unfinished training or evaluation has its own resume state. ``--table`` prints what is there.
"""

import argparse
import fcntl
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlembed_core.artifacts import CONTROLS, MANIFEST, Workspace, hash_of, read_json
from mlembed_core.config.base import parse
from mlembed_core.config.params import Params
from mlembed_core.config.presets import compose
from mlembed_core.errors import ConfigError, MachineError

PRESETS = ("minilm", "embedded")
SEEDS = (17, 18, 19)
SUITE = "embedded"
# The four recipes, each with an axis more than the one before; the last one's ranks are the preset's.
SETTINGS: dict[str, dict[str, Any]] = {"baseline": {}, "mrl": {"mrl": "auto"}, "mrl_mll": {"mrl": "auto", "mll": "auto"}}
FULL = "3d"

Found = dict[str, dict[str, list[float]]]  # system and submodel → task or average → a score per seed


def parameters(workspace: Workspace, preset: str, changes: Iterable[str] = ()) -> dict[str, Any]:
    """The preset's parameters with the four settings and ``dotted.path=value`` changes (values are YAML), checked.

    Raises:
        ConfigError: no such preset, no setting ``3d`` in it, a path that it lacks, or values that the schema refuses.
    """
    origin = f"preset {preset} with {', '.join(changes) or 'no change'}"
    values: dict[str, Any] = YAML(typ="safe", pure=True).load(compose(workspace.root / "configs" / "presets", preset))
    if FULL not in values["settings"]:
        raise ConfigError(f"preset {preset} has no setting {FULL}, whose ranks the study takes")
    values["settings"] = {**SETTINGS, FULL: values["settings"][FULL]}
    for change in changes:
        path, _, text = change.partition("=")
        *parents, last = path.split(".")
        section = values
        for key in parents:
            if not isinstance(section.get(key), dict):
                raise ConfigError(f"--set {change}: the preset {preset} has no section {key!r} on that path")
            section = section[key]
        section[last] = YAML(typ="safe", pure=True).load(text)
    parse(Params, values, origin=origin)
    return values


class Run:
    """One preset with its changes: a folder for what all seeds share, and one for each seed."""

    def __init__(self, workspace: Workspace, preset: str, values: dict[str, Any]) -> None:
        self._workspace = workspace
        self.values = values
        # The seed is the folder's, so it is left out of the hash; whoever changes a step count gets another folder.
        self.folder = workspace.work / "study" / f"{preset}-{hash_of({**values, 'seed': None})[:12]}"
        self.shared = self.folder / "shared"

    def seed_folder(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def run(self, seeds: Iterable[int]) -> None:
        """Whatever is not done yet, seed by seed.

        Raises:
            MachineError: a study of these parameters runs already, or one of the commands failed; what it said stands above.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MachineError(f"a study runs in {self.folder} already; wait for it, or stop it") from None
            self._prepare(self.shared, self.values)
            for source in self.values["sources"]:
                if not self._link_source(source):
                    self._do(self.shared, "source", source)
            self._do(self.shared, "tokenizer")
            for source in self.values["sources"]:
                self._do(self.shared, "tokenize", source)
            self._do(self.shared, "cache")
            for seed in seeds:
                self._run_seed(seed)

    def _run_seed(self, seed: int) -> None:
        folder = self.seed_folder(seed)
        self._enter(folder, seed)
        self._do(folder, "backbone")
        self._do(folder, "control", SUITE)
        for setting in self.values["settings"]:
            self._do(folder, "train", setting)
            self._do(folder, "evaluate", setting, SUITE)

    def _enter(self, folder: Path, seed: int) -> None:
        """Make a workspace for a seed, with what all seeds share."""
        self._prepare(folder, {**self.values, "seed": seed})
        for name in ("sources", "tokenizer", "cache"):
            if not (folder / "data" / name).exists():
                (folder / "data" / name).symlink_to(self.shared / "data" / name)

    def _prepare(self, folder: Path, values: dict[str, Any]) -> None:
        (folder / "configs").mkdir(parents=True, exist_ok=True)
        (folder / "data").mkdir(exist_ok=True)
        shutil.copytree(self._workspace.root / "configs" / "accelerate", folder / "configs" / "accelerate", dirs_exist_ok=True)
        with (folder / "configs" / "params.yaml").open("w", encoding="utf-8") as handle:
            YAML().dump(values, handle)
        pretrained = self._workspace.root / "pretrained"  # paths of a preset's backbone are relative to the workspace
        if pretrained.is_dir() and not (folder / "pretrained").exists():
            (folder / "pretrained").symlink_to(pretrained)

    def _link_source(self, name: str) -> bool:
        """Take a source over from the clone, if it was made with these parameters."""
        theirs, ours = self._workspace.sources / name, self.shared / "data" / "sources" / name
        if ours.exists():
            return ours.is_symlink()
        wanted = parse(Params, self.values, origin=str(self.shared)).sources[name].model_dump(mode="json")
        if not (theirs / MANIFEST).is_file() or read_json(theirs / MANIFEST)["params"] != wanted:
            return False
        ours.parent.mkdir(parents=True, exist_ok=True)
        ours.symlink_to(theirs)
        return True

    def _do(self, folder: Path, *command: str) -> None:
        """One command of the pipeline in a workspace, unless it is done."""
        done = folder / ".done" / "-".join(command)
        if done.is_file():
            return
        print(f"[study] {folder.relative_to(self.folder.parent)}: mlembed {' '.join(command)}", file=sys.stderr, flush=True)
        environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder / 'mlflow.db'}", **os.environ}
        status = subprocess.run([sys.executable, "-m", "mlembed_core", *command], cwd=folder, env=environment, check=False).returncode
        if status:
            raise MachineError(f"`mlembed {' '.join(command)}` failed in {folder} with status {status}; the same command goes on from here")
        done.parent.mkdir(exist_ok=True)
        done.touch()

    def found(self, seeds: Iterable[int]) -> Found:
        """The main scores of what is finished; of a setting only the seeds in which the baseline is finished too."""
        scores: Found = defaultdict(lambda: defaultdict(list))
        for seed in seeds:
            folder = self.seed_folder(seed)
            if not (folder / ".done" / f"evaluate-baseline-{SUITE}").is_file():
                continue
            for setting in (CONTROLS, *self.values["settings"]):
                path = folder / "scores" / setting / f"{SUITE}.json"
                if path.is_file():
                    for name, of_tasks in json.loads(path.read_text(encoding="utf-8")).items():
                        for task, score in of_tasks.items():
                            scores[name if setting == CONTROLS else f"{setting} {name}"][task].append(score)
        return scores


def averages(found: Found, settings: list[str]) -> str:
    """Markdown: a row per cut, a column per setting, the mean of the average over seeds and its range."""
    cuts = list(dict.fromkeys(system.partition(" ")[2] for system in found if system.partition(" ")[0] in settings))
    lines = [f"| cut | {' | '.join(settings)} |", "|---" * (1 + len(settings)) + "|"]
    for cut in cuts:
        cells = [_spread(found.get(f"{setting} {cut}", {}).get("average", [])) for setting in settings]
        lines.append(f"| {cut} | {' | '.join(cells)} |")
    return "\n".join(lines)


def differences(found: Found, settings: list[str]) -> str:
    """Markdown: by how much each setting is above the first at each cut, seed by seed: mean and range."""
    first, *others = settings
    cuts = list(dict.fromkeys(system.partition(" ")[2] for system in found if system.startswith(f"{first} ")))
    lines = [f"| cut | {' | '.join(f'{other} − {first}' for other in others)} |", "|---" * len(settings) + "|"]
    for cut in cuts:
        base = found[f"{first} {cut}"]["average"]
        cells = []
        for other in others:
            theirs = found.get(f"{other} {cut}", {}).get("average", [])
            # The seeds come in order, so a setting that lacks some lacks the last ones.
            cells.append(_spread([ours - reference for ours, reference in zip(theirs, base, strict=False)], signed=True))
        lines.append(f"| {cut} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_task(found: Found) -> str:
    """Markdown: all systems, the mean over seeds of every task."""
    tasks = sorted({task for scores in found.values() for task in scores} - {"average"})
    lines = [f"| system | seeds | average | {' | '.join(tasks)} |", "|---" * (3 + len(tasks)) + "|"]
    for name, scores in found.items():
        cells = [f"{statistics.mean(scores[task]):.3f}" if task in scores else "–" for task in ("average", *tasks)]
        lines.append(f"| {name} | {max(map(len, scores.values()))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], *, signed: bool = False) -> str:
    if not values:
        return "–"
    form = "+.3f" if signed else ".3f"
    if len(values) == 1:
        return f"{values[0]:{form}} (one seed)"
    return f"{statistics.mean(values):{form}} ({min(values):{form}} … {max(values):{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=list(PRESETS), metavar="PRESET", help="of configs/presets (default: both)")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="PATH=VALUE", help="change a parameter")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is finished")
    arguments = parser.parse_args()
    workspace = Workspace.find()
    for preset in arguments.presets:
        values = parameters(workspace, preset, arguments.changes)
        run = Run(workspace, preset, values)
        if not arguments.table:
            run.run(arguments.seeds)
        found, settings = run.found(arguments.seeds), list(values["settings"])
        print(f"\n{preset}, {', '.join(arguments.changes) or 'as it stands'}; seeds {', '.join(map(str, arguments.seeds))}")
        print(f"\n{averages(found, settings)}\n\n{differences(found, settings)}\n\n{by_task(found)}")


if __name__ == "__main__":
    main()
