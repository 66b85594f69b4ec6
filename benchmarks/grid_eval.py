"""Vectors of a whole grid of submodels, 4 exits × 6 dims: one pass of ours, against one full-depth encoding, and sentence-transformers.

    python -m benchmarks.grid_eval [--texts 500] [--rounds 3]

Sentence-transformers gets physically cut models, as `mlembed export` writes them: one encoding per submodel, or one per exit with the dims
sliced from it. All within one run, in turns, on the same texts, one thread, float32 (and ours in bf16, as suites are scored); CPU
seconds, models loaded before the clock starts.
Vectors are compared too: ours with those of the cut models, opened by us and by sentence-transformers. It prints and never asserts.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Qwen3Config, Qwen3Model

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

Vectors = dict[str, np.ndarray]  # by the submodel's name


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
    model = folder / "model"
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


def variants(model: Path, cuts: dict[str, Path]) -> dict[str, Callable[[list[str]], Vectors]]:
    """What is timed, by name."""
    from sentence_transformers import SentenceTransformer

    submodels = {Submodel(layers, dim, HIDDEN).name: Submodel(layers, dim, HIDDEN) for layers in EXITS for dim in DIMS}
    encoder, halved = Encoder.from_folder(model), Encoder.from_folder(model, precision=Precision.BF16)
    theirs: dict[str, Any] = {name: SentenceTransformer(str(folder), device="cpu") for name, folder in cuts.items()}

    def one_pass(texts: list[str], encoder: Encoder = encoder) -> Vectors:
        store = StateStore(encoder, list(submodels.values()), batch_tokens=BATCH_TOKENS)
        return {name: unit_vectors(store.states(texts, submodel), submodel.dim) for name, submodel in submodels.items()}

    def full_depth(texts: list[str]) -> Vectors:
        store = StateStore(encoder, [encoder.shape.full], batch_tokens=BATCH_TOKENS)
        return {encoder.shape.full.name: unit_vectors(store.states(texts, encoder.shape.full), HIDDEN)}

    def per_submodel(texts: list[str]) -> Vectors:
        return {name: theirs[name].encode(texts) for name in submodels}

    def per_exit(texts: list[str]) -> Vectors:
        whole = {layers: theirs[Submodel(layers, HIDDEN, HIDDEN).name].encode(texts) for layers in EXITS}
        return {name: unit_vectors(whole[submodel.layers], submodel.dim) for name, submodel in submodels.items()}

    def once(texts: list[str]) -> Vectors:
        name = Submodel(LAYERS, HIDDEN, HIDDEN).name
        return {name: theirs[name].encode(texts)}

    return {
        "ours, one pass, 24 submodels": one_pass,
        "ours, one encoding at full depth": full_depth,
        "ours, one pass in bf16": lambda texts: one_pass(texts, halved),
        "sentence-transformers, once per submodel": per_submodel,
        "sentence-transformers, once per exit": per_exit,
        "sentence-transformers, once at full depth": once,
    }


def largest_difference(ours: Vectors, theirs: Vectors) -> float:
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    texts = make_texts(arguments.texts)
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(Path(scratch))
        submodels = [Submodel(layers, dim, HIDDEN) for layers in EXITS for dim in DIMS]
        cuts = {item.name: cut_model(model, Path(scratch) / item.name, item) for item in submodels}
        ways = variants(model, cuts)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, Vectors] = {}
        for way in ways.values():
            way(texts[:8])  # warm
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                started = time.process_time()
                found[name] = way(texts)
                seconds[name].append(time.process_time() - started)
        opened = {name: open_encoder(folder).encode_documents(texts, batch_tokens=BATCH_TOKENS) for name, folder in cuts.items()}
    first, full, halved, *_ = ways
    print(f"{len(texts)} texts, {arguments.rounds} rounds, CPU seconds, median (min–max); ratios round by round\n")
    print("| way | CPU s | this / one pass in float32 | this / one pass in bf16 |\n|---|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {_range(times)} | {_ratio(times, seconds[first])} | {_ratio(times, seconds[halved])} |")
    print(f"\nOne pass / one encoding at full depth: {_ratio(seconds[first], seconds[full])}")
    print(f"Largest difference to the cut models opened by us: {largest_difference(found[first], opened):.1e}")
    for name in list(ways)[2:]:  # bf16 among them, for what it costs
        print(f"Largest difference to {name}: {largest_difference(found[first], found[name]):.1e}")


def _ratio(times: list[float], base: list[float]) -> str:
    return _range([one / other for one, other in zip(times, base, strict=True)])


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


if __name__ == "__main__":
    main()
