"""Is a dimension with large activations worth more than any other? A trained model pruned both ways, then trained alike, over seeds.

    python -m benchmarks.pruning [--model models/baseline] [--hidden 128] [--mlp 128] [--layers 2] [--set train.num_steps=60 …] [--table]

By activation is ``backbone.prune``. At random is the same code with draws in the place of activations, so that only the choice of
dimensions and neurons differs; the rows, their order and the steps that follow are the same. Each seed draws other dimensions, and trains
on other batches. Workspaces and resuming are those of :mod:`benchmarks.study`.
"""

import argparse
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.study import SEEDS, SUITE, Run, parameters
from mlembed_core.artifacts import Workspace, hash_of, manifest_hash, read_json, write_manifest, writing
from mlembed_core.config.model import PruneParams
from mlembed_core.errors import ConfigError
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.network import Network
from mlembed_core.model.prune import prune_by
from mlembed_core.model.resolve import load_folder

PRESET, SETTING = "embedded", "baseline"
PRUNED = "pruned"  # what the untrained one is called beside the setting
METHODS = ("activation", "random")
WHEN = {"as pruned": PRUNED, "trained": SETTING}
# Short, and no more than what is compared: the uncut model of one setting.
CHANGES = ("train.num_steps=60", "train.checkpoint_every=60", "evaluation.submodels=[{}]")


class PruningRun(Run):
    """A study whose seeds have a workspace for each way of choosing what stays."""

    def __init__(self, workspace: Workspace, values: dict[str, Any], model: Path, prune: PruneParams) -> None:
        backbone = {"type": "local", "path": str(model), "prune": prune.model_dump(exclude_none=True)}
        super().__init__(workspace, PRESET, {**values, "settings": {SETTING: {}}, "backbone": backbone})
        self._model, self._prune = model, prune
        self.folder = workspace.work / "study" / f"pruning-{hash_of([{**self.values, 'seed': None}, manifest_hash(model)])[:12]}"
        self.shared = self.folder / "shared"

    def _run_seed(self, seed: int) -> None:
        for method in METHODS:
            folder = self.seed_folder(seed) / method
            self._enter(folder, seed)
            if method == "activation":
                self._do(folder, "backbone")
            elif not Workspace(folder).backbone.is_dir():
                self._prune_at_random(Workspace(folder), seed)
            untrained = Workspace(folder).models / PRUNED  # a backbone has the form of a trained model
            untrained.parent.mkdir(exist_ok=True)
            if not untrained.is_symlink():
                untrained.symlink_to(Workspace(folder).backbone)
            self._do(folder, "evaluate", PRUNED, SUITE)
            self._do(folder, "train", SETTING)
            self._do(folder, "evaluate", SETTING, SUITE)

    def _prune_at_random(self, workspace: Workspace, seed: int) -> None:
        """As the stage ``backbone`` does it, with draws in the place of activations."""
        model: Any = load_folder(self._model)
        generator = torch.Generator().manual_seed(seed)
        hidden, *mlps = (
            torch.rand(size, generator=generator)
            for size in [model.config.hidden_size, *[model.config.intermediate_size] * model.config.num_hidden_layers]
        )
        network = Network(prune_by(model, self._prune, hidden, mlps))
        with writing(workspace, workspace.backbone) as draft:
            write_checkpoint(draft, network, tokenizer_folder=workspace.tokenizer, details={"setting": None})
            write_manifest(draft, stage="backbone", params={"prune": self._prune.model_dump(), "seed": seed})

    def scores(self, seeds: Iterable[int]) -> Iterator[tuple[str, str, list[dict[str, float]]]]:
        """(method, when) and the scores of each seed that is finished."""
        folders = {seed: self.seed_folder(seed) for seed in seeds}
        finished = [folder for folder in folders.values() if all(_done(folder / method) for method in METHODS)]
        for method in METHODS:
            for when, name in WHEN.items():
                found = [read_json(folder / method / "scores" / name / f"{SUITE}.json") for folder in finished]
                yield method, when, [next(iter(of_cuts.values())) for of_cuts in found]  # of one cut: none


def _done(folder: Path) -> bool:
    return (folder / ".done" / f"evaluate-{SETTING}-{SUITE}").is_file()


def table(scores: Iterable[tuple[str, str, list[dict[str, float]]]]) -> str:
    """Markdown: means over seeds, the average with its range, and by how much activation is ahead, seed by seed."""
    found = {(method, when): of_seeds for method, when, of_seeds in scores}
    tasks = sorted({task for of_seeds in found.values() for scores in of_seeds for task in scores} - {"average"})
    lines = [f"| pruned by | when | average (range) | {' | '.join(tasks)} |", "|---" * (3 + len(tasks)) + "|"]
    for (method, when), of_seeds in found.items():
        averages = [scores["average"] for scores in of_seeds]
        cells = [f"{statistics.mean(scores[task] for scores in of_seeds):.3f}" for task in tasks]
        spread = f"{statistics.mean(averages):.3f} ({min(averages):.3f} … {max(averages):.3f})"
        lines.append(f"| {method} | {when} | {spread} | {' | '.join(cells)} |")
    for when in WHEN:
        ahead = [a["average"] - b["average"] for a, b in zip(*(found[method, when] for method in METHODS), strict=True)]
        lines.append(f"\nactivation − random, {when}, by seed: {', '.join(f'{value:+.3f}' for value in ahead)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models") / SETTING, help="a trained model of this clone")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--mlp", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--set", action="append", default=[], dest="changes", metavar="PATH=VALUE", help="change a parameter")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is finished")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    workspace = Workspace.find()
    model = (workspace.root / arguments.model).resolve()
    values = parameters(workspace, PRESET, [*CHANGES, *arguments.changes])
    prune = PruneParams(hidden_size=arguments.hidden, intermediate_size=arguments.mlp, num_hidden_layers=arguments.layers)
    run = PruningRun(workspace, values, model, prune)
    if not arguments.table:
        run.run(arguments.seeds)
    scores = list(run.scores(arguments.seeds))
    if not any(of_seeds for _, _, of_seeds in scores):
        raise ConfigError(f"nothing is finished in {run.folder}; run this without --table")
    print(f"\n{table(scores)}")


if __name__ == "__main__":
    main()
