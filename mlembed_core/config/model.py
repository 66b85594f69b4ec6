"""Parameters of the backbone: the architecture and where its first weights come from."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator

from mlembed_core.config.base import Name, Section


class Initialisation(StrEnum):
    """How a random backbone's weights start."""

    DEFAULT = "default"  # the architecture's own initialisation
    COUNTS = "counts"  # token table from co-occurrence counts, attention as an average (model/count_init.py)


class Pooling(StrEnum):
    """Which of a text's tokens make its vector."""

    LAST = "last"  # the EOS
    MEAN = "mean"  # of all, after the final norm
    CLS = "cls"  # the first


class PruneParams(Section):
    """Make the backbone smaller (model/prune.py); null leaves a size as it is."""

    hidden_size: PositiveInt | None = None
    intermediate_size: PositiveInt | None = None
    num_hidden_layers: PositiveInt | None = None
    num_texts: PositiveInt = Field(2048, description="of the training cache, evenly spaced, on which activations are measured")


class Backbone(Section):
    """What every kind of backbone has."""

    prune: PruneParams | None = None
    pooling: Pooling | None = Field(None, description="null: by architecture, last for causal models and mean for bidirectional ones")


class RandomBackbone(Backbone):
    """An architecture from a configuration, with fresh weights."""

    type: Literal["random"]
    initialisation: Initialisation = Initialisation.DEFAULT
    config: dict[str, Any] = Field(description="as in a Hugging Face config.json, model_type included; vocab_size follows the tokenizer")

    @property
    def shape(self) -> dict[str, Any]:
        """``config`` as it is after pruning."""
        pruned = {} if self.prune is None else self.prune.model_dump(exclude={"num_texts"}, exclude_none=True)
        return {**self.config, **pruned}

    @field_validator("config")
    @classmethod
    def _shape_is_named(cls, config: dict[str, Any]) -> dict[str, Any]:
        for key, kind in (("model_type", str), ("hidden_size", int), ("num_hidden_layers", int)):
            if not isinstance(config.get(key), kind):
                raise ValueError(f"{key}={config.get(key)!r} must be given as {kind.__name__}")
        return config


class LocalBackbone(Backbone):
    """A checkpoint folder in Hugging Face form (``config.json``, ``*.safetensors``)."""

    type: Literal["local"]
    path: str


class HubModel(Section):
    """A hub repository at a pinned commit."""

    type: Literal["hub"]
    repo: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="a full commit hash, never a branch")]


class RegisteredModel(Section):
    """A registered version, by its number: an alias moves."""

    type: Literal["registry"]
    name: Name
    version: PositiveInt


class HubBackbone(HubModel, Backbone):
    """A hub repository at a pinned commit."""


class RegistryBackbone(RegisteredModel, Backbone):
    """A registered version, by its number: an alias moves. What stage 1 of the recipe made, for stage 2."""


BackboneParams = Annotated[RandomBackbone | LocalBackbone | HubBackbone | RegistryBackbone, Field(discriminator="type")]
