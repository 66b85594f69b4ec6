"""Independent pieces of work in this process, in several processes of this machine, or over a Ray cluster: the same results anywhere.

Where they run is the machine's business, so it stands in the environment and in no parameter: ``MLEMBED_RAY`` is the address of a running
cluster (``auto``, ``HOST:6379``), ``MLEMBED_PROCESSES`` a number of processes here. Neither: one after the other in this process. A piece
whose process or node dies is done again elsewhere; an error that the work itself raises ends everything, as it would here.

All places see one tree of files: pieces name files by absolute paths, and every node has this package and its data (a shared POSIX folder,
docs/multi_node.md). Work and pieces travel pickled between processes that trust each other; nothing of that is ever written down.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from itertools import islice
from queue import Empty
from typing import Any, Protocol, TypeVar

from mlembed_core import lifeline
from mlembed_core.errors import ConfigError, MachineError, MlembedError
from mlembed_core.progress import Reporter

RAY = "MLEMBED_RAY"
PROCESSES = "MLEMBED_PROCESSES"
RETRIES = 3  # of a piece whose process or node died; more would hide that it is the piece that kills them (out of memory)
IN_FLIGHT = 2  # pieces per process that are handed out at a time: the next one is there when one is done, and memory stays bounded
KNOCK_S = 10.0  # until a cluster must have answered
VISIBLE_DEVICES = "CUDA_VISIBLE_DEVICES"

T = TypeVar("T")
R = TypeVar("R")
Work = Callable[[T], R]


def spread(
    build: Callable[[], Work[T, R]],
    pieces: Iterable[T],
    *,
    description: str,
    total: int,
    unit: str,
    start: int = 0,
    in_order: bool = False,
    processes: int = 1,
    gpus_each: int = 0,
    cpus_each: int = 1,
    name: Callable[[T], str] = lambda _: "",
    only_here: bool = False,
    shown: bool = True,
) -> Iterator[tuple[int, R]]:
    """Do ``build()(piece)`` for every piece, with progress.

    Args:
        build: makes the function that does the work: once per process, so that it can hold what is dear to load. Picklable, as are pieces
            and results: a function of a module, or a dataclass with ``__call__``.
        total: number of pieces, those of ``start`` included.
        start: pieces that an earlier run has done.
        processes: of this machine, where the environment says nothing.
        in_order: give results in the order of the pieces; else as they come.
        gpus_each, cpus_each: what a piece takes on a cluster. With GPUs, local processes see one device each, in turn.
        name: of a piece, shown beside the bar.
        only_here: whatever the environment says.
        shown: false where the caller shows progress of its own.

    Yields:
        (number of the piece, its result).

    Raises:
        ConfigError: ``MLEMBED_PROCESSES`` is no number of processes.
        MachineError: the cluster cannot be reached, or processes died again and again.
    """
    with ExitStack() as stack:
        place = None if only_here else stack.enter_context(_place(build, processes, gpus_each=gpus_each, cpus_each=cpus_each))
        progress = stack.enter_context(Reporter(description, total, unit, start=start, shown=shown))
        found = _one_by_one(build, pieces) if place is None else _in_flight(place, pieces, in_order=in_order)
        for number, piece, result in found:
            progress.advance(note=name(piece))
            yield number, result


def _num_processes(default: int) -> int:
    """Of this machine, as the environment asks.

    Raises:
        ConfigError: it asks for something that is no number ≥ 1.
    """
    asked = os.environ.get(PROCESSES) or str(default)
    if not asked.isdecimal() or int(asked) < 1:
        raise ConfigError(f"{PROCESSES}={asked!r} is no number of processes; give 1 or more, or unset it")
    return int(asked)


class _Place(Protocol):
    """Where pieces are done."""

    slots: int

    def submit(self, piece: Any) -> Future[Any]: ...
    def renew(self) -> None: ...


@contextmanager
def _place(build: Callable[[], Any], processes: int, *, gpus_each: int, cpus_each: int) -> Iterator[_Place | None]:
    address = os.environ.get(RAY)
    processes = _num_processes(processes)
    if address:
        with _connected(address) as ray:
            yield _Cluster(ray, build, gpus_each=gpus_each, cpus_each=cpus_each)
    elif processes > 1:
        with _Pool(build, processes, gpus_each=gpus_each) as pool:
            yield pool
    else:
        yield None


def _one_by_one(build: Callable[[], Work[T, R]], pieces: Iterable[T]) -> Iterator[tuple[int, T, R]]:
    work: Work[T, R] | None = None
    for number, piece in enumerate(pieces):
        work = work or build()  # not before there is something to do
        yield number, piece, work(piece)


def _in_flight(place: _Place, pieces: Iterable[T], *, in_order: bool) -> Iterator[tuple[int, T, Any]]:
    """Keep all slots busy with a bounded number of pieces; what a dead process had is handed out again."""
    waiting = iter(enumerate(pieces))
    pending: dict[Future[Any], tuple[int, T]] = {}
    held: dict[int, tuple[T, Any]] = {}  # results that came before their turn
    turn = deaths = 0
    while True:
        room = IN_FLIGHT * place.slots - len(pending) - len(held)
        for number, piece in islice(waiting, max(room, 0)):
            pending[place.submit(piece)] = (number, piece)
        if not pending:
            return
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        lost = [pending.pop(future) for future in done if isinstance(future.exception(), BrokenProcessPool)]
        for future in done & pending.keys():
            number, piece = pending.pop(future)
            held[number] = (piece, _result(future))
        if lost:
            deaths += 1
            if deaths > RETRIES:
                raise MachineError(
                    f"processes that did the work died {deaths} times over, the last with piece {lost[0][0]}: killed by the system "
                    f"for lack of memory, perhaps. Use fewer at a time ({PROCESSES}); what is finished is kept where the command says so."
                )
            wait(pending)  # the pool is broken: the others fail too, or have just finished
            lost += [pending.pop(future) for future in list(pending) if isinstance(future.exception(), BrokenProcessPool)]
            place.renew()
            pending |= {place.submit(piece): (number, piece) for number, piece in sorted(lost, key=lambda item: item[0])}
        for number in sorted(held) if not in_order else _run_of(held, turn):
            turn += 1
            yield number, *held.pop(number)


def _run_of(held: dict[int, Any], turn: int) -> list[int]:
    """The numbers from ``turn`` on that are there without a gap."""
    numbers = []
    while turn in held:
        numbers.append(turn)
        turn += 1
    return numbers


def _result(future: Future[Any]) -> Any:
    """What came of a piece; the work's own error as the work raised it, whatever carried it here."""
    error = future.exception()
    if error is None:
        return future.result()
    cause = getattr(error, "cause", None)  # Ray wraps
    if isinstance(cause, MlembedError):
        raise cause from None
    if type(error).__module__.startswith("ray."):
        if cause is not None:
            raise error
        raise MachineError(f"a piece was lost on the Ray cluster, {RETRIES} retries included ({type(error).__name__}: {error})") from error
    raise error


class _Pool:
    """Processes of this machine, started afresh (no fork: torch and its threads would not survive one)."""

    def __init__(self, build: Callable[[], Any], processes: int, *, gpus_each: int) -> None:
        self.slots = processes
        self._build = build
        self._gpus_each = gpus_each
        self._others = set(multiprocessing.active_children())

    def __enter__(self) -> _Pool:
        self.renew()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._executor.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:  # what still runs is wanted by nobody
            for process in set(multiprocessing.active_children()) - self._others:
                process.kill()

    def renew(self) -> None:
        """All processes anew, after one died."""
        context = multiprocessing.get_context("spawn")
        devices = context.Queue()
        for number in range(self.slots if self._gpus_each else 0):
            devices.put(number)
        self._executor = ProcessPoolExecutor(self.slots, context, initializer=_start, initargs=(self._build, devices))

    def submit(self, piece: Any) -> Future[Any]:
        try:
            with _dying_together():  # the executor starts its processes when there is something to do
                return self._executor.submit(_work, piece)
        except BrokenProcessPool as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            return failed


@contextmanager
def _dying_together() -> Iterator[None]:
    """Processes started in here end when this one does, however it ends."""
    before = os.environ.get(lifeline.DIES_WITH)
    os.environ.update(lifeline.environment())
    try:
        yield
    finally:
        if before is None:
            del os.environ[lifeline.DIES_WITH]
        else:
            os.environ[lifeline.DIES_WITH] = before


_build: Callable[[], Any] | None = None  # of this process, where it is one that others hand work to
_built: dict[str, Any] = {}  # what it has built, by what names it; one at a time


def _start(build: Callable[[], Any], devices: Any) -> None:
    """The first thing that a process of the pool does."""
    global _build
    lifeline.hold()
    _build = build
    try:
        device = devices.get(timeout=0.1)
    except Empty:
        return
    visible = os.environ.get(VISIBLE_DEVICES)
    allowed = visible.split(",") if visible else [str(number) for number in range(device + 1)]
    os.environ[VISIBLE_DEVICES] = allowed[device % len(allowed)]


def _work(piece: Any) -> Any:
    assert _build is not None  # _start has run
    return _done(_build, "", piece)


def _done(build: Callable[[], Any], key: str, piece: Any) -> Any:
    if key not in _built:
        _built.clear()
        _built[key] = build()
    return _built[key](piece)


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster; disconnected at the end unless somebody else had connected."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _knock(address)
    try:
        import ray
    except ImportError:
        raise MachineError(f"{RAY}={address} asks for Ray, which is not installed; `pip install 'mlembed[ray]'` brings it") from None
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning", runtime_env={"env_vars": _inherited()})
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address, error) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raises MachineError where nobody listens at ``[ray://]HOST:PORT``: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # `auto`: Ray knows at once
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()
    except OSError as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> MachineError:
    return MachineError(
        f"{RAY}={address}: no Ray cluster answers there ({error}). `ray start --head` starts one, `ray status --address {address}` looks "
        f"at it; unset {RAY} to work on this machine alone."
    )


def _inherited() -> dict[str, str]:
    """What a node's processes need to know of this one: our own variables, threads, and that nothing is to be downloaded."""
    prefixes = ("MLEMBED_", "OMP_", "HF_", "MTEB_", "TOKENIZERS_", "TRANSFORMERS_", "PYTHONPATH", "TQDM_")
    own = (RAY, PROCESSES, lifeline.DIES_WITH)  # of this process alone
    return {key: value for key, value in os.environ.items() if key.startswith(prefixes) and key not in own and "TOKEN" not in key}


class _Cluster:
    """A Ray cluster. It starts a piece again itself, elsewhere, when a process or node dies."""

    def __init__(self, ray: Any, build: Callable[[], Any], *, gpus_each: int, cpus_each: int) -> None:
        resources = ray.cluster_resources()
        self.slots = max(1, int(resources.get("GPU", 0) // gpus_each if gpus_each else resources.get("CPU", 0) // cpus_each))
        self._build = ray.put(build)
        self._task = ray.remote(_done).options(max_retries=RETRIES, num_cpus=cpus_each, num_gpus=gpus_each)

    def submit(self, piece: Any) -> Future[Any]:
        # The name of the stored function: a process of Ray does many pieces, and builds once.
        future: Future[Any] = self._task.remote(self._build, self._build.hex(), piece).future()
        return future

    def renew(self) -> None:
        """Nothing: dead processes are Ray's business."""
