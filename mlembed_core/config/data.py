"""Parameters of the data stages: sources, tokenizer, training cache."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from mlembed_core.config.base import Name, Section


class Kind(StrEnum):
    """What a row's negatives are (REFERENCE.md, Data): other passages, texts of other classes, or other label names."""

    RETRIEVAL = "retrieval"
    CLUSTERING = "clustering"
    CLASSIFICATION = "classification"


class EmbeddedOrigin(Section):
    """Text that comes with Python and the project's own dependencies; needs no network."""

    type: Literal["embedded"]
    builder: str = Field(description="a function registered in mlembed_core.data.sources.embedded")
    max_rows: PositiveInt | None = Field(None, description="keep at most this many rows, chosen by hash")


class LocalOrigin(Section):
    """A team's own pairs: parquet files with the columns of the recipe."""

    type: Literal["local"]
    files: list[str] = Field(min_length=1, description="paths or globs, relative to the workspace")
    max_rows: PositiveInt | None = None


class SourceParams(Section):
    """A named collection of (query, passage, negatives) rows."""

    origin: Annotated[EmbeddedOrigin | LocalOrigin, Field(discriminator="type")]
    kind: Kind
    num_negatives: Annotated[int, Field(ge=0, le=24)] = Field(24, description="columns negative_1 … negative_N")
    symmetric: bool = Field(False, description="queries and passages are texts of the same sort")
    instruction: str | None = None
    licence: str | None = None


class TrainedTokenizer(Section):
    """A byte-level BPE trained on the train split of the sources."""

    type: Literal["trained"]
    vocab_size: Annotated[int, Field(ge=300, description="256 bytes and the special tokens come first")]
    max_length: Annotated[int, Field(ge=2, description="tokens of one text, EOS included")]


class LocalTokenizer(Section):
    """The tokenizer of a folder in Hugging Face form (``tokenizer.json``)."""

    type: Literal["local"]
    path: str
    max_length: Annotated[int, Field(ge=2)]


class HubTokenizer(Section):
    """The tokenizer of a hub repository at a pinned commit."""

    type: Literal["hub"]
    repo: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$", description="a full commit hash, never a branch")]
    max_length: Annotated[int, Field(ge=2)]


TokenizerParams = Annotated[TrainedTokenizer | LocalTokenizer | HubTokenizer, Field(discriminator="type")]


class CacheParams(Section):
    """The training cache."""

    validation_fraction: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.01, description="share held out of a source whose rows name no split (the recipe's 1 %)"
    )


Sources = dict[Name, SourceParams]
