"""Stage ``train``: one 3D-ML setting, from backbone and cache to a checkpoint with its curves.

``mlembed train SETTING`` launches this module through accelerate (``train/launch.py``); each process runs :func:`run`, and the main
one writes the out.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from pydantic import NonNegativeInt

from mlembed_core import lifeline
from mlembed_core.allocator import keep_freed_memory
from mlembed_core.artifacts import Workspace, hash_of, manifest_hash, write_manifest, writing
from mlembed_core.config.axes import Axes, resolve_axes
from mlembed_core.config.base import Name, Section, pick
from mlembed_core.config.load import load
from mlembed_core.config.settings import SettingParams, Settings
from mlembed_core.config.train import TrainParams
from mlembed_core.data.store import TrainingCache
from mlembed_core.errors import ConfigError, MachineError, MlembedError, TrainingInterruptedError
from mlembed_core.model.checkpoint import num_parameters, pooling_of, write_checkpoint
from mlembed_core.model.lora import add_adapters, merge_adapters
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import load_folder
from mlembed_core.registry.resolve import SCHEME, resolve
from mlembed_core.train.control import StopRequest, report
from mlembed_core.train.distributed import world_size
from mlembed_core.train.launch import EXPECTED_WORLD_SIZE
from mlembed_core.train.loop import LOSS_COLUMNS, Curves, train
from mlembed_core.train.state_folder import note_out, only_one, state_folder
from mlembed_core.train.teacher import Teacher, load_teacher
from mlembed_core.train.teacher_vectors import taught_by
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
        ConfigError: an unknown setting, or one that does not fit the backbone; a teacher that is not pinned or does not fit.
        ArtifactError: the backbone, the cache or the teacher is missing, damaged or of another tokenizer.
        MachineError: other than the asked number of processes started, or the same training runs already.
        TrainingInterruptedError: told to stop; the state is saved.
    """
    config = load(workspace.params_file, Config)
    setting = pick(config.settings, setting_name, path="settings")
    keep_freed_memory()
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
    teacher = _teacher(workspace, setting_name, setting, hidden=network.shape.dim)

    inputs = {"backbone": workspace.backbone, "cache": workspace.cache, "tokenizer": workspace.tokenizer}
    params = {
        "name": config.name,
        "seed": config.seed,
        "setting": setting.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
    }
    hashes = {name: manifest_hash(path) for name, path in inputs.items()}
    if teacher is not None:
        hashes["teacher"] = teacher.sha256
    fingerprint = hash_of({"params": params, "inputs": hashes, "world_size": world_size()})[:16]
    tracker = (
        open_run(workspace, name=config.name, setting=setting_name, fingerprint=fingerprint, params=params, inputs=hashes)
        if accelerator.is_main_process
        else None
    )
    folder = state_folder(workspace, setting_name, fingerprint)
    alone = only_one(folder) if accelerator.is_main_process else nullcontext()
    with alone, tracker or nullcontext(), StopRequest() as stop_requested:
        taught = taught_by(
            teacher,
            cache,
            workspace.work / "teacher",
            made_of=hashes["cache"],
            hidden=network.shape.dim,
            max_gib=setting.distillation.max_cache_gib if setting.distillation else 0.0,
            params=config.train,
            accelerator=accelerator,
            stop_requested=stop_requested,
        )
        curves = train(
            network,
            cache,
            axes=axes,
            params=config.train,
            seed=config.seed,
            accelerator=accelerator,
            state_folder=folder,
            log=tracker.log if tracker else _ignore,
            setting=setting,
            teacher=taught,
            stop_requested=stop_requested,
        )
        if setting.lora is not None:
            merge_adapters(network)
        if accelerator.is_main_process:
            out = workspace.models / setting_name
            write_model(workspace, out, network, curves, axes, setting_name, params, inputs, hashes)
            note_out(folder, manifest_hash(out))


def _teacher(workspace: Workspace, setting_name: str, setting: SettingParams, *, hidden: int) -> Teacher | None:
    if setting.distillation is None:
        return None
    return load_teacher(
        setting.distillation.teacher,
        path=f"settings.{setting_name}.distillation.teacher",
        root=workspace.root,
        tokenizer_folder=workspace.tokenizer,
        hidden=hidden,
        registered=lambda name, version: resolve(f"{SCHEME}{name}/{version}"),
    )


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
    hashes: dict[str, str],
) -> None:
    """The out of the stage: checkpoint, curves, manifest.

    Args:
        inputs: earlier outs by name.
        hashes: of these, and of the teacher where there is one: it is no out of this workspace, so that its hash stands in the details.
    """
    details: dict[str, Any] = {"axes": {"mrl_dims": axes.mrl_dims, "mll_layers": axes.mll_layers, "mel_ranks": axes.mel_ranks}}
    if "teacher" in hashes:
        details["teacher"] = hashes["teacher"]
    if curves.merge:
        details["merge"] = curves.merge
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
            counts={"parameters": num_parameters(network), "steps": curves.steps, "skipped_steps": len(curves.skipped)},
            details=details,
        )


def check_world_size() -> None:
    """Raises MachineError unless as many processes run as the launch profile asks for."""
    expected = os.environ.get(EXPECTED_WORLD_SIZE)
    if expected is not None and int(expected) != world_size():
        raise MachineError(
            f"the launch profile asks for {expected} processes, but {world_size()} started. Look at num_processes and use_cpu in "
            "configs/accelerate, and at the machine's devices."
        )


@contextmanager
def reporting() -> Iterator[None]:
    """Around what a launched process does: an error of ours is printed once for all processes, and its exit code left for the launcher.

    A process that was told to stop leaves with 0: accelerate and torch's agent would call anything else a crash, at length.
    """
    try:
        yield
    except MlembedError as error:
        if report(error.exit_code):
            print(f"mlembed: {error}", file=sys.stderr, flush=True)
        sys.exit(0 if isinstance(error, TrainingInterruptedError) else error.exit_code)


def main() -> None:
    """What accelerate starts in each process."""
    if len(sys.argv) != 2:
        raise ConfigError(f"expected one setting, got {sys.argv[1:]}; use `mlembed train SETTING`")
    lifeline.hold()
    with reporting():
        run(Workspace.find(), sys.argv[1])


if __name__ == "__main__":
    main()
