"""Parameters of the training run, shared by all settings so that they can be compared."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from mlembed_core.config.base import Name, Precision, Section
from mlembed_core.config.data import Kind


class Schedule(StrEnum):
    COSINE = "cosine"
    CONSTANT = "constant"


class Checkpointing(StrEnum):
    """Of activations: what the backward pass computes again instead of remembering it. The gradients are the same."""

    NONE = "none"
    FULL = "full"  # everything between a bucket's ids and its states
    SELECTIVE = "selective"  # all but the results of matrix products and attention


class MergeMethod(StrEnum):
    """How the weights of several checkpoints become one set."""

    AVERAGE = "average"
    SLERP = "slerp"


class MergeParams(Section):
    """Merge the last checkpoints of a run at its end; kept only where that lowers the loss of held-out rows."""

    method: MergeMethod
    last: Annotated[int, Field(ge=2, description="checkpoints, the last one included")]


class Objective(Section):
    """The contrastive terms of one kind of source."""

    in_batch: bool = Field(description="cross-entropy over all positives of the global batch")
    num_hard_negatives: Annotated[int, Field(ge=0)] = Field(description="drawn per row and step from the row's own; 0: no such term")


SizeWeights = Annotated[str, Field(pattern=r"^size\^(0|1|0?\.[0-9]+)$")]


class TrainParams(Section):
    """How long, on what and how a setting is trained."""

    num_steps: PositiveInt | None = Field(None, description="null: num_epochs passes over every source")
    num_epochs: PositiveInt = 1
    batch_size: PositiveInt = Field(description="rows of the global batch, over all processes")
    batch_size_of: dict[Name, PositiveInt] = Field(default_factory=dict, description="exceptions, per source")
    source_weights: dict[Name, Annotated[float, Field(ge=0)]] | SizeWeights | None = Field(
        None,
        description="null: ∝ remaining batches (the recipe); else the probability of each source ∝ its weight, 0 leaves it out; "
        "or size^P: ∝ its rows to the power P, which is a temperature of 1/P",
    )
    objectives: dict[Kind, Objective]
    temperature: PositiveFloat = 0.05
    mask_same_text: bool = Field(False, description="in-batch items with the query's or positive's own text are no negatives")
    mask_same_label: bool = Field(False, description="in-batch items with the row's own label are no negatives")
    mask_similar_margin: Annotated[float, Field(ge=0)] | None = Field(
        None, description="in-batch items more similar to the query than its positive by this much are no negatives (arXiv 2506.05176: 0.1)"
    )
    gather_with_grad: bool = Field(
        True, description="false: as the reference code, items of the global batch carry no gradient when there are several processes"
    )
    learning_rate: PositiveFloat
    min_learning_rate: Annotated[float, Field(ge=0)] = 0.0
    schedule: Schedule = Schedule.COSINE
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: PositiveFloat = 1.0
    bucket_tokens: PositiveInt | None = Field(
        None, description="tokens encoded at a time; on a CPU some 1,000 stay in its caches. null: no bound"
    )
    grad_cache_tokens: PositiveInt | None = Field(
        None,
        description="encode in chunks of so many tokens and keep the activations of one: memory of a chunk, gradient of the whole batch "
        "(GradCache, arXiv 2101.06983; what gradient accumulation is where rows are each other's negatives). null: one chunk",
    )
    activation_checkpointing: Checkpointing = Field(
        Checkpointing.SELECTIVE,
        description="memory for time: selective costs nothing to speak of in large models and a quarter of a step in small ones (hidden "
        "256), where none is better; full costs another forward pass",
    )
    precision: Precision = Precision.BF16
    num_threads: PositiveInt = Field(description="CPU threads of one process; part of the result (sums are ordered by it)")
    log_every: PositiveInt = 10
    validate_every: PositiveInt | None = Field(None, description="null: at the end only")
    checkpoint_every: PositiveInt | None = Field(None, description="steps between resume states; null: only when told to stop")
    kept_checkpoints: PositiveInt = Field(2, description="the newest resume states that stay; a damaged one gives way to the one before")
    merge: MergeParams | None = None
    max_skipped_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps whose loss or gradient is not finite that are left out and counted before the run stops"
    )

    @model_validator(mode="after")
    def _checkpoints_are_kept_for_the_merge(self) -> TrainParams:
        if self.merge is not None and (self.checkpoint_every is None or self.kept_checkpoints < self.merge.last):
            raise ValueError(
                f"merge.last={self.merge.last} needs checkpoint_every and kept_checkpoints ≥ {self.merge.last} (found "
                f"{self.checkpoint_every} and {self.kept_checkpoints})"
            )
        return self
