"""Parameters of the model: the backbone, and the 3D-ML settings trained on it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

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


class Backbone(Section):
    """What every kind of backbone has."""

    pooling: Pooling | None = Field(None, description="null: by architecture, last for causal models and mean for bidirectional ones")


class RandomBackbone(Backbone):
    """An architecture from a configuration, with fresh weights."""

    type: Literal["random"]
    initialisation: Initialisation = Initialisation.DEFAULT
    config: dict[str, Any] = Field(description="as in a Hugging Face config.json, model_type included; vocab_size follows the tokenizer")

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


class HubBackbone(Backbone):
    """A hub repository at a pinned commit."""

    type: Literal["hub"]
    repo: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="a full commit hash, never a branch")]


BackboneParams = Annotated[RandomBackbone | LocalBackbone | HubBackbone, Field(discriminator="type")]


class MelParams(Section):
    """Matryoshka Embedding Learning: the token table as U (vocab × rank) times V (rank × hidden)."""

    rank: PositiveInt
    min_rank: PositiveInt | None = Field(None, description="smallest sampled rank; required with sampled")
    sampled: bool = Field(False, description="draw one rank per step ∝ rank; false: a plain static low-rank table")

    @model_validator(mode="after")
    def _ranks_are_ordered(self) -> MelParams:
        if self.sampled and self.min_rank is None:
            raise ValueError("sampled: true needs min_rank, the smallest rank to draw")
        if self.min_rank is not None and not self.sampled:
            raise ValueError(f"min_rank={self.min_rank} has no effect without sampled: true")
        if self.min_rank is not None and self.min_rank > self.rank:
            raise ValueError(f"min_rank={self.min_rank} exceeds rank={self.rank}")
        return self


class LoraParams(Section):
    """Low-rank adapters on the backbone's linear layers, trained in place of its weights and merged into them at the end."""

    rank: PositiveInt
    alpha: PositiveFloat = Field(description="the adapter's product is scaled by alpha / rank")
    target_modules: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="names of linear layers, e.g. [q_proj, v_proj]; null: all of them"
    )


class SettingParams(Section):
    """A named training recipe: which of the three Matryoshka axes it trains.

    ``mrl`` and ``mll`` take ``auto`` (the paper's dims and exits for the backbone's size), an explicit list, or null (off).
    """

    mrl: Literal["auto"] | list[PositiveInt] | None = None
    mll: Literal["auto"] | list[PositiveInt] | None = None
    mel: MelParams | None = None
    lora: LoraParams | None = None


Settings = dict[Name, SettingParams]
