"""Where the datasets of mteb's tasks lie on this machine. Scoring never downloads: `mlembed prefetch` does, and says what it fetched.

They are looked for in the mirrors (``mlembed_core/mirror.py``), then among those that the `datasets` library has prepared before
(where it holds that revision and no other).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from mlembed_core.errors import MachineError
from mlembed_core.evaluate.tasks import is_local
from mlembed_core.mirror import MIRRORS, HubDataset


def is_prepared(dataset: HubDataset) -> bool:
    """Whether the `datasets` library has it. Without network it takes the newest revision there is, so there must be one alone."""
    from datasets import config
    from datasets.naming import camelcase_to_snakecase

    *owner, name = dataset.path.split("/")
    folder = Path(config.HF_DATASETS_CACHE).expanduser() / "___".join([*owner, camelcase_to_snakecase(name)])
    return {path.name for path in folder.glob("*/*/*") if path.is_dir()} == {dataset.revision}


def datasets_of(tasks: Iterable[AbsTask]) -> list[HubDataset]:
    """What the tasks read from the hub, each once, in the tasks' order."""
    return list(dict.fromkeys(_dataset(task) for task in _parts(tasks)))


def use_mirrors(tasks: Sequence[AbsTask], places: Sequence[Path], *, command: str) -> None:
    """Point every task to its data on this machine.

    Args:
        command: what fetches the data, for the message.

    Raises:
        MachineError: some are not there; one message names them all.
    """
    absent = [dataset for dataset in datasets_of(tasks) if dataset.find(places) is None and not is_prepared(dataset)]
    if absent:
        from datasets import config

        lines = "\n".join(f"  {dataset}" for dataset in absent)
        looked = ", ".join(map(str, (*places, config.HF_DATASETS_CACHE)))
        raise MachineError(
            f"{len(absent)} dataset(s) are not on this machine:\n{lines}\nLooked for in: {looked}.\nWith network access, `{command}` "
            f"fetches them. Without it, fetch them elsewhere (`{command} --mirror DIR`), carry DIR here and set {MIRRORS}=DIR."
        )
    for task in _parts(tasks):
        dataset = _dataset(task)
        folder = dataset.find(places)
        if folder is not None:
            inner: Any = task
            inner.dataset_path = dataset.path  # what the scores are filed under
            inner.metadata = task.metadata.model_copy(update={"dataset": {**task.metadata.dataset, "path": str(folder)}})


def _parts(tasks: Iterable[AbsTask]) -> Iterator[AbsTask]:
    """The tasks that have data of their own on the hub: an aggregate's are those of its parts."""
    for task in tasks:
        if isinstance(task, AbsTaskAggregate):
            yield from _parts(task.metadata.tasks)
        elif not is_local(task.metadata):
            yield task


def _dataset(task: AbsTask) -> HubDataset:
    dataset = task.metadata.dataset
    return HubDataset(str(getattr(task, "dataset_path", dataset["path"])), str(dataset["revision"]))
