"""Vectors of a whole grid of submodels, 4 exits × 6 dims: one pass of ours, against one full-depth encoding, and sentence-transformers.

    python -m benchmarks.grid_eval [--texts 500] [--rounds 3]

Sentence-transformers gets physically cut models, as `mlembed export` writes them: one encoding per submodel, or one per exit with the dims
sliced from it. All within one run, in turns, on the same texts, one thread, float32 (and ours in bf16, as suites are scored); CPU
seconds, models loaded before the clock starts. Each way has a process of its own, set up as it is in use: ours keep freed memory, as
every evaluation does.
Vectors are compared too: ours with those of the cut models, opened by us and by sentence-transformers. It prints and never asserts.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Qwen3Config, Qwen3Model

from benchmarks.worker import Worker
from mlembed_core.allocator import keep_freed_memory
from mlembed_core.artifacts import write_manifest
from mlembed_core.config.base import Precision
from mlembed_core.config.grid import Submodel
from mlembed_core.data.tokenize import EOS, PAD, append_eos, save_tokenizer
from mlembed_core.evaluate.encoder import StateStore
from mlembed_core.export.formats import open_encoder, write_folder
from mlembed_core.export.kinds import Format, StoredType
from mlembed_core.export.slice import cut
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.encoder import Encoder, unit_vectors
from mlembed_core.model.network import Network

EXITS, DIMS = (1, 2, 4, 8), (8, 16, 32, 64, 128, 256)
HIDDEN, LAYERS, VOCAB = 256, 8, 4000
MEAN_LENGTH, MAX_LENGTH, SPREAD = 80, 512, 0.83  # tokens; log-normal, as measured on web text (see train_step.py)
BATCH_TOKENS = 1024  # of ours, as in the embedded preset; sentence-transformers takes its default, 32 texts

MODEL = "model"
SUBMODELS = [Submodel(layers, dim, HIDDEN) for layers in EXITS for dim in DIMS]
WHOLE = Submodel(LAYERS, HIDDEN, HIDDEN)
Vectors = dict[str, np.ndarray]  # by the submodel's name
Way = Callable[[list[str]], Vectors]


def make_model(folder: Path) -> Path:
    """A random Qwen3 of eight layers with a vocabulary of whole words: what tokens mean costs nothing."""
    words = {word: index for index, word in enumerate([EOS, PAD, "<unk>", *(f"w{index}" for index in range(VOCAB - 3))])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))  # noqa: S106  # no secret
    tokenizer.add_special_tokens([EOS, PAD])
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (folder / "tokenizer").mkdir()
    save_tokenizer(
        append_eos(tokenizer, EOS), folder / "tokenizer", special_tokens={"eos_token": EOS, "pad_token": PAD}, max_length=MAX_LENGTH
    )
    write_manifest(folder / "tokenizer", stage="tokenizer", params={})
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=MAX_LENGTH,
        pad_token_id=None,
        initializer_range=0.1,  # so that exits differ
    )
    model = folder / MODEL
    model.mkdir()
    write_checkpoint(model, Network(Qwen3Model(config)), tokenizer_folder=folder / "tokenizer", details={"setting": "grid"})
    return model


def make_texts(number: int) -> list[str]:
    rng = np.random.default_rng(0)
    sizes = np.exp(rng.normal(np.log(MEAN_LENGTH) - SPREAD**2 / 2, SPREAD, size=number)).round().clip(3, MAX_LENGTH - 1).astype(int)
    return [" ".join(f"w{word}" for word in rng.integers(0, VOCAB - 3, size=size)) for size in sizes]


def cut_model(model: Path, target: Path, submodel: Submodel) -> Path:
    """The submodel as a folder of its own, as `mlembed export` writes it (without its probe in a fresh process)."""
    encoder = open_encoder(model, layers=submodel.layers, dim=submodel.dim)
    cut(encoder, Format.COMPAT)
    target.mkdir()
    write_folder(target, encoder.network, dim=submodel.dim, dtype=StoredType.FP32, source=model, instruction=None, details={})
    return target


def one_pass(folder: Path, precision: Precision) -> Way:
    encoder = Encoder.from_folder(folder / MODEL, precision=precision)

    def way(texts: list[str]) -> Vectors:
        store = StateStore(encoder, SUBMODELS, batch_tokens=BATCH_TOKENS)
        return {submodel.name: unit_vectors(store.states(texts, submodel), submodel.dim) for submodel in SUBMODELS}

    return way


def full_depth(folder: Path) -> Way:
    encoder = Encoder.from_folder(folder / MODEL)

    def way(texts: list[str]) -> Vectors:
        store = StateStore(encoder, [WHOLE], batch_tokens=BATCH_TOKENS)
        return {WHOLE.name: unit_vectors(store.states(texts, WHOLE), WHOLE.dim)}

    return way


def stock(folder: Path, encoded: Sequence[Submodel]) -> Way:
    """Sentence-transformers on the cut models of ``encoded``; those that lack dims alone are sliced from them."""
    from sentence_transformers import SentenceTransformer

    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    models = {submodel: SentenceTransformer(str(folder / submodel.name), device="cpu") for submodel in encoded}

    def way(texts: list[str]) -> Vectors:
        found = {submodel: model.encode(texts) for submodel, model in models.items()}
        sliced = {
            submodel.name: unit_vectors(found[whole], submodel.dim)
            for submodel in SUBMODELS
            if submodel not in found and (whole := Submodel(submodel.layers, HIDDEN, HIDDEN)) in found
        }
        return {submodel.name: vectors for submodel, vectors in found.items()} | sliced

    return way


WAYS: dict[str, Callable[[Path], Way]] = {
    "ours, one pass, 24 submodels": lambda folder: one_pass(folder, Precision.FP32),
    "ours, one encoding at full depth": full_depth,
    "ours, one pass in bf16": lambda folder: one_pass(folder, Precision.BF16),
    "sentence-transformers, once per submodel": lambda folder: stock(folder, SUBMODELS),
    "sentence-transformers, once per exit": lambda folder: stock(folder, [Submodel(layers, HIDDEN, HIDDEN) for layers in EXITS]),
    "sentence-transformers, once at full depth": lambda folder: stock(folder, [WHOLE]),
}


def work(name: str, folder: Path, texts: list[str]) -> None:
    """What a worker does: for each path on stdin an encoding, whose vectors go there."""
    if name.startswith("ours"):
        keep_freed_memory()
    torch.set_num_threads(1)
    way = WAYS[name](folder)
    way(texts[:8])  # warm
    for line in sys.stdin:
        started = time.process_time()
        vectors = way(texts)
        spent = time.process_time() - started
        np.savez(line.strip(), **vectors)
        print(json.dumps({"seconds": spent}), flush=True)


def largest_difference(ours: Vectors, theirs: Vectors) -> float:
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    texts = make_texts(arguments.texts)
    if arguments.work:
        work(arguments.work[0], Path(arguments.work[1]), texts)
        return
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        model = make_model(Path(scratch))
        for submodel in SUBMODELS:
            cut_model(model, Path(scratch) / submodel.name, submodel)
        workers = {name: Worker("benchmarks.grid_eval", ["--texts", str(arguments.texts), "--work", name, scratch]) for name in WAYS}
        for worker in workers.values():
            stack.callback(worker.close)
        places = {name: Path(scratch) / f"{number}.npz" for number, name in enumerate(WAYS)}
        for _ in range(arguments.rounds):
            for name, worker in workers.items():
                seconds[name].append(worker.ask(str(places[name]))["seconds"])
        found = {name: dict(np.load(place, allow_pickle=False)) for name, place in places.items()}
        opened = {
            submodel.name: open_encoder(Path(scratch) / submodel.name).encode_documents(texts, batch_tokens=BATCH_TOKENS)
            for submodel in SUBMODELS
        }
    first, full, halved, *_ = WAYS
    print(f"{len(texts)} texts, {arguments.rounds} rounds, CPU seconds, median (min–max); ratios round by round\n")
    print("| way | CPU s | this / one pass in float32 | this / one pass in bf16 |\n|---|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {_range(times)} | {_ratio(times, seconds[first])} | {_ratio(times, seconds[halved])} |")
    print(f"\nOne pass / one encoding at full depth: {_ratio(seconds[first], seconds[full])}")
    by_dim = {dim: {name: vectors for name, vectors in opened.items() if vectors.shape[1] == dim} for dim in DIMS}
    said = ", ".join(f"{dim} dims {largest_difference(found[first], cut_models):.1e}" for dim, cut_models in by_dim.items())
    print(f"Largest difference to the cut models opened by us: {said}")
    for name in list(WAYS)[2:]:  # bf16 among them, for what it costs
        print(f"Largest difference to {name}: {largest_difference(found[first], found[name]):.1e}")


def _ratio(times: list[float], base: list[float]) -> str:
    return _range([one / other for one, other in zip(times, base, strict=True)])


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    main()
