"""Parameters of the evaluation: suites of tasks, and the submodels to score on them."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mlembed_core.config.base import Name, Precision, Section


class TaskType(StrEnum):
    RETRIEVAL = "retrieval"
    BITEXT_MINING = "bitext_mining"
    CLASSIFICATION = "classification"


class LocalTask(Section):
    """An mteb task made from the test split of one source."""

    type: TaskType
    source: Name
    max_queries: PositiveInt | None = Field(
        None, description="queries (or pairs, or texts) kept, chosen by hash; of passages, those that answer them"
    )


KEEPS_QUERY_SCORES = "keep the score of every single query beside the averages; paired comparisons of two models need them"


class LocalSuite(Section):
    """Tasks that need no download."""

    type: Literal["local"]
    tasks: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], LocalTask] = Field(min_length=1)
    query_scores: bool = Field(True, description=KEEPS_QUERY_SCORES)


class BenchmarkSuite(Section):
    """A benchmark of the mteb package, by its name there."""

    type: Literal["mteb"]
    benchmark: str
    query_scores: bool = Field(False, description=KEEPS_QUERY_SCORES)


class TaskListSuite(Section):
    """Tasks of the mteb package, by their names there."""

    type: Literal["mteb_tasks"]
    tasks: list[str] = Field(min_length=1)
    query_scores: bool = Field(False, description=KEEPS_QUERY_SCORES)


Suite = LocalSuite | BenchmarkSuite | TaskListSuite
SuiteParams = Annotated[Suite, Field(discriminator="type")]
Suites = dict[Name, SuiteParams]


class SubmodelParams(Section):
    """A point of the 3D grid; null means uncut."""

    layers: PositiveInt | None = None
    dim: PositiveInt | None = None
    rank: PositiveInt | None = None


class EvaluationParams(Section):
    """How every suite is scored."""

    submodels: list[SubmodelParams] = Field(min_length=1, description="scored one by one; {} is the full model")
    batch_tokens: PositiveInt = Field(8192, description="tokens encoded at a time")
    precision: Precision = Precision.FP32
    num_threads: PositiveInt
