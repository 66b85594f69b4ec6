"""The base of every section of the parameters: frozen, closed, and with errors a person can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from mlembed_core.errors import ConfigError

NAME_PATTERN = re.compile(r"[a-z0-9_]+")


def _check_name(value: str) -> str:
    if not NAME_PATTERN.fullmatch(value):
        raise ValueError(
            f"the name {value!r} is not allowed: names are made of a-z, 0-9 and _ (they become folders, DVC items and partitions; "
            "- and | separate axes)"
        )
    return value


Name = Annotated[str, AfterValidator(_check_name)]


class Precision(StrEnum):
    """Of the arithmetic; weights and optimizer state are float32 in any case."""

    FP32 = "fp32"
    BF16 = "bf16"  # autocast


class Section(BaseModel):
    """A part of the parameters. Unknown keys are errors; values never change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Section)
V = TypeVar("V")


def parse(model: type[S], values: Mapping[str, Any], *, origin: str) -> S:
    """Check ``values`` against ``model``.

    Args:
        origin: the file that the values come from, for messages.

    Raises:
        ConfigError: one line per mistake, each with its path, the value found and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, item) for item in error.errors()]
        raise ConfigError(f"{origin}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _explain(model: type[BaseModel], error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    found = error.get("input")
    match error["type"]:
        case "extra_forbidden":
            known = _known_keys(model, error["loc"][:-1])
            close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            return f"{path}: unknown key{hint} (allowed here: {', '.join(sorted(known)) or 'none'})"
        case "missing":
            return f"{path}: missing; add this key"
        case "value_error":
            message = str(error["msg"]).removeprefix("Value error, ")
            return f"{path}: {message}" if path else message
        case _:
            return f"{path}={found!r}: {error['msg']}"


def _known_keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the section at ``path``; walks through optionals, mappings and unions."""
    candidates: list[Any] = [model]
    for part in path:
        following: list[Any] = []
        for candidate in _models_in(candidates):
            field = candidate.model_fields.get(str(part))
            # A mapping's key and a union's tag are parts of the path too, but no fields: they keep the candidates.
            following += [field.annotation] if field is not None else [candidate]
        candidates = following
    return sorted({name for candidate in _models_in(candidates) for name in candidate.model_fields})


def _models_in(annotations: list[Any]) -> list[type[BaseModel]]:
    models: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            models.append(annotation)
        else:
            models += _models_in(list(get_args(annotation)))
    return models


def pick(section: Mapping[str, V], key: str, *, path: str) -> V:
    """``section[key]``, for an item that a user named.

    Raises:
        ConfigError: there is no such item; the message lists those there are, the nearest first.
    """
    if key not in section:
        close = difflib.get_close_matches(key, section, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"{path} has no {key!r}{hint} (there are: {', '.join(sorted(section))})")
    return section[key]
