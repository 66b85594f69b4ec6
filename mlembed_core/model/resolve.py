"""A backbone from the parameters: fresh weights from a configuration, a folder, or a hub repository at a pinned commit.

Safetensors only, no remote code. Dropout is off in every backbone, whatever its configuration says: the recipe has none, and the only
draws of a training are functions of seed and step, so that a step computed twice (resume, activation checkpointing, chunks) is the
same step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mlembed_core.config.model import HubBackbone, LocalBackbone, RandomBackbone
from mlembed_core.errors import ArtifactError, ConfigError
from mlembed_core.hub import fetch
from mlembed_core.model.architecture import first_position

POSITIONS_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")  # model types whose first position is padding_idx + 1


def resolve_backbone(params: RandomBackbone | LocalBackbone | HubBackbone, *, root: Path, vocab_size: int, seed: int) -> nn.Module:
    """The stock transformers model that ``params`` names, in float32.

    Args:
        root: what a relative local path is relative to.
        vocab_size: of the tokenizer; a random backbone gets a table of this size.
        seed: of a random backbone's weights.

    Raises:
        ConfigError: an architecture that transformers does not know, a shape that it refuses, or the hub has no such commit.
        ArtifactError: the folder, or the repository, holds no model.
        MachineError: the hub cannot be reached.
    """
    match params:
        case RandomBackbone():
            return random_backbone(params, vocab_size=vocab_size, seed=seed)
        case LocalBackbone():
            folder = (root / params.path).resolve()
            if not (folder / "config.json").is_file():
                raise ArtifactError(
                    f"backbone.path={params.path}: there is no model in {folder} (no config.json). Put a Hugging Face checkpoint with "
                    "safetensors there, or choose another backbone in configs/params.yaml."
                )
            return load_folder(folder)
        case HubBackbone():
            return load_folder(fetch(params.repo, params.revision, path="backbone.repo"))


def random_backbone(params: RandomBackbone, *, vocab_size: int, seed: int) -> nn.Module:
    """A model with the architecture's own initialisation, drawn from ``seed`` without touching the global generator's state."""
    from transformers import AutoConfig, AutoModel

    # No padding_idx: it would cut the gradient of the EOS row where a tokenizer pads with EOS. (XLM-R counts positions from it.)
    defaults = {} if params.config["model_type"] in POSITIONS_FROM_PADDING else {"pad_token_id": None}
    settings = {key: value for key, value in params.config.items() if key != "model_type"}
    try:
        config = AutoConfig.for_model(
            params.config["model_type"], **{**defaults, **settings, "vocab_size": vocab_size, "tie_word_embeddings": True}
        )
        _switch_dropout_off(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cast("nn.Module", AutoModel.from_config(config, dtype=torch.float32))
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"backbone.config: transformers refuses {params.config}: {error}") from error


def load_folder(folder: Path) -> nn.Module:
    """The model in a local folder.

    Raises:
        ArtifactError: no or damaged weights; the message names the folder.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar per checkpoint says nothing that the stage does not
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(folder, **options)
        _switch_dropout_off(config)
        model = AutoModel.from_pretrained(folder, config=config, dtype=torch.float32, use_safetensors=True, **options)
    except SafetensorError as error:
        raise ArtifactError(
            f"the weights in {folder} are damaged ({error}). Fetch them again (`dvc checkout`, or from where they came)."
        ) from error
    except OSError as error:
        raise ArtifactError(f"cannot read a model from {folder}: {error}") from error
    return cast("nn.Module", model)


def _switch_dropout_off(config: Any) -> None:
    for key, value in config.to_dict().items():
        if "dropout" in key and isinstance(value, float):
            setattr(config, key, 0.0)


def check_positions(model: nn.Module, max_length: int) -> None:
    """Raises ConfigError where texts may be longer than the model has learned positions for."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if table is None:
        return
    limit = table.weight.shape[0] - first_position(model)
    if max_length > limit:
        raise ConfigError(f"tokenizer.max_length={max_length} exceeds the {limit} positions of the backbone; use a length ≤ {limit}")
