"""A backbone from the parameters: fresh weights from a configuration, a folder, or a hub repository at a pinned commit.

Safetensors only, no remote code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mlembed_core.config.model import BackboneParams, HubBackbone, LocalBackbone, RandomBackbone
from mlembed_core.errors import ArtifactError, ConfigError, MachineError


def resolve_backbone(params: BackboneParams, *, root: Path, vocab_size: int, seed: int) -> nn.Module:
    """The stock transformers model that ``params`` names, in float32.

    Args:
        root: what a relative local path is relative to.
        vocab_size: of the tokenizer; a random backbone gets a table of this size.
        seed: of a random backbone's weights.

    Raises:
        ConfigError: an architecture that transformers does not know, or a shape that it refuses.
        ArtifactError: the folder holds no model.
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
            return _load(params.repo, revision=params.revision)


def random_backbone(params: RandomBackbone, *, vocab_size: int, seed: int) -> nn.Module:
    """A model with the architecture's own initialisation, drawn from ``seed`` without touching the global generator's state."""
    from transformers import AutoConfig, AutoModel

    settings = {key: value for key, value in params.config.items() if key != "model_type"}
    try:
        # No padding_idx: it would cut the gradient of the EOS row where a tokenizer pads with EOS.
        config = AutoConfig.for_model(
            params.config["model_type"], **settings, vocab_size=vocab_size, pad_token_id=None, tie_word_embeddings=True
        )
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
    return _load(str(folder), local_files_only=True)


def _load(name: str, **options: Any) -> nn.Module:
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar per checkpoint says nothing that the stage does not
    try:
        model = AutoModel.from_pretrained(name, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, **options)
    except SafetensorError as error:
        raise ArtifactError(
            f"the weights in {name} are damaged ({error}). Fetch them again (`dvc checkout`, or from where they came)."
        ) from error
    except OSError as error:
        if options.get("local_files_only"):
            raise ArtifactError(f"cannot read a model from {name}: {error}") from error
        revision = options["revision"]
        raise MachineError(
            f"cannot fetch the backbone {name} at {revision}: {error}\nWith network access, run `hf download {name} --revision {revision}`."
        ) from error
    return cast("nn.Module", model)
