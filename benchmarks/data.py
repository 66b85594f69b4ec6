"""From text to batches, side by side: tokenising against one call per sentence, batches against a dictionary, memory of the feed.

    python -m benchmarks.data                          # all parts, one thread, CPU seconds, interleaved rounds; Markdown tables
    python -m benchmarks.data --parts tokenise --rounds 7
    python -m benchmarks.data --parts cores            # tokenising by threads and by processes, seconds on the clock
    python -m benchmarks.data --parts feed --documents 1000000 20000000

Texts are the passages of the sources in ``data/sources`` (`dvc repro` makes them), each once; the tokenizer is the one in
``data/tokenizer``, or that of ``--tokenizer``. Everything runs in one run, so that ratios can be compared where times cannot. It prints
and never asserts.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mlembed_core.artifacts import Workspace, write_json
from mlembed_core.config.data import Kind
from mlembed_core.data.corpus import Job, make_corpus
from mlembed_core.data.rows import ROWS_FILE, Row, RowWriter, to_table
from mlembed_core.data.sampler import Sampler
from mlembed_core.data.store import FILES, FORMAT, HEADER, VERSION, TrainingCache
from mlembed_core.data.tokenize import ENCODE_BATCH, load_tokenizer
from mlembed_core.spread import PROCESSES

NUM_TEXTS = 40_000
COPIES = 8  # of the texts, for all cores: eight pieces of 20,000 rows
MAX_LENGTH = 1024
BATCH_ROWS, NEGATIVES, DRAWN = 512, 24, 7  # of the recipe
MEAN_TOKENS, MAX_TOKENS = 30, 512
FEED_BATCHES = 200
OPENINGS = 21
VOCABULARY = 151_936
PARTS = ("tokenise", "cores", "batches", "feed")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--documents", type=int, nargs="+", default=[1_000_000, 20_000_000], help="of the feed")
    arguments.add_argument("--tokenizer", type=Path, help="a folder (default: data/tokenizer)")
    arguments.add_argument("--feed", type=Path, help=argparse.SUPPRESS)  # the process whose memory is measured
    arguments.add_argument("--corpus", type=Path, help=argparse.SUPPRESS)  # a process with threads and processes of its own
    given = arguments.parse_args()
    os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the tokenizers look when they start their threads
    pa.set_cpu_count(1)
    if given.corpus is not None:
        print(corpus(given.corpus, given.tokenizer))
        return
    if given.feed is not None:
        print(*feed(given.feed))
        return
    workspace = Workspace.find()
    with tempfile.TemporaryDirectory(dir=workspace.work if workspace.work.is_dir() else None) as scratch:
        if "tokenise" in given.parts:
            tokenise(workspace, given.tokenizer or workspace.tokenizer, Path(scratch), given.rounds)
        if "cores" in given.parts:
            cores(workspace, given.tokenizer or workspace.tokenizer, Path(scratch), given.rounds)
        if "batches" in given.parts:
            batches(Path(scratch), given.rounds)
        if "feed" in given.parts:
            feeds(Path(scratch), given.documents)


def tokenise(workspace: Workspace, tokenizer_folder: Path, scratch: Path, rounds: int) -> None:
    """Parquet to parquet: rows of a query and a passage, none of them twice."""
    from transformers import PreTrainedTokenizerFast

    texts = _texts(workspace)
    source = scratch / "source"
    _write_pairs(source, _pairs(texts))
    tokenizer = load_tokenizer(tokenizer_folder)
    stock = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_folder / "tokenizer.json"))
    out = scratch / "out"

    def one_call_per_sentence() -> None:
        frame = pd.read_parquet(source / ROWS_FILE)
        documents: dict[str, int] = {}
        queries, tokens = [], []
        for query, passage in zip(frame["query"], frame["passage"], strict=True):
            queries.append(stock(query, truncation=True, max_length=MAX_LENGTH)["input_ids"])
            if passage not in documents:
                documents[passage] = len(documents)
                tokens.append(stock(passage, truncation=True, max_length=MAX_LENGTH)["input_ids"])
        passages = [documents[passage] for passage in frame["passage"]]
        pd.DataFrame({"query": queries, "passage": passages}).to_parquet(out / "rows.parquet")
        pd.DataFrame({"doc_id": range(len(tokens)), "tokens": tokens}).to_parquet(out / "documents.parquet")

    def ours() -> None:
        job = Job(source / ROWS_FILE, tokenizer_folder, scratch / "state", None, False, 0, MAX_LENGTH)
        make_corpus(job, out, scratch=out, description="")
        shutil.rmtree(job.state)

    def raw() -> None:
        for start in range(0, len(texts), ENCODE_BATCH):
            tokenizer.encode_batch_fast(texts[start : start + ENCODE_BATCH])

    ways = {"one call per sentence, pandas": one_call_per_sentence, "**ours**": ours, "`encode_batch_fast` alone, on a list": raw}
    seconds = _rounds(ways, rounds, before=lambda: _empty(out))
    num_tokens = sum(len(row) for name in ("rows", "documents") for row in _token_lists(out / f"{name}.parquet"))
    print(f"\n{len(texts):,} texts of the sources, {num_tokens / len(texts):.0f} tokens each; parquet to parquet, one thread\n")
    print("| way | CPU s, median (min–max) | texts per CPU s | against one call per sentence | share of the tokenizer alone |")
    print("|---|---|---|---|---|")
    for name, times in seconds.items():
        slow = _ratios(seconds["one call per sentence, pandas"], times)
        share = _ratios(seconds["`encode_batch_fast` alone, on a list"], times)
        print(f"| {name} | {_spread(times)} | {len(texts) / statistics.median(times):,.0f} | {_spread(slow)} | {_spread(share)} |")


def cores(workspace: Workspace, tokenizer_folder: Path, scratch: Path, rounds: int) -> None:
    """The same work by more threads of one process, and by more processes with a thread each; seconds on the clock."""
    pairs = [(f"{copy} {query}", f"{copy} {passage}") for copy in range(COPIES) for query, passage in _pairs(_texts(workspace))]
    _write_pairs(scratch / "many", pairs)
    child = [sys.executable, "-m", "benchmarks.data", "--corpus", str(scratch / "many"), "--tokenizer", str(tokenizer_folder.absolute())]
    available = len(os.sched_getaffinity(0))
    counts = [count for count in (2, 4, 8, 16, 32, 64) if count < available] + [available]
    ways = {"1": (1, 1)}
    for count in counts:
        ways |= {f"{count} threads": (count, 1), f"{count} processes": (1, count)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (threads, processes) in ways.items():
            done = subprocess.run(
                child,
                env={**os.environ, "RAYON_NUM_THREADS": str(threads), PROCESSES: str(processes)},
                capture_output=True,
                text=True,
                check=True,
                cwd=Path(__file__).parents[1],
            )
            seconds[name].append(float(done.stdout))
    print(f"\n{len(pairs):,} rows, {2 * len(pairs):,} texts; parquet to parquet, {available} cores\n")
    print("| cores | s on the clock, median (min–max) | rows a second | against one |\n|---|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {_spread(times)} | {len(pairs) / statistics.median(times):,.0f} | {_spread(_ratios(seconds['1'], times))} |")


def corpus(source: Path, tokenizer_folder: Path) -> float:
    """Seconds that tokenising a source takes, from files to files."""
    with tempfile.TemporaryDirectory(dir=source.parent) as scratch:
        out = Path(scratch) / "out"
        out.mkdir()
        job = Job(source / ROWS_FILE, tokenizer_folder, Path(scratch) / "state", None, False, 0, MAX_LENGTH)
        started = time.perf_counter()
        make_corpus(job, out, scratch=out, description="")
        return time.perf_counter() - started


def _pairs(texts: Sequence[str]) -> list[tuple[str, str]]:
    """The first half as queries, the second as passages."""
    half = len(texts) // 2
    return list(zip(texts[:half], texts[half:], strict=True))


def _write_pairs(folder: Path, pairs: Sequence[tuple[str, str]]) -> None:
    folder.mkdir()
    with RowWriter(folder, 0) as writer:
        for start in range(0, len(pairs), 10_000):
            rows = [Row(query, passage, [], None, None, None) for query, passage in pairs[start : start + 10_000]]
            writer.write(to_table(rows, 0))


def _texts(workspace: Workspace) -> list[str]:
    texts: dict[str, None] = {}
    for path in sorted(workspace.sources.glob("*/rows.parquet")):
        table = pq.read_table(path, columns=["query", "passage"])
        texts |= dict.fromkeys(table["query"].to_pylist() + table["passage"].to_pylist())
    chosen = np.random.default_rng(17).permutation(len(texts))[:NUM_TEXTS]
    everything = list(texts)
    return [everything[number] for number in chosen]


def _token_lists(path: Path) -> list[list[int]]:
    table = pq.read_table(path)
    return table["query" if "query" in table.column_names else "tokens"].to_pylist()  # type: ignore[no-any-return]


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def batches(scratch: Path, rounds: int) -> None:
    """Rows of a batch as arrays of token ids: queries, passages, and negatives drawn for each step."""
    folder = scratch / "cache"
    num_documents = 1_000_000
    write_cache(folder, num_documents)
    cache = TrainingCache.open(folder)
    sampler = Sampler(cache.sources, batch_size=BATCH_ROWS, seed=17, num_steps=10_000)
    steps = iter(range(10_000))

    # What the dictionary stands for: documents by id in one table of lists, queries inline in another.
    offsets = np.fromfile(folder / "offsets.bin", dtype=np.int64)
    lists = pa.LargeListArray.from_arrays(offsets, np.fromfile(folder / "tokens.bin", dtype=np.uint32))
    table = pa.table({"doc_id": np.arange(len(lists)), "tokens": lists})
    row_of = {document: row for row, document in enumerate(table["doc_id"].to_pylist())}
    column = table["tokens"]

    def plan(step: int) -> NDArray[np.int64]:
        batch = sampler.batch(step)
        drawn = sampler.negatives(step, batch, DRAWN)
        return np.concatenate([cache.query_ids(batch.rows), cache.passage_ids(batch.rows), drawn.ravel()])

    def by_dictionary(texts: NDArray[np.int64]) -> list[NDArray[np.uint32]]:
        return [np.array(column[row_of[text]].as_py(), dtype=np.uint32) for text in texts.tolist()]

    def mapped(texts: NDArray[np.int64]) -> list[NDArray[np.uint32]]:
        return [cache.tokens(text) for text in texts.tolist()]

    seconds: dict[str, list[float]] = {"dictionary over an Arrow table of lists": [], "**memory map**": []}
    for _ in range(rounds):
        plans = [plan(next(steps)) for _ in range(4)]
        found = []
        for name, way in zip(seconds, (by_dictionary, mapped), strict=True):
            started = time.process_time()
            found.append([way(texts) for texts in plans])
            seconds[name].append((time.process_time() - started) / (4 * BATCH_ROWS) * 1e3)
        assert all(np.array_equal(a, b) for one, other in zip(*found, strict=True) for a, b in zip(one, other, strict=True))
    print(f"\n{num_documents:,} documents, batches of {BATCH_ROWS} rows, each a query, a passage and {DRAWN} negatives; equal arrays\n")
    print("| way | CPU ms a row, median (min–max) | ratio |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {_spread(times, 4)} | {_spread(_ratios(seconds['dictionary over an Arrow table of lists'], times), 1)} |")
    shutil.rmtree(folder)


def write_cache(folder: Path, num_documents: int) -> None:
    """A cache of one source in the format of ``data/store.py``, its numbers drawn: as many rows as documents, queries among the latter."""
    folder.mkdir()
    rng = np.random.default_rng(17)
    lengths = np.clip(rng.lognormal(np.log(MEAN_TOKENS) - 0.5, 1.0, size=num_documents), 2, MAX_TOKENS).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    with (folder / "tokens.bin").open("wb") as file:
        for start in range(0, int(offsets[-1]), 2**24):
            rng.integers(0, VOCABULARY, size=min(2**24, int(offsets[-1]) - start), dtype=np.uint32).tofile(file)
    offsets.tofile(folder / "offsets.bin")
    ids = np.arange(num_documents)
    ids.tofile(folder / "queries.bin")
    np.roll(ids, 1).tofile(folder / "passages.bin")
    with (folder / "negatives.bin").open("wb") as file:
        for start in range(0, num_documents, 2**18):
            rows = min(2**18, num_documents - start)
            rng.integers(0, num_documents, size=rows * NEGATIVES, dtype=np.int64).tofile(file)
    (np.arange(num_documents + 1) * NEGATIVES).tofile(folder / "negative_offsets.bin")
    np.full(num_documents, -1, dtype=np.int32).tofile(folder / "labels.bin")
    held_out = num_documents // 100
    source = {"name": "drawn", "kind": Kind.RETRIEVAL.value, "first_row": 0, "num_negatives": NEGATIVES, "labels": []}
    source |= {"rows_train": num_documents - held_out, "rows_validation": held_out}
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    write_json(folder / HEADER, {"format": FORMAT, "version": VERSION, "tokenizer": "", "files": sizes, "sources": [source]})


def feeds(scratch: Path, counts: Sequence[int]) -> None:
    """The trainer's feed in a process of its own: what opening takes, and what a few hundred batches leave behind."""
    print(f"\nThe feed of one process, {FEED_BATCHES} batches of {BATCH_ROWS} rows with {DRAWN} negatives\n")
    print("| documents and rows | cache on disk | opening, ms | private memory, growth | CPU ms a batch |\n|---|---|---|---|---|")
    for count in counts:
        folder = scratch / f"cache-{count}"
        write_cache(folder, count)
        size = sum(path.stat().st_size for path in folder.iterdir())
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.data", "--feed", str(folder)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
        opening, growth, per_batch = map(float, done.stdout.split())
        print(f"| {count:,} | {size / 1e9:.1f} GB | {opening:.1f} | {growth:.1f} MB | {per_batch:.1f} |", flush=True)
        shutil.rmtree(folder)


def feed(folder: Path) -> tuple[float, float, float]:
    """Median milliseconds of opening, growth of private memory in megabytes, CPU milliseconds a batch."""
    openings = []
    for _ in range(OPENINGS):
        started = time.perf_counter()
        TrainingCache.open(folder)
        openings.append((time.perf_counter() - started) * 1e3)
    gc.collect()
    before = private_memory()
    started = time.process_time()
    cache = TrainingCache.open(folder)
    sampler = Sampler(cache.sources, batch_size=BATCH_ROWS, seed=17, num_epochs=1)
    total = 0
    for step in range(FEED_BATCHES):
        batch = sampler.batch(step)
        texts = np.concatenate([cache.query_ids(batch.rows), cache.passage_ids(batch.rows), sampler.negatives(step, batch, DRAWN).ravel()])
        total += sum(len(cache.tokens(text)) for text in texts.tolist())
    assert total
    return statistics.median(openings), private_memory() - before, (time.process_time() - started) / FEED_BATCHES * 1e3


def private_memory() -> float:
    """Megabytes of this process that are not pages of files, which all processes share."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) / 1e3


def _rounds(ways: dict[str, Callable[[], None]], rounds: int, *, before: Callable[[], None]) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            if "alone" not in name:
                before()
            gc.collect()
            started = time.process_time()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    return seconds


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def _spread(values: Sequence[Any], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"


if __name__ == "__main__":
    main()
