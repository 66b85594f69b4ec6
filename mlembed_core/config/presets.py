"""Presets: named parameter files, some as small overlays of another, and the command that puts one in place.

An overlay names its base with ``extends``, the keys to drop from it with ``without`` (dotted paths), a catalogue whose sources take the
place of the base's with ``catalogue``, and gives the rest as a mapping that is merged into the base, section by section.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlembed_core.config.base import parse
from mlembed_core.config.catalogue import with_catalogue
from mlembed_core.config.load import read_yaml
from mlembed_core.config.params import Params
from mlembed_core.errors import ConfigError


def compose(folder: Path, name: str, *, catalogue: str | None = None) -> str:
    """The text of ``params.yaml`` for a preset, checked.

    Args:
        folder: ``configs/presets``.
        catalogue: a file of ``configs/sources`` whose sources take the place of the preset's.

    Raises:
        ConfigError: no such preset or catalogue, a base that does not exist, a dropped key that is not there, or values that the schema
            refuses.
    """
    path = _find(folder, name)
    values = read_yaml(path)
    if catalogue is None and not {"extends", "catalogue"} & set(values):
        parse(Params, values, origin=str(path))
        return path.read_text(encoding="utf-8")
    merged = _resolve(folder, name, seen=())
    of = f"configs/presets/{name}.yaml on top of what it extends"
    if catalogue is not None:
        merged = with_catalogue(merged, folder.parent / "sources", catalogue)
        of += f", with the sources of configs/sources/{catalogue}.yaml"
    parse(Params, merged, origin=str(path))
    text = io.StringIO()
    yaml = YAML()
    yaml.width = 140
    yaml.dump(merged, text)
    return f"# Written by `mlembed preset`: {of}.\n{text.getvalue()}"


def read(folder: Path, name: str) -> Params:
    """The parameters of a preset, checked.

    Raises:
        ConfigError: see :func:`compose`.
    """
    return parse(Params, _resolve(folder, name, seen=()), origin=str(_find(folder, name)))


def _find(folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    if path.parent != folder or not path.is_file():  # a name, not a path
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml"))) or "none"
        raise ConfigError(f"there is no preset {name!r} in {folder} (there are: {known})")
    return path


def _resolve(folder: Path, name: str, *, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise ConfigError(f"presets extend each other in a circle: {' → '.join([*seen, name])}")
    path = _find(folder, name)
    return laid_over(folder, read_yaml(path), path=path, seen=(*seen, name))


def laid_over(folder: Path, overlay: dict[str, Any], *, path: Path, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """An overlay on top of what it extends, not checked against the schema.

    Args:
        folder: ``configs/presets``.
        path: of the overlay, for messages.
        seen: presets that are being put together.

    Raises:
        ConfigError: see :func:`compose`.
    """
    overlay = dict(overlay)
    base_name = overlay.pop("extends", None)
    dropped = overlay.pop("without", [])
    base = _resolve(folder, base_name, seen=seen) if base_name is not None else {}
    for key in dropped:
        _drop(base, key, path)
    if (chosen := overlay.pop("catalogue", None)) is not None:
        base = with_catalogue(base, folder.parent / "sources", chosen)
    return _merge(base, overlay)


def _drop(values: dict[str, Any], key: str, path: Path) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.get(parent, {})
    if last not in values:
        raise ConfigError(f"{path}: without: {key} is not in the base, so it cannot be dropped")
    del values[last]


def _merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in overlay.items():
        both_mappings = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both_mappings else value
    return merged
