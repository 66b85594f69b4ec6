"""The record of who was champion when, and the lock under which it moves.

MLflow keeps no history of an alias. So every move stands in two places: an append-only log beside the tracking database (a file beside
a sqlite database, a table that refuses changes inside PostgreSQL), and tags of the registered model. A move is written down before the
alias moves and again after it; whoever takes the lock next completes what a crash left in between, and notes an alias that somebody
moved by hand.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from mlembed_core.artifacts import Workspace, canonical_json, hash_of
from mlembed_core.errors import ArtifactError, RegistryError
from mlembed_core.registry.client import Registry
from mlembed_core.train.tracking import local_tracking_uri, without_secrets

CHAMPION = "champion"
LOG = "promotions.jsonl"
TABLE = "mlembed_promotions"
MOVE_TAG = "mlembed.move."  # followed by the number of the move
LOG_DATABASE = "MLEMBED_PROMOTIONS_DATABASE"  # behind an MLflow server, whose database cannot be seen from here
USER = "MLEMBED_USER"


class Act(StrEnum):
    PROMOTE = "promote"
    ROLLBACK = "rollback"
    BY_HAND = "by hand"  # found: somebody moved the alias past the gate


class State(StrEnum):
    BEGUN = "begun"
    DONE = "done"
    ABANDONED = "abandoned"  # begun, and the alias never moved


@dataclass(frozen=True)
class Move:
    """One move of the alias ``champion``, from ``before`` to ``after`` (versions; None: no champion).

    Attributes:
        number: counts the moves of a model from 1.
        when: UTC; for people. What came first is said by the number, whatever a clock does.
        figures: the gate's.
    """

    name: str
    number: int
    act: Act
    state: State
    who: str
    when: str
    before: str | None
    after: str | None
    why: str
    figures: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def summary(self) -> str:
        return (
            f"{self.number:3d}  {self.when}  {self.act}: {self.before or 'none'} → {self.after or 'none'}  by {self.who}"
            + (f"  ({self.state})" if self.state is not State.DONE else "")
            + (f"\n     {self.why}" if self.why else "")
        )


def user() -> str:
    """Who acts: ``MLEMBED_USER``, else the account's name."""
    if name := os.environ.get(USER):
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # an account number without a name, in a container
        return f"uid {os.getuid()}"


class Log(Protocol):
    """Where moves are kept: lines can be added and read, never changed."""

    def append(self, move: Move) -> None: ...
    def read(self) -> list[Move]: ...
    @property
    def place(self) -> str: ...


class FileLog:
    """One JSON object a line, each with the hash of the line before it: a line taken out or changed shows."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def place(self) -> str:
        return str(self._path)

    def append(self, move: Move) -> None:
        lines = self._lines()
        line = canonical_json({**move.as_dict(), "after_line": hash_of(lines[-1]) if lines else None})
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            torn = b"\n" if self._path.stat().st_size and not self._path.read_bytes().endswith(b"\n") else b""
            os.write(handle, torn + line.encode() + b"\n")
            os.fsync(handle)
        finally:
            os.close(handle)

    def read(self) -> list[Move]:
        """Raises ArtifactError where a line was changed, or taken out from between two others."""
        moves, before = [], None
        for number, line in enumerate(self._lines(), start=1):
            found = json.loads(line)
            if found.pop("after_line") != (before and hash_of(before)):
                raise ArtifactError(
                    f"{self._path}, line {number}: it does not follow the line before it, so it was changed by hand. Bring it back from "
                    "a copy; MLflow's tags (`mlembed.move.N` of the registered model) hold every move too."
                )
            moves.append(_move(found))
            before = line
        return moves

    def _lines(self) -> list[str]:
        """Whole lines; one that a crash or a full disk cut off says nothing."""
        if not self._path.is_file():
            return []
        return [line for line in self._path.read_text(encoding="utf-8").splitlines() if _is_json(line)]


class DatabaseLog:
    """A table in PostgreSQL, with a trigger that refuses to change or remove rows."""

    def __init__(self, connection: Any, place: str) -> None:
        self._connection = connection
        self.place = f"{place}, table {TABLE}"

    def append(self, move: Move) -> None:
        self._execute(f"INSERT INTO {TABLE} (move) VALUES (:move)", move=canonical_json(move.as_dict()))  # noqa: S608  # a constant
        self._connection.commit()

    def read(self) -> list[Move]:
        rows = self._execute(f"SELECT move FROM {TABLE} ORDER BY id").fetchall()  # noqa: S608
        self._connection.commit()
        return [_move(json.loads(row[0])) for row in rows]

    def create(self) -> None:
        self._execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (id BIGSERIAL PRIMARY KEY, move TEXT NOT NULL)")
        self._execute(
            f"CREATE OR REPLACE FUNCTION {TABLE}_refuse() RETURNS trigger AS "
            f"$$ BEGIN RAISE EXCEPTION '{TABLE} is append-only'; END $$ LANGUAGE plpgsql"
        )
        self._execute(
            f"CREATE OR REPLACE TRIGGER {TABLE}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {TABLE} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION {TABLE}_refuse()"
        )
        self._connection.commit()

    def _execute(self, statement: str, **values: Any) -> Any:
        from sqlalchemy import text

        return self._connection.execute(text(statement), values)


def _move(found: dict[str, Any]) -> Move:
    return Move(**{**found, "act": Act(found["act"]), "state": State(found["state"])})


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@dataclass
class Record:
    """The moves of one model; only whoever holds the lock (:func:`moving`) has one that can be added to."""

    registry: Registry
    name: str
    log: Log

    def champion(self) -> str | None:
        """The version that is champion now, by the registry."""
        found = self.registry.client.get_registered_model(self.name).aliases.get(CHAMPION)
        return None if found is None else str(found)

    def moves(self) -> list[Move]:
        """Every move, each in its last state, in their order; what the log lacks comes from the tags."""
        model = self.registry.client.get_registered_model(self.name)
        tagged = [_move(json.loads(value)) for key, value in model.tags.items() if key.startswith(MOVE_TAG)]
        logged = [move for move in self.log.read() if move.name == self.name]
        found: dict[int, Move] = {}
        for move in [*tagged, *logged]:
            known = found.get(move.number)
            if known is None or known.state is State.BEGUN or move.state is not State.BEGUN:
                found[move.number] = move
        return [found[number] for number in sorted(found)]

    def move(self, act: Act, after: str, why: str, figures: dict[str, Any]) -> Move:
        """Move the alias, on record before and after."""
        number = max((move.number for move in self.moves()), default=0) + 1
        when = datetime.now(UTC).isoformat(timespec="seconds")
        begun = Move(self.name, number, act, State.BEGUN, user(), when, self.champion(), after, why, figures)
        self._note(begun)
        self.registry.client.set_registered_model_alias(self.name, CHAMPION, after)
        return self._note(replace(begun, state=State.DONE))

    def settle(self) -> None:
        """Complete or give up what a crash left half done; note an alias that was moved past the gate."""
        moves, champion = self.moves(), self.champion()
        for move in moves:
            if move.state is State.BEGUN:
                self._note(replace(move, state=State.DONE if champion == move.after else State.ABANDONED))
        last = next((move.after for move in reversed(self.moves()) if move.state is State.DONE), None)
        if champion != last:
            number = max((move.number for move in moves), default=0) + 1
            when = datetime.now(UTC).isoformat(timespec="seconds")
            why = "found when the registry was next used; who moved it, and when, is not known"
            self._note(Move(self.name, number, Act.BY_HAND, State.DONE, "unknown", when, last, champion, why))

    def _note(self, move: Move) -> Move:
        self.log.append(move)
        self.registry.client.set_registered_model_tag(self.name, f"{MOVE_TAG}{move.number:06d}", canonical_json(move.as_dict()))
        return move


def champions(moves: Sequence[Move]) -> list[str | None]:
    """The champions that a rollback can go back through, the present one last: a promotion adds one, a rollback takes one off."""
    found: list[str | None] = []
    for move in moves:
        if move.state is not State.DONE:
            continue
        if move.act is Act.ROLLBACK and move.after in found:
            del found[len(found) - found[::-1].index(move.after) :]
        else:
            found.append(move.after)
    return found


@contextmanager
def moving(registry: Registry, workspace: Workspace, name: str) -> Iterator[Record]:
    """Hold the lock of the champion of ``name``; nobody else can move it meanwhile.

    Raises:
        RegistryError: somebody holds it.
    """
    with _opened(registry, workspace, name, lock=True) as log:
        record = Record(registry, name, log)
        record.settle()
        yield record


@contextmanager
def reading(registry: Registry, workspace: Workspace, name: str) -> Iterator[Record]:
    """The record, to be read."""
    with _opened(registry, workspace, name, lock=False) as log:
        yield Record(registry, name, log)


@contextmanager
def _opened(registry: Registry, workspace: Workspace, name: str, *, lock: bool) -> Iterator[Log]:
    database = os.environ.get(LOG_DATABASE) or registry.uri
    if database.startswith("postgresql"):
        with _postgres(database, name, lock=lock) as log:
            yield log
        return
    folder = _beside(registry.uri, workspace)
    if not lock:
        yield FileLog(folder / LOG)
        return
    handle = os.open(folder / f".{LOG}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _busy(name, os.pread(handle, 200, 0).decode(errors="replace")) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{user()}, process {os.getpid()}".encode(), 0)
        yield FileLog(folder / LOG)
    finally:
        os.close(handle)


def _beside(uri: str, workspace: Workspace) -> Path:
    """The folder of a sqlite database; for a server, that of the workspace, since nothing else is at hand."""
    if uri.startswith("sqlite:///") and uri != local_tracking_uri(workspace):
        return Path(uri.removeprefix("sqlite:///")).absolute().parent
    return workspace.root


@contextmanager
def _postgres(uri: str, name: str, *, lock: bool) -> Iterator[Log]:
    from sqlalchemy import create_engine, text
    from sqlalchemy.pool import NullPool

    key = int(hash_of(["mlembed", CHAMPION, name])[:15], 16)  # of an advisory lock: any number of 63 bits
    engine = create_engine(uri, poolclass=NullPool, connect_args={"application_name": f"mlembed promote, {user()}"[:63]})
    with engine.connect() as connection:
        if lock and not connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
            holder = text(
                "SELECT application_name FROM pg_locks JOIN pg_stat_activity USING (pid) "
                "WHERE locktype = 'advisory' AND objid::bigint = :low"
            )
            raise _busy(name, connection.execute(holder, {"low": key & 0xFFFFFFFF}).scalar() or "")
        connection.commit()  # the lock belongs to the session, not to a transaction
        log = DatabaseLog(connection, without_secrets(uri))
        log.create()
        yield log  # closing the session gives the lock back, however it ends


def _busy(name: str, holder: str) -> RegistryError:
    return RegistryError(
        f"the champion of {name} is being moved by somebody else{f' ({holder})' if holder else ''}; nothing was done. "
        "Look at `mlembed history` in a moment: what you wanted to promote will be compared with the champion then."
    )
