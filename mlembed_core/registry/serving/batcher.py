"""Dynamic batching: what arrives while one batch is computed makes the next, so that nobody waits for a clock.

Requests take turns. A batch gives each of those that wait a share before any gets more, so that one with two thousand texts does not
hold up one with a single text. One thread computes; the event loop stays free to answer, and to refuse.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARE_TOKENS = 1024  # of a batch to each request before anybody gets more
Key = tuple[int, int]  # layers, rank: what texts of one batch have in common
Compute = Callable[[Sequence[Sequence[int]], Key], NDArray[Any]]


class OverloadedError(Exception):
    """More work waits than the server promised to take."""


@dataclass(eq=False)
class Job:
    """The texts of one request: those up to ``taken`` are in a batch or done."""

    key: Key
    ids: Sequence[Sequence[int]]
    done: asyncio.Future[NDArray[Any]]
    taken: int = 0
    parts: list[NDArray[Any]] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        """Tokens that are in no batch yet."""
        return sum(map(len, self.ids[self.taken :]))


class Batcher:
    """Collects jobs and computes them, batch by batch.

    Args:
        compute: token ids and a key to pooled states, one row per text; called in a thread of its own.
        batch_tokens: of a batch; a text longer than that makes one alone.
        max_waiting_tokens: of all jobs together; more are refused.
        observe: called with the number of texts and of requests of each batch.
    """

    def __init__(
        self, compute: Compute, *, batch_tokens: int, max_waiting_tokens: int, observe: Callable[[int, int], None] = lambda *_: None
    ) -> None:
        self._compute = compute
        self._batch_tokens = batch_tokens
        self._max_waiting_tokens = max_waiting_tokens
        self._observe = observe
        self._jobs: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encode")
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting_tokens(self) -> int:
        return sum(job.waiting for job in self._jobs)

    def start(self) -> None:
        """Begin to compute; to be called in the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Finish the batch at hand and refuse what waits."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for job in self._jobs:
            job.done.cancel()
        self._thread.shutdown(wait=True)

    @property
    def alive(self) -> bool:
        """Whether jobs are being computed."""
        return self._task is not None and not self._task.done()

    async def submit(self, ids: Sequence[Sequence[int]], key: Key) -> NDArray[Any]:
        """Pooled states of texts, in their order.

        Raises:
            OverloadedError: too much waits already.
        """
        waiting = self.waiting_tokens
        # What finds the queue empty is taken however large it is: limits on requests are the caller's.
        if waiting and waiting + sum(map(len, ids)) > self._max_waiting_tokens:
            raise OverloadedError(f"{waiting:,} tokens wait already")
        job = Job(key, ids, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._arrived.set()
        return await job.done

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            batch = self._next_batch()
            if not batch:
                self._arrived.clear()
                continue
            ids = [text for job, texts in batch for text in texts]
            self._observe(len(ids), len({id(job) for job, _ in batch}))
            try:
                states = await loop.run_in_executor(self._thread, self._compute, ids, batch[0][0].key)
            except Exception as error:  # whatever it was, the others' turn comes
                for job, _ in batch:
                    self._fail(job, error)
                continue
            self._hand_out(batch, states)

    def _next_batch(self) -> list[tuple[Job, Sequence[Sequence[int]]]]:
        """Texts of the first job and of those that share its key, in turns of ``SHARE_TOKENS``."""
        self._jobs = deque(job for job in self._jobs if not job.done.done())  # whose client has left
        if not self._jobs:
            return []
        key, budget = self._jobs[0].key, self._batch_tokens
        batch: list[tuple[Job, Sequence[Sequence[int]]]] = []
        turn = deque(job for job in self._jobs if job.key == key)
        while turn and (budget > 0 or not batch):
            job = turn.popleft()
            start, share = job.taken, min(SHARE_TOKENS, budget)
            while job.taken < len(job.ids) and (len(job.ids[job.taken]) <= share or (job.taken == start and not batch)):
                share -= len(job.ids[job.taken])
                job.taken += 1
            if job.taken == start:
                continue  # its next text is too long for what is left of this batch
            budget -= sum(map(len, job.ids[start : job.taken]))
            batch.append((job, job.ids[start : job.taken]))
            if job.taken < len(job.ids):
                turn.append(job)
        # Those that were served go to the back, so that the next batch starts with others.
        served = {id(job) for job, _ in batch}
        ahead = [job for job in self._jobs if id(job) not in served]
        behind = [job for job in self._jobs if id(job) in served and job.taken < len(job.ids)]
        self._jobs = deque([*ahead, *behind])
        return batch

    def _hand_out(self, batch: list[tuple[Job, Sequence[Sequence[int]]]], states: NDArray[Any]) -> None:
        row = 0
        for job, texts in batch:
            job.parts.append(states[row : row + len(texts)])
            row += len(texts)
            if job.taken == len(job.ids) and sum(map(len, job.parts)) == len(job.ids) and not job.done.done():
                job.done.set_result(np.concatenate(job.parts))

    def _fail(self, job: Job, error: Exception) -> None:
        if not job.done.done():
            job.done.set_exception(error)
