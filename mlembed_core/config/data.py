"""Parameters of the data stages: sources, tokenizer, training cache."""

from __future__ import annotations

import glob
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer

from mlembed_core.config.base import Name, Section
from mlembed_core.config.checks import RowChecks
from mlembed_core.config.languages import Language, ProgrammingLanguage


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


class FileParams(Section):
    """Files of one pattern, where there is more to say of them than of the source as a whole."""

    path: str = Field(min_length=1, description="a path or glob")
    languages: list[Language] | None = None
    programming_languages: list[ProgrammingLanguage] | None = None

    def matches(self, root: Path) -> list[Path]:
        """The files that the path or glob (``**`` too) stands for, relative to ``root``, in no order."""
        # Not Path.glob, which refuses absolute patterns and ".."; a team's files may lie beside the workspace.
        found = (root / match for match in glob.glob(self.path, root_dir=root, recursive=True))  # noqa: PTH207
        return [path for path in found if path.is_file()]


class LocalOrigin(Section):
    """A team's own pairs: parquet, jsonl or csv files (also .gz and the like) with the columns of the recipe."""

    type: Literal["local"]
    files: list[str | FileParams] = Field(min_length=1, description="paths or globs, relative to the workspace")
    max_rows: PositiveInt | None = None

    @property
    def patterns(self) -> list[FileParams]:
        return _as_patterns(self.files)


class HubOrigin(Section):
    """Files of a dataset repository on the Hugging Face hub, of the same forms."""

    type: Literal["hub"]
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name")
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = Field(
        None, description="a full commit hash, never a branch; null: the newest at the first fetch, which the manifest then holds"
    )
    files: list[str | FileParams] = Field(min_length=1, description="paths in the repository, or globs; without / in any of its folders")
    max_rows: PositiveInt | None = None
    max_rows_per_file: PositiveInt | None = None

    @property
    def patterns(self) -> list[FileParams]:
        return _as_patterns(self.files)


def _as_patterns(files: list[str | FileParams]) -> list[FileParams]:
    return [FileParams(path=file) if isinstance(file, str) else file for file in files]


class SourceParams(Section):
    """A named collection of (query, passage, negatives) rows. All its files are of one kind: a batch is of one source and one loss."""

    origin: Annotated[EmbeddedOrigin | LocalOrigin | HubOrigin, Field(discriminator="type")]
    kind: Kind
    num_negatives: Annotated[int, Field(ge=0, le=24)] = Field(24, description="columns negative_1 … negative_N")
    symmetric: bool = Field(False, description="queries and passages are texts of the same sort")
    instruction: str | None = None
    licence: str | None = Field(None, description="null: what the hub's dataset card says, if it is from there")
    languages: list[Language] | None = Field(None, description="ISO-639-3; null: unknown, or said file by file")
    programming_languages: list[ProgrammingLanguage] | None = None
    labels: list[str] | None = Field(None, min_length=1, description="the classes that rows may have; null: any")
    checks: RowChecks = RowChecks()

    @property
    def declared_languages(self) -> set[str]:
        """All that are said of the source or of some of its files."""
        of_files = [] if isinstance(self.origin, EmbeddedOrigin) else [pattern.languages or [] for pattern in self.origin.patterns]
        return {*(self.languages or []), *(language for languages in of_files for language in languages)}

    @model_serializer(mode="wrap")
    def _unsaid_is_left_out(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # So that a key that is new does not change the manifests of all sources that do not use it.
        values: dict[str, Any] = handler(self)
        for name in ("languages", "programming_languages", "labels", "checks"):
            if name in values and getattr(self, name) == type(self).model_fields[name].default:
                del values[name]
        return values


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
