"""Resume state of a training: weights, optimizer, step and curves under ``.work/``, so that a killed run goes on where it was.

Draws are functions of (seed, step), so this is all the state there is. A checkpoint is written to a temporary folder, synced and
renamed; a damaged one is skipped with a warning for the one before. Where they live: ``train/state_folder.py``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlembed_core.artifacts import read_json, sha256_file, write_json
from mlembed_core.errors import ArtifactError


def save(folder: Path, *, step: int, network: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any], kept: int) -> None:
    """Write the state after ``step`` steps to ``folder/step-N``.

    Args:
        progress: JSON-able, returned by :func:`load_newest`.
        kept: the newest states that stay.
    """
    draft = folder / f".step-{step:08d}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(dict(network.state_dict()), draft / "network.safetensors")
    save_file(_flatten(optimizer), draft / "optimizer.safetensors")
    write_json(draft / "progress.json", progress)
    files = {path.name: sha256_file(path) for path in sorted(draft.iterdir())}
    write_json(draft / "checkpoint.json", {"step": step, "files": files})
    for path in [*draft.iterdir(), draft]:
        _sync(path)
    final = folder / f"step-{step:08d}"
    shutil.rmtree(final, ignore_errors=True)  # a damaged one that was skipped on resuming
    os.replace(draft, final)
    _sync(folder)  # the new name is a change of the folder; before it is on disk, no older state may go
    for old in sorted(folder.glob("step-*"))[:-kept]:
        shutil.rmtree(old, ignore_errors=True)


def load_newest(
    folder: Path, *, network: nn.Module, optimizer: torch.optim.Optimizer, warn: Any = print
) -> tuple[int, dict[str, Any]] | None:
    """Restore the newest sound checkpoint into ``network`` and ``optimizer``.

    Returns:
        (steps done, progress), or None where there is nothing to go on from.
    """
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            return _load(candidate, network, optimizer)
        except (ArtifactError, SafetensorError, KeyError, RuntimeError, OSError) as error:
            warn(f"skipping the damaged checkpoint {candidate}: {error}")
    return None


def last_weights(folder: Path, *, count: int) -> list[dict[str, Tensor]]:
    """The weights of the newest ``count`` checkpoints, in the order of their steps.

    Raises:
        ArtifactError: there are fewer, or one is damaged.
    """
    candidates = sorted(folder.glob("step-*"))[-count:]
    if len(candidates) < count:
        raise ArtifactError(
            f"train.merge.last={count}, but {folder} holds {len(candidates)} checkpoints; lower it, or train.checkpoint_every"
        )
    for candidate in candidates:
        _check(candidate)
    return [load_file(candidate / "network.safetensors") for candidate in candidates]


def _load(folder: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, dict[str, Any]]:
    facts = _check(folder)
    progress = read_json(folder / "progress.json")
    weights, state = load_file(folder / "network.safetensors"), load_file(folder / "optimizer.safetensors")
    network.load_state_dict(weights)
    _unflatten(optimizer, state)
    return int(facts["step"]), progress


def _check(folder: Path) -> dict[str, Any]:
    facts: dict[str, Any] = read_json(folder / "checkpoint.json")
    for name, digest in facts["files"].items():
        if sha256_file(folder / name) != digest:
            raise ArtifactError(f"{folder / name} does not have the hash that checkpoint.json records")
    return facts


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {f"{index}.{name}": value for index, state in optimizer.state_dict()["state"].items() for name, value in state.items()}


def _unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
