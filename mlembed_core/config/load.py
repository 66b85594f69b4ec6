"""The one YAML reader. YAML 1.2 through ruamel, as DVC reads it: ``no`` is Norwegian and ``1e-5`` is a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlembed_core.config.base import S, parse
from mlembed_core.errors import ConfigError


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: no such file, not YAML, or not a mapping; the message names the file and the line.
    """
    try:
        with path.open(encoding="utf-8") as handle:
            values = YAML(typ="safe", pure=True).load(handle)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; `mlembed preset embedded` writes the default one") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of sections, found {type(values).__name__}")
    return values


def load(path: Path, model: type[S]) -> S:
    """The sections of the file that ``model`` has as fields, checked.

    A stage passes a model with just the sections that it reads; the other sections are left to the commands that read them.

    Raises:
        ConfigError: see :func:`parse`.
    """
    values = read_yaml(path)
    return parse(model, {key: value for key, value in values.items() if key in model.model_fields}, origin=str(path))


def load_all(path: Path, model: type[S]) -> S:
    """The whole file; a section that ``model`` does not know is an error.

    Raises:
        ConfigError: see :func:`parse`.
    """
    return parse(model, read_yaml(path), origin=str(path))
