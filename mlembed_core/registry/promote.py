"""``mlembed promote``, ``rollback`` and ``history``: who is champion, through one gate and on record."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from mlembed_core.artifacts import Workspace
from mlembed_core.config.load import load
from mlembed_core.errors import RegistryError
from mlembed_core.registry.client import SCORES_TAG, Registry, open_registry
from mlembed_core.registry.gate import Config, Judgement, judge
from mlembed_core.registry.moves import CHAMPION, Act, Move, champions, moving, reading
from mlembed_core.registry.prove import Prover
from mlembed_core.registry.resolve import resolve
from mlembed_core.registry.versions import candidates, find_version, known


@dataclass(frozen=True)
class Promotion:
    """What ``mlembed promote`` did.

    Attributes:
        move: None where nothing moved: only asked, or the champion already.
    """

    name: str
    version: str
    champion: str | None
    judgement: Judgement | None
    move: Move | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": self.version,
            "champion": self.champion,
            "passed": self.judgement is None or self.judgement.passed,
            "moved": self.move is not None,
            "findings": [] if self.judgement is None else self.judgement.as_dict()["findings"],
            "move": None if self.move is None else self.move.as_dict(),
        }

    @property
    def summary(self) -> str:
        if self.judgement is None:
            return f"{self.name} version {self.version} is the champion already; nothing to do"
        did = (
            f"{self.name}: champion {self.champion or 'none'} → {self.version}"
            if self.move
            else f"{self.name}: version {self.version} {'passes the gate' if self.judgement.passed else 'does not pass the gate'}"
        )
        return f"{self.judgement.summary}\n{did}"


def promote(workspace: Workspace, ref: str | None = None, *, why: str = "", dry_run: bool = False) -> Promotion:
    """Make a version the champion, if it passes the gate.

    Args:
        ref: number, alias or setting; None: of the candidates that are no champion, the one with the best average on the gate's suites.
        why: kept in the record.
        dry_run: judge, and move nothing.

    Raises:
        PromotionRefusedError: it did not pass; each reason is named. Not with ``dry_run``.
        RegistryError: no such version, somebody else is promoting, or MLflow failed.
    """
    started = time.monotonic()
    config = load(workspace.params_file, Config)
    with TemporaryDirectory(prefix="mlembed-gate-") as scratch, Prover(Path(scratch)) as prover, open_registry(workspace) as registry:
        version = _chosen(registry, config, ref)
        if dry_run:
            with reading(registry, workspace, config.name) as record:
                return _judged(registry, workspace, config, version, record.champion(), prover, started)
        with moving(registry, workspace, config.name) as record:
            champion = record.champion()
            done = _judged(registry, workspace, config, version, champion, prover, started)
            if done.judgement is None:
                return done
            done.judgement.require()
            # The lock of a file does not reach other machines: a champion that changed meanwhile was never compared with.
            if record.champion() != champion:
                raise RegistryError(
                    f"the champion of {config.name} changed from {champion or 'none'} to {record.champion() or 'none'} while version "
                    f"{version.version} was compared with it; nothing was done. Run it again."
                )
            move = record.move(Act.PROMOTE, str(version.version), why, done.judgement.figures)
            return replace(done, move=move, seconds=round(time.monotonic() - started, 1))


def _judged(
    registry: Registry, workspace: Workspace, config: Config, version: Any, champion: str | None, prover: Prover, started: float
) -> Promotion:
    number = str(version.version)
    judgement = None
    if champion != number:
        present = None if champion is None else find_version(registry, config.name, champion)
        judgement = judge(registry, workspace, config, version, present, prover)
    return Promotion(config.name, number, champion, judgement, None, round(time.monotonic() - started, 1))


def _chosen(registry: Registry, config: Config, ref: str | None) -> Any:
    if ref is not None:
        return find_version(registry, config.name, ref)
    aliases, _ = known(registry, config.name)
    found = candidates(registry, config.name)
    if not found:
        raise RegistryError(f"{config.name} has no candidates; `mlembed register --all` makes them")
    others = [version for version in found if str(version.version) != aliases.get(CHAMPION)]
    return max(others or found, key=lambda version: _average(version, config.gate_suites))


def _average(version: Any, suites: Sequence[str]) -> float:
    """The best submodel's average on the suites, as registered; what has no scores comes last."""
    scores = json.loads(version.tags.get(SCORES_TAG, "{}"))
    values = [max(scores[suite].values()) for suite in suites if scores.get(suite)]
    return fmean(values) if values else -1.0


def rollback(workspace: Workspace, *, to: str | None = None, why: str = "") -> Move:
    """Give the alias back to an earlier champion, whose files must be whole. No gate: it was passed once.

    Args:
        to: an earlier champion; None: the one before the present one.

    Raises:
        RegistryError: there is none before, ``to`` never was champion, or its files are gone.
    """
    config = load(workspace.params_file, Config)
    with open_registry(workspace) as registry, moving(registry, workspace, config.name) as record:
        line = champions(record.moves())
        present, earlier = record.champion(), [version for version in line[:-1] if version is not None]
        target = earlier[-1] if to is None and earlier else to
        if target is None:
            raise RegistryError(f"{config.name} has no champion before {present or 'the first'}; `mlembed history` shows every move")
        target = str(find_version(registry, config.name, target).version)
        if target == present or target not in [move.after for move in record.moves()]:
            was = ", ".join(dict.fromkeys(earlier)) or "none"
            raise RegistryError(
                f"version {target} {'is the champion now' if target == present else 'never was champion'}, so nothing goes back to it "
                f"(earlier champions: {was}). `mlembed promote {target}` puts a version through the gate."
            )
        resolve(f"models:/{config.name}/{target}")  # what cannot be loaded is no champion
        return record.move(Act.ROLLBACK, target, why, {})


@dataclass(frozen=True)
class History:
    """Every move, the first first."""

    name: str
    champion: str | None
    moves: tuple[Move, ...]
    place: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def summary(self) -> str:
        head = f"{self.name}: champion is version {self.champion}" if self.champion else f"{self.name} has no champion yet"
        return "\n".join([*(move.summary for move in self.moves), head])


def history(workspace: Workspace) -> History:
    """Who was champion when, and why.

    Raises:
        ArtifactError: the log was changed by hand.
    """
    config = load(workspace.params_file, Config)
    with open_registry(workspace) as registry:
        known(registry, config.name)
        with reading(registry, workspace, config.name) as record:
            return History(config.name, record.champion(), tuple(record.moves()), record.log.place)
