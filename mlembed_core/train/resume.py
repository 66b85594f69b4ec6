"""Resume state of a training: weights, optimizer, step and curves under ``.work/``, so that a killed run goes on where it was.

Draws are functions of (seed, step), so this is all the state there is. A checkpoint is written to a temporary folder, synced and
renamed; a damaged one is skipped with a warning for the one before. Where they live: ``train/state_folder.py``.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mlembed_core.artifacts import read_json, sha256_file, write_json
from mlembed_core.errors import ArtifactError
from mlembed_core.train.sharding import like


@dataclass(frozen=True)
class Saved:
    """A checkpoint.

    Attributes:
        step: steps done.
        weights: the network's state dict.
        moments: the optimizer's state, as :func:`moments_of` gives it.
        progress: JSON-able.
    """

    step: int
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]
    progress: dict[str, Any]


def save(folder: Path, state: Saved, *, kept: int) -> None:
    """Write a checkpoint to ``folder/step-N``.

    Args:
        kept: the newest states that stay.
    """
    draft = folder / f".step-{state.step:08d}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    save_file(state.weights, draft / "network.safetensors")
    save_file(state.moments, draft / "optimizer.safetensors")
    write_json(draft / "progress.json", state.progress)
    files = {path.name: sha256_file(path) for path in sorted(draft.iterdir())}
    write_json(draft / "checkpoint.json", {"step": state.step, "files": files})
    for path in [*draft.iterdir(), draft]:
        _sync(path)
    final = folder / f"step-{state.step:08d}"
    shutil.rmtree(final, ignore_errors=True)  # a damaged one that was skipped on resuming
    os.replace(draft, final)
    _sync(folder)  # the new name is a change of the folder; before it is on disk, no older state may go
    for old in sorted(folder.glob("step-*"))[:-kept]:
        shutil.rmtree(old, ignore_errors=True)


def read_newest(folder: Path, *, warn: Any = print) -> Saved | None:
    """The newest sound checkpoint, on the CPU; None where there is nothing to go on from."""
    for candidate in sorted(folder.glob("step-*"), reverse=True):
        try:
            return _read(candidate)
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


def moments_of(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state in one dictionary: number of the parameter, a dot, name of the value."""
    return {f"{index}.{name}": value for index, state in optimizer.state_dict()["state"].items() for name, value in state.items()}


def restore_moments(optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]) -> None:
    """Give an optimizer the state that :func:`moments_of` took; its parameters may be split over processes."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = like(value, parameters[int(index)])
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _read(folder: Path) -> Saved:
    facts = _check(folder)
    weights, moments = load_file(folder / "network.safetensors"), load_file(folder / "optimizer.safetensors")
    return Saved(int(facts["step"]), weights, moments, read_json(folder / "progress.json"))


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
