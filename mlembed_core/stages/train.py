"""Stage ``train``: one 3D-ML setting, from backbone and cache to a checkpoint with its curves.

``mlembed train SETTING`` launches this module through accelerate (``train/launch.py``); each process runs :func:`run`, and the main
one writes the out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from pydantic import NonNegativeInt

from mlembed_core.artifacts import Workspace, hash_of, manifest_hash, write_manifest, writing
from mlembed_core.config.axes import Axes, resolve_axes
from mlembed_core.config.base import Name, Section, pick
from mlembed_core.config.load import load
from mlembed_core.config.model import Settings
from mlembed_core.config.train import TrainParams
from mlembed_core.data.store import TrainingCache
from mlembed_core.errors import ConfigError, MachineError, MlembedError
from mlembed_core.model.checkpoint import num_parameters, pooling_of, write_checkpoint
from mlembed_core.model.lora import add_adapters, merge_adapters
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import load_folder
from mlembed_core.train.distributed import world_size
from mlembed_core.train.launch import EXPECTED_WORLD_SIZE
from mlembed_core.train.loop import LOSS_COLUMNS, Curves, train
from mlembed_core.train.tracking import open_run

VALIDATION_COLUMNS = ["step", "source", "layers", "dim", "loss"]


class Config(Section):
    """What this stage reads of the parameters."""

    name: Name
    seed: NonNegativeInt
    settings: Settings
    train: TrainParams


def run(workspace: Workspace, setting_name: str) -> None:
    """Train ``setting_name`` and write ``models/SETTING/``.

    Raises:
        ConfigError: an unknown setting, or one that does not fit the backbone.
        ArtifactError: the backbone or the cache is missing, damaged or of another tokenizer.
        MachineError: other than the asked number of processes started.
    """
    config = load(workspace.params_file, Config)
    setting = pick(config.settings, setting_name, path="settings")
    torch.set_num_threads(config.train.num_threads)
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    accelerator = Accelerator()
    check_world_size()

    cache = TrainingCache.open(workspace.cache, tokenizer=workspace.tokenizer)
    manifest_hash(workspace.backbone)  # refuses a missing one before weights are read
    backbone: Any = load_folder(workspace.backbone)
    axes = resolve_axes(setting_name, setting, hidden=backbone.config.hidden_size, layers=backbone.config.num_hidden_layers)
    network = Network(backbone, rank=None if setting.mel is None else setting.mel.rank, pooling=pooling_of(workspace.backbone))
    if setting.lora is not None:
        add_adapters(network, setting.lora, seed=config.seed)

    inputs = {"backbone": workspace.backbone, "cache": workspace.cache, "tokenizer": workspace.tokenizer}
    params = {
        "name": config.name,
        "seed": config.seed,
        "setting": setting.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
    }
    hashes = {name: manifest_hash(path) for name, path in inputs.items()}
    fingerprint = hash_of({"params": params, "inputs": hashes, "world_size": world_size()})[:16]
    tracker = (
        open_run(workspace, name=config.name, setting=setting_name, fingerprint=fingerprint, params=params, inputs=hashes)
        if accelerator.is_main_process
        else None
    )
    with tracker or nullcontext():
        curves = train(
            network,
            cache,
            axes=axes,
            params=config.train,
            seed=config.seed,
            accelerator=accelerator,
            state_folder=workspace.work / "train" / setting_name / fingerprint,
            log=tracker.log if tracker else _ignore,
        )
        if setting.lora is not None:
            merge_adapters(network)
        if accelerator.is_main_process:
            write_model(workspace, workspace.models / setting_name, network, curves, axes, setting_name, params, inputs)


def _ignore(_step: int, _metrics: Mapping[str, float]) -> None:
    """Processes beside the main one log nothing."""


def write_model(
    workspace: Workspace,
    target: Path,
    network: Network,
    curves: Curves,
    axes: Axes,
    setting_name: str,
    params: dict[str, Any],
    inputs: dict[str, Path],
) -> None:
    """The out of the stage: checkpoint, curves, manifest."""
    loss = pd.DataFrame(curves.loss, columns=LOSS_COLUMNS).astype({"rank": "Int64"})
    with writing(workspace, target) as draft:
        write_checkpoint(
            draft,
            network,
            tokenizer_folder=workspace.tokenizer,
            details={"setting": setting_name, "mrl_dims": axes.mrl_dims, "mll_layers": axes.mll_layers, "mel_ranks": axes.mel_ranks},
        )
        loss.to_csv(draft / "loss_curve.csv", index=False)
        pd.DataFrame(curves.validation, columns=VALIDATION_COLUMNS).to_csv(draft / "validation_curve.csv", index=False)
        write_manifest(
            draft,
            stage=f"train@{setting_name}",
            params=params,
            inputs=inputs,
            counts={"parameters": num_parameters(network), "steps": int(loss["step"].iloc[-1])},
            details={"axes": {"mrl_dims": axes.mrl_dims, "mll_layers": axes.mll_layers, "mel_ranks": axes.mel_ranks}},
        )


def check_world_size() -> None:
    """Raises MachineError unless as many processes run as the launch profile asks for."""
    expected = os.environ.get(EXPECTED_WORLD_SIZE)
    if expected is not None and int(expected) != world_size():
        raise MachineError(
            f"the launch profile asks for {expected} processes, but {world_size()} started. Look at num_processes and use_cpu in "
            "configs/accelerate, and at the machine's devices."
        )


def main() -> None:
    """What accelerate starts in each process."""
    if len(sys.argv) != 2:
        raise ConfigError(f"expected one setting, got {sys.argv[1:]}; use `mlembed train SETTING`")
    try:
        run(Workspace.find(), sys.argv[1])
    except MlembedError as error:
        print(f"mlembed: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
