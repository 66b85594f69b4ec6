"""Catalogues: files of ``configs/sources`` that name collections once, for any preset to take as its sources.

A catalogue says what a source is (``mlembed_core/config/data.py``) and, shorter, which files of one dataset repository it has: what
stands under ``hub`` holds for every source that gives ``files`` in place of an ``origin``. A ``weight`` becomes one of
``train.source_weights``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mlembed_core.config.base import Name, Section, parse, pick
from mlembed_core.config.data import HubOrigin, SourceParams
from mlembed_core.config.load import read_yaml
from mlembed_core.errors import ConfigError

OF_ORIGIN = ("files", "max_rows", "max_rows_per_file")


class Choice(Section):
    """What a preset takes of a catalogue."""

    name: str
    sources: list[Name] | None = Field(None, min_length=1, description="null: all")
    max_rows_per_file: int | None = Field(None, ge=1, description="for sources that say nothing of it")


class Entry(SourceParams):
    """A source of a catalogue."""

    weight: Annotated[float, Field(ge=0)] | None = Field(None, description="null: 1 where others have one")


class Catalogue(Section):
    """A whole file, every source with its origin."""

    sources: dict[Name, Entry] = Field(min_length=1)


def read_catalogue(path: Path) -> Catalogue:
    """A catalogue, checked.

    Raises:
        ConfigError: no such file, or a value that the schema refuses; the message names the source and the key.
    """
    values = read_yaml(path)
    hub = values.pop("hub", None)
    sources = values.get("sources")
    if isinstance(hub, Mapping) and isinstance(sources, Mapping):
        values["sources"] = {name: _with_origin(entry, hub) for name, entry in sources.items()}
    elif hub is not None:
        raise ConfigError(f"{path}: hub and sources must be mappings")
    return parse(Catalogue, values, origin=str(path))


def _with_origin(entry: Any, hub: Mapping[str, Any]) -> Any:
    if not isinstance(entry, Mapping) or "origin" in entry:
        return entry
    origin = {"type": "hub", **hub, **{key: entry[key] for key in OF_ORIGIN if key in entry}}
    return {**{key: value for key, value in entry.items() if key not in OF_ORIGIN}, "origin": origin}


def with_catalogue(values: Mapping[str, Any], folder: Path, chosen: str | Mapping[str, Any]) -> dict[str, Any]:
    """Parameters with a catalogue's sources in the place of their own.

    Args:
        folder: ``configs/sources``.
        chosen: its name, or a mapping of :class:`Choice`.

    Raises:
        ConfigError: there is no such catalogue or source, or it is not well-formed.
    """
    choice = parse(Choice, {"name": chosen} if isinstance(chosen, str) else chosen, origin="catalogue")
    path = folder / f"{choice.name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise ConfigError(f"there is no catalogue {choice.name!r} in {folder} (there are: {known})")
    entries = read_catalogue(path).sources
    names: Sequence[str] = choice.sources or list(entries)
    picked = {name: pick(entries, name, path=f"catalogue {choice.name}") for name in names}
    merged = {**values, "sources": {name: _as_source(entry, choice.max_rows_per_file) for name, entry in picked.items()}}
    weights = {name: entry.weight for name, entry in picked.items()}
    if any(weight is not None for weight in weights.values()):
        of_sources = {name: 1.0 if weight is None else weight for name, weight in weights.items()}
        merged["train"] = {**values.get("train", {}), "source_weights": of_sources}
    return merged


def _as_source(entry: Entry, max_rows_per_file: int | None) -> dict[str, Any]:
    """As it stands in the parameters: what is said, and nothing else."""
    values = entry.model_dump(mode="json", exclude_unset=True, exclude={"weight"})
    if max_rows_per_file is not None and isinstance(entry.origin, HubOrigin) and entry.origin.max_rows_per_file is None:
        values["origin"]["max_rows_per_file"] = max_rows_per_file
    return values
