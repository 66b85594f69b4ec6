"""A source of gigabytes goes through source, tokenize and cache in constant memory. MLEMBED_TEST_TEXT_GB says how many; 5 by default."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from mlembed_core.artifacts import Workspace, read_manifest, write_manifest
from mlembed_core.config.presets import compose

ROOT = Path(__file__).parents[2]
GIGABYTES = float(os.environ.get("MLEMBED_TEST_TEXT_GB", "5"))
LIMIT_BYTES = 2e9
GROUP_ROWS = 20_000
WORDS = 30_000
MEAN_WORDS = 40


def made_up_words() -> list[str]:
    rng = np.random.default_rng(11)
    letters = np.array(list("abcdefghijklmnoprstuvwy"))
    return sorted({"".join(rng.choice(letters, size=size)) for size in rng.integers(3, 10, size=WORDS)})


def word_tokenizer(folder: Path, words: list[str]) -> None:
    """The out of stage ``tokenizer``: a token a word, an unknown one for numbers."""
    vocabulary = {word: number for number, word in enumerate(["<eos>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 0)])
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    write_manifest(folder, stage="tokenizer", params={})


def write_pairs(path: Path, words: list[str], gigabytes: float) -> tuple[int, int]:
    """Parquet of as much text, every passage another, the negatives passages of other rows. Returns rows and bytes of text."""
    rng = np.random.default_rng(12)
    columns = ["query", "passage", "negative_1"]
    drawn_from = np.array(words)
    rows = written = 0
    with pq.ParquetWriter(path, pa.schema([(name, pa.string()) for name in columns]), compression="zstd") as writer:
        while written < gigabytes * 1e9:
            drawn = drawn_from[rng.integers(0, len(words), size=(GROUP_ROWS, MEAN_WORDS))]
            passages = pa.array([f"{rows + n} {' '.join(line)}" for n, line in enumerate(drawn)])
            queries = pa.array([f"{rows + n} {' '.join(line[:8])}" for n, line in enumerate(drawn)])
            group = [queries, passages, passages.take(pa.array((np.arange(GROUP_ROWS) + 7) % GROUP_ROWS))]
            writer.write_batch(pa.record_batch(group, names=columns), row_group_size=GROUP_ROWS)
            rows += GROUP_ROWS
            written += sum(column.nbytes for column in group)
    return rows, written


def peak_of(root: Path, *command: str) -> float:
    """Bytes at most, of the process and its children, pages of files left out: those the system takes back when it wants them."""
    process = subprocess.Popen([sys.executable, "-m", "mlembed_core", *command], cwd=root, stderr=subprocess.DEVNULL)
    peaks = [0.0]

    def watch() -> None:
        while process.poll() is None:
            try:
                family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                statuses = [Path(f"/proc/{one.pid}/status").read_text(encoding="ascii") for one in family]
                peaks.append(sum(int(status.partition("RssAnon:")[2].split()[0]) * 1024 for status in statuses))
            except (psutil.Error, OSError, IndexError):
                pass  # it has just ended
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert process.wait() == 0
    watcher.join()
    return max(peaks)


@pytest.mark.slow
def test_memory_stays_below_two_gigabytes_however_large_the_source(tmp_path: Path) -> None:
    words = made_up_words()
    rows, size = write_pairs(tmp_path / "pairs.parquet", words, GIGABYTES)
    workspace = Workspace(tmp_path)
    values = YAML(typ="safe").load(compose(ROOT / "configs" / "presets", "tiny"))
    values["sources"] = {"large": {"kind": "retrieval", "origin": {"type": "local", "files": ["pairs.parquet"]}, "num_negatives": 1}}
    values["suites"] = {"code": {"type": "mteb", "benchmark": "MTEB(Code, v1)"}}
    workspace.params_file.parent.mkdir()
    workspace.params_file.write_text(json.dumps(values))
    word_tokenizer(workspace.tokenizer, words)
    peaks = {}
    for command in (["source", "large"], ["tokenize", "large"], ["cache"]):
        started = time.monotonic()
        peaks[command[0]] = peak_of(tmp_path, *command)
        seconds = time.monotonic() - started
        print(
            f"{command[0]}: {rows:,} rows, {size / 1e9:.1f} GB of text, peak {peaks[command[0]] / 1e6:.0f} MB, {seconds:.0f} s", flush=True
        )
    assert read_manifest(workspace.sources / "large")["counts"]["rows"] == rows
    assert read_manifest(workspace.corpora / "large")["counts"]["documents"] == rows
    assert max(peaks.values()) < LIMIT_BYTES, peaks
