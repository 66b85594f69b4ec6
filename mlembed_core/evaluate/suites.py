"""A suite of the parameters as a list of mteb tasks."""

from __future__ import annotations

import copy
import difflib
import shlex
from pathlib import Path

import mteb
from mteb.abstasks.abstask import AbsTask

from mlembed_core.artifacts import MANIFEST, read_manifest
from mlembed_core.config.evaluate import BenchmarkSuite, LocalSuite, Suite, TaskListSuite
from mlembed_core.errors import ConfigError, DataError
from mlembed_core.evaluate.mirror import use_mirrors
from mlembed_core.evaluate.tasks import local_task
from mlembed_core.mirror import mirrors

NUM_SUGGESTIONS = 3


def suite_tasks(name: str, suite: Suite, *, sources: Path, asked_as: str | None = None) -> list[AbsTask]:
    """The tasks of a suite, in its order; those of a local suite with their data read and checked, mteb's pointed to theirs.

    Args:
        name: the suite's key in the parameters, for messages.
        sources: the folder with one folder per source.
        asked_as: what a person calls the suite, for the command that fetches its data; None: ``name``.

    Raises:
        ConfigError: mteb has no such benchmark or task.
        DataError, ArtifactError: a local task cannot be made from its source.
        MachineError: datasets of mteb's tasks are not on this machine; one message names them all.
    """
    if not isinstance(suite, LocalSuite):
        found = mteb_tasks(name, suite)
        use_mirrors(found, mirrors(), command=f"mlembed prefetch {shlex.quote(asked_as or name)}")
        return found
    tasks = []
    for key, params in suite.tasks.items():
        try:
            tasks.append(local_task(key, params, sources))
        except DataError as error:
            raise DataError(f"suites.{name}.tasks.{key}: {error}") from None
    return tasks


def mteb_tasks(name: str, suite: BenchmarkSuite | TaskListSuite) -> list[AbsTask]:
    """The tasks of mteb that a suite names. Copies: what is done to them stays here.

    Raises:
        ConfigError: mteb has no such benchmark or task.
    """
    if isinstance(suite, BenchmarkSuite):
        return [copy.copy(task) for task in _benchmark_tasks(name, suite.benchmark)]
    return [_task(name, task) for task in suite.tasks]


def task_names() -> frozenset[str]:
    """All tasks that mteb knows. (Its public way to them builds every task first.)"""
    from mteb.get_tasks import _TASKS_REGISTRY

    return frozenset(_TASKS_REGISTRY)


def _task(suite: str, task: str) -> AbsTask:
    if task not in task_names():
        plain = {key.casefold(): key for key in task_names()}
        close = [plain[key] for key in difflib.get_close_matches(task.casefold(), plain, n=NUM_SUGGESTIONS, cutoff=0.4)]
        hint = f"; near it are: {', '.join(map(repr, close))}" if close else ""
        raise ConfigError(f"suites.{suite}.tasks: mteb {mteb.__version__} has no task {task!r}{hint}")
    return mteb.get_task(task)


def _benchmark_tasks(name: str, benchmark: str) -> list[AbsTask]:
    known = {found.name: found for found in mteb.get_benchmarks()}
    if benchmark not in known:
        # Case and spacing are what people get wrong in names like "MTEB(eng, v2)".
        plain = {key.casefold(): key for key in known}
        close = [plain[key] for key in difflib.get_close_matches(benchmark.casefold(), plain, n=NUM_SUGGESTIONS, cutoff=0.4)]
        hint = f"; near it are: {', '.join(repr(key) for key in close)}" if close else ""
        raise ConfigError(
            f"suites.{name}.benchmark={benchmark!r}: mteb {mteb.__version__} has no benchmark of that name{hint}. "
            "`python -c 'import mteb; print(*[b.name for b in mteb.get_benchmarks()], sep=chr(10))'` lists all "
            f"{len(known)}."
        )
    return list(known[benchmark].tasks)


def uses_instructions(sources: Path) -> bool:
    """Whether models of this workspace are trained with instructions before their queries: whether any source has one."""
    return any(read_manifest(path.parent)["params"].get("instruction") for path in sorted(sources.glob(f"*/{MANIFEST}")))
