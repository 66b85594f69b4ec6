"""Parameters of the 3D-ML settings: which axes a model is trained on, and which terms its loss has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, model_validator

from mlembed_core.artifacts import CONTROLS
from mlembed_core.config.base import Name, Section
from mlembed_core.config.data import Kind
from mlembed_core.config.model import HubModel, RegisteredModel
from mlembed_core.config.train import Objective


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


class LocalTeacher(Section):
    """A checkpoint folder in Hugging Face form, with the student's tokenizer; one of our own ``models/SETTING`` will do.

    Its hash is pinned here, so that the parameters alone say what a model was distilled from: DVC sees no file outside its graph.
    """

    type: Literal["local"]
    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="of its config and weights; training refuses to start without, and says what it is"
    )


Teacher = LocalTeacher | HubModel | RegisteredModel


class DistillationParams(Section):
    """Pull the student's vectors to those of a frozen teacher (ML-Embed, knowledge distillation)."""

    teacher: Annotated[Teacher, Field(discriminator="type")]
    weight: PositiveFloat = Field(description="of the term in the loss; a mean squared error of unit vectors is small, some 1/hidden")
    max_cache_gib: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="where the teacher's vectors of all texts (4 bytes × texts × the student's hidden size) take at most so much disk, "
        "each text is encoded once, before the first step; else, and with 0, those of a step are encoded in that step",
    )


class SettingParams(Section):
    """A named training recipe: which of the three Matryoshka axes it trains, and with which terms.

    ``mrl`` and ``mll`` take ``auto`` (the paper's dims and exits for the backbone's size), an explicit list, or null (off).
    """

    mrl: Literal["auto"] | list[PositiveInt] | None = None
    mll: Literal["auto"] | list[PositiveInt] | None = None
    mel: MelParams | None = None
    lora: LoraParams | None = None
    objectives: dict[Kind, Objective] = Field(default_factory=dict, description="exceptions from train.objectives, per kind of source")
    distillation: DistillationParams | None = None
    self_distillation: PositiveFloat | None = Field(
        None, description="weight of early exits following the last one (Zhang et al., Be Your Own Teacher, arXiv 1905.08094)"
    )

    @model_validator(mode="after")
    def _early_exits_exist(self) -> SettingParams:
        if self.self_distillation is not None and self.mll is None:
            raise ValueError(f"self_distillation={self.self_distillation} has no effect without mll, which gives more than one exit")
        return self

    def objective_of(self, kind: Kind, shared: Mapping[Kind, Objective]) -> Objective:
        """The contrastive terms for a kind of source; ``shared`` is ``train.objectives``."""
        return self.objectives.get(kind) or shared[kind]


def _check_setting(name: str) -> str:
    if name == CONTROLS:
        raise ValueError(f"no setting can be called {name!r}: scores/{name} holds the scores of the controls. Choose another name.")
    return name


Settings = dict[Annotated[Name, AfterValidator(_check_setting)], SettingParams]
