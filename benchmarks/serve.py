"""The server under load against offline encoding of the same texts: throughput, latency, errors.

    python -m benchmarks.serve --model models/3d --clients 32 --seconds 60

Rounds take turns: some seconds of offline batch encoding, some of the server with all clients, in the order A B B A …, so that what
else the machine does meets both. The offline side encodes in batches as large as the server's, with the same number of threads, tokens
included on both sides. Clients run in processes of their own and need CPU time too: on a machine with few cores the ratio counts them
in. It prints and never asserts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np

CLIENT_PROCESSES = 2
TEXTS = 4096


@dataclass(frozen=True)
class Load:
    """What the clients of one process saw."""

    latencies: list[float]
    texts: int
    errors: list[str]


def main() -> None:
    options = _options()
    texts = _texts(options.file)
    server_rates, offline_rates, latencies, errors = [], [], [], []
    with _server(options) as address:
        encoder = _offline_encoder(options)
        _offline(encoder, texts, 1.0)  # warm
        _clients(address, texts, options, 1.0)
        seconds = options.seconds / options.rounds
        for turn in range(options.rounds):
            for side in ("offline", "server") if turn % 2 == 0 else ("server", "offline"):
                if side == "offline":
                    offline_rates.append(_offline(encoder, texts, seconds))
                    continue
                started = time.monotonic()
                loads = _clients(address, texts, options, seconds)
                server_rates.append(sum(load.texts for load in loads) / (time.monotonic() - started))
                latencies += [latency for load in loads for latency in load.latencies]
                errors += [error for load in loads for error in load.errors]
        batch = _metric(address, "mlembed_batch_texts_sum") / _metric(address, "mlembed_batch_texts_count")
    _show(options, server_rates, offline_rates, latencies, errors, batch)


def _show(options: Any, server: list[float], offline: list[float], latencies: list[float], errors: list[str], batch: float) -> None:
    per_round = [one / other for one, other in zip(server, offline, strict=True)]
    ratio = f"{np.mean(server) / np.mean(offline):.2f} ({min(per_round):.2f}–{max(per_round):.2f})"
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    print("| clients | texts a request | requests | errors | p50 ms | p99 ms | texts/s | offline texts/s | ratio (range) | texts a batch |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    print(
        f"| {options.clients} | {options.texts_per_request} | {len(latencies):,} | {len(errors)} | {p50:.0f} | {p99:.0f} "
        f"| {np.mean(server):,.0f} | {np.mean(offline):,.0f} | {ratio} | {batch:.0f} |"
    )
    for error in sorted(set(errors))[:5]:
        print(f"error: {error}")


def _offline_encoder(options: Any) -> Any:
    import torch

    from mlembed_core.registry.load import load

    torch.set_num_threads(options.threads)
    return load(options.model)


def _offline(encoder: Any, texts: list[str], seconds: float) -> float:
    """Texts per second of batch after batch in this process."""
    started, done, block = time.monotonic(), 0, 512
    while (spent := time.monotonic() - started) < seconds:
        start = done % (len(texts) - block)
        encoder.encode_documents(texts[start : start + block])
        done += block
    return done / spent


def _clients(address: str, texts: list[str], options: Any, seconds: float) -> list[Load]:
    share = options.clients // CLIENT_PROCESSES
    with multiprocessing.get_context("spawn").Pool(CLIENT_PROCESSES) as pool:
        pool.map(abs, range(CLIENT_PROCESSES))  # started before the clock is
        return pool.starmap(
            _client_process, [(address, texts, share, options.texts_per_request, seconds, seed) for seed in range(CLIENT_PROCESSES)]
        )


def _client_process(address: str, texts: list[str], clients: int, size: int, seconds: float, seed: int) -> Load:
    import asyncio

    latencies: list[float] = []
    errors: list[str] = []
    done = 0

    async def client(number: int) -> None:
        nonlocal done
        rng = np.random.default_rng([seed, number])
        async with httpx.AsyncClient(base_url=address, timeout=60, trust_env=False) as session:
            while time.monotonic() < end:
                start = int(rng.integers(len(texts) - size))
                began = time.monotonic()
                try:
                    answer = await session.post("/v1/embeddings", json={"input": texts[start : start + size], "encoding_format": "base64"})
                except httpx.HTTPError as error:
                    errors.append(type(error).__name__)
                    continue
                latencies.append(time.monotonic() - began)
                if answer.status_code == 200 and answer.content.count(b'"index"') == size:
                    done += size
                else:
                    errors.append(f"{answer.status_code} {answer.text[:80]}")

    async def all_clients() -> None:
        await asyncio.gather(*(client(number) for number in range(clients)))

    end = time.monotonic() + seconds
    asyncio.run(all_clients())
    return Load(latencies, done, errors)


@contextmanager
def _server(options: Any) -> Iterator[str]:
    command = [sys.executable, "-m", "mlembed_core", "serve", "--model", options.model, "--port", "0", "--threads", str(options.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " at http" not in line:
            sys.exit(f"the server did not start: {line}")
        yield line.split(" at ")[1].split("/v1")[0]
    finally:
        process.terminate()
        process.wait(20)


def _metric(address: str, name: str) -> float:
    lines = httpx.get(f"{address}/metrics", trust_env=False).text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


def _texts(file: Path | None) -> list[str]:
    from mlembed_core.artifacts import Workspace
    from mlembed_core.registry.search import corpus_of_file, corpus_of_sources

    corpus = corpus_of_sources(Workspace.find()) if file is None else corpus_of_file(file)
    rng = np.random.default_rng(0)
    return [corpus.texts[row] for row in rng.choice(len(corpus.texts), size=min(TEXTS, len(corpus.texts)), replace=False)]


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/3d")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts-per-request", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=60, help="of each side, over all rounds")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--file", type=Path, help="texts (default: passages of the workspace's sources)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
