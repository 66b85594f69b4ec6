"""Parameters of the gate: what a version must show before it becomes the champion. No stage reads them, so nothing is made again."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from mlembed_core.config.base import Name, Section
from mlembed_core.config.evaluate import SubmodelParams

Drop = Annotated[float, Field(ge=0, le=1)]


class GateParams(Section):
    """Scores are those of the suites, between 0 and 1."""

    suites: list[Name] | None = Field(
        None, min_length=1, description="what counts; null: every suite that keeps scores of single questions"
    )
    submodels: list[SubmodelParams] = Field([SubmodelParams()], min_length=1, description="the cuts that count; {} is the full model")
    margin: float = Field(0.0, ge=0, le=1, description="how much higher than the champion's the average must be, at least")
    max_task_drop: Drop = Field(0.02, description="no task's score may fall by more")
    max_language_drop: Drop = Field(0.1, description="the questions of no language may be answered worse by more")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of what the resampled questions show")
    min_questions: PositiveInt = Field(20, description="languages with fewer questions are judged together, as one")
    controls: list[str] = Field(["untrained"], description="what the first champion must beat by the margin, since there is none before it")
