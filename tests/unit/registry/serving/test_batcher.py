"""Batches: what waits is joined, nobody waits behind a large request, and what cannot be taken is refused."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from mlembed_core.registry.serving.batcher import SHARE_TOKENS, Batcher, OverloadedError

KEY, OTHER = (2, 8), (1, 4)


class Recorder:
    """Computes each text's first id, and keeps what each batch was; the first batch waits for ``release``."""

    def __init__(self):
        self.batches = []
        self.release = threading.Event()

    def __call__(self, ids, key):
        self.release.wait(5)
        self.batches.append((key, [text[0] for text in ids]))
        return np.array([[text[0]] for text in ids], dtype=np.float32)


def texts(first, count, length=10):
    return [[first + index] * length for index in range(count)]


def play(scenario, *, batch_tokens=10_000, max_waiting=1_000_000):
    recorder = Recorder()

    async def main():
        batcher = Batcher(recorder, batch_tokens=batch_tokens, max_waiting_tokens=max_waiting)
        batcher.start()
        first = asyncio.create_task(batcher.submit(texts(0, 1), KEY))
        await asyncio.sleep(0.02)  # now a batch is being computed, and what follows waits
        try:
            return await asyncio.wait_for(scenario(batcher, recorder), 5)
        finally:
            recorder.release.set()
            await first
            await batcher.stop()

    return asyncio.run(main()), recorder.batches


def test_what_waits_makes_one_batch_per_key():
    async def scenario(batcher, recorder):
        wanted = [(texts(10, 2), KEY), (texts(20, 1), OTHER), (texts(30, 3), KEY)]
        tasks = [asyncio.create_task(batcher.submit(ids, key)) for ids, key in wanted]
        await asyncio.sleep(0.02)
        recorder.release.set()
        return await asyncio.gather(*tasks)

    answers, batches = play(scenario)
    assert [answer[:, 0].tolist() for answer in answers] == [[10, 11], [20], [30, 31, 32]]
    assert batches == [(KEY, [0]), (KEY, [10, 11, 30, 31, 32]), (OTHER, [20])]


def test_a_large_request_does_not_hold_up_a_small_one():
    async def scenario(batcher, recorder):
        large = asyncio.create_task(batcher.submit(texts(1000, 100, length=SHARE_TOKENS // 4), KEY))
        small = asyncio.create_task(batcher.submit(texts(1, 1), KEY))
        await asyncio.sleep(0.02)
        recorder.release.set()
        await small
        assert not large.done()
        return (await large)[:, 0].tolist()

    answer, batches = play(scenario, batch_tokens=2 * SHARE_TOKENS)
    assert answer == list(range(1000, 1100))
    assert 1 in batches[1][1]


def test_a_text_longer_than_a_batch_makes_one_alone():
    async def scenario(batcher, recorder):
        recorder.release.set()
        return await batcher.submit([[7] * 5000, [8] * 5000], KEY)

    answer, batches = play(scenario, batch_tokens=100)
    assert answer[:, 0].tolist() == [7, 8]
    assert batches[1:] == [(KEY, [7]), (KEY, [8])]


def test_too_much_is_refused_and_what_waits_is_computed():
    async def scenario(batcher, recorder):
        waiting = asyncio.create_task(batcher.submit(texts(1, 5), KEY))
        await asyncio.sleep(0.02)
        with pytest.raises(OverloadedError, match="50 tokens wait already"):
            await batcher.submit(texts(100, 6), KEY)
        recorder.release.set()
        return (await waiting)[:, 0].tolist()

    assert play(scenario, max_waiting=100)[0] == [1, 2, 3, 4, 5]


def test_who_left_is_not_computed():
    async def scenario(batcher, recorder):
        gone = asyncio.create_task(batcher.submit(texts(50, 3), KEY))
        stays = asyncio.create_task(batcher.submit(texts(60, 1), KEY))
        await asyncio.sleep(0.02)
        gone.cancel()
        await asyncio.sleep(0.02)
        recorder.release.set()
        return await stays

    _, batches = play(scenario)
    assert batches == [(KEY, [0]), (KEY, [60])]
