"""The three Matryoshka axes: which dims, exits and ranks a setting trains on a backbone of a given shape.

Shapes: ``hidden`` D, ``layers`` L, ``rank`` r. Rules from ML-Embed (arXiv 2605.15081).
"""

from __future__ import annotations

from dataclasses import dataclass

from mlembed_core.config.settings import MelParams, SettingParams
from mlembed_core.errors import ConfigError

MLL_EXITS = (1, 2, 4, 8, 16, 24, 32, 40, 48)
MIN_MRL_DIM = 8


@dataclass(frozen=True)
class Axes:
    """What a setting trains: each tuple ascending, its last entry the full size.

    ``mel_ranks`` is None where the setting keeps the dense token table.
    """

    mrl_dims: tuple[int, ...]
    mll_layers: tuple[int, ...]
    mel_ranks: tuple[int, ...] | None


def resolve_axes(name: str, setting: SettingParams, *, hidden: int, layers: int) -> Axes:
    """The axes of ``setting`` on a backbone with ``hidden`` dimensions and ``layers`` layers.

    Raises:
        ConfigError: a dim, exit or rank larger than the backbone has.
    """
    return Axes(
        mrl_dims=_resolve(f"settings.{name}.mrl", setting.mrl, powers_of_two(MIN_MRL_DIM, hidden), hidden, "hidden size"),
        mll_layers=_resolve(f"settings.{name}.mll", setting.mll, MLL_EXITS, layers, "number of layers"),
        mel_ranks=None if setting.mel is None else _mel_ranks(f"settings.{name}.mel", setting.mel, hidden),
    )


def powers_of_two(first: int, below: int) -> tuple[int, ...]:
    """``first``, twice that, … up to but excluding ``below``."""
    powers = []
    while first < below:
        powers.append(first)
        first *= 2
    return tuple(powers)


def _resolve(path: str, value: object, automatic: tuple[int, ...], full: int, what: str) -> tuple[int, ...]:
    if value is None:
        return (full,)
    wanted = automatic if value == "auto" else tuple(value)  # type: ignore[arg-type]  # the schema allows lists of ints only
    if value != "auto" and wanted and max(wanted) > full:
        raise ConfigError(f"{path}={max(wanted)} exceeds the backbone's {what} {full}; use values ≤ {full}")
    return tuple(sorted({size for size in wanted if size < full} | {full}))


def _mel_ranks(path: str, mel: MelParams, hidden: int) -> tuple[int, ...]:
    if mel.rank > hidden:
        raise ConfigError(f"{path}.rank={mel.rank} exceeds the backbone's hidden size {hidden}; use a rank ≤ {hidden}")
    if not mel.sampled or mel.min_rank is None:
        return (mel.rank,)
    return (*powers_of_two(mel.min_rank, mel.rank), mel.rank)
