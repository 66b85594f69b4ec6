"""Forward, loss and backward of one training step, side by side: ours, the reference's way, sentence-transformers.

    python -m benchmarks.train_step --shape small --lengths log_normal          # CPU seconds, interleaved rounds, a Markdown table
    python -m benchmarks.train_step --shape large --lengths log_normal --memory # peak RSS and time of a step, in processes of their own

Every variant gets the same texts in each round, all within one run, so that ratios can be compared where times cannot. CPU seconds
of one thread; the optimizer is left out, being the same for all. It prints and never asserts.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3Model

from benchmarks.reference_way import ReferenceWay, reference_loss
from mlembed_core.config.axes import MIN_MRL_DIM, MLL_EXITS, powers_of_two
from mlembed_core.config.base import Precision
from mlembed_core.config.train import Checkpointing
from mlembed_core.losses.contrastive import ContrastiveTerms, contrastive_loss
from mlembed_core.model.attention import choose_attention
from mlembed_core.model.network import Network
from mlembed_core.model.pack import pack
from mlembed_core.train.grad_cache import backward_in_chunks, chunks_of
from mlembed_core.train.launch import ALLOCATOR
from mlembed_core.train.step import StepPlan

VOCAB = 151_936  # of Qwen3
ROWS, NEGATIVES = 8, 7
TEMPERATURE = 0.05
MEAN_LENGTH, MAX_LENGTH = 80, 512
Texts = list[NDArray[np.int64]]


@dataclass(frozen=True)
class Shape:
    """A Qwen3 decoder, and what is trained on it."""

    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    head_dim: int
    intermediate: int
    rank: int
    bucket_tokens: int  # of ours, and of a chunk with GradCache

    @property
    def dims(self) -> tuple[int, ...]:
        return (*powers_of_two(MIN_MRL_DIM, self.hidden), self.hidden)

    @property
    def exits(self) -> tuple[int, ...]:
        return (*(depth for depth in MLL_EXITS if depth < self.layers), self.layers)

    def backbone(self) -> nn.Module:
        torch.manual_seed(0)
        return Qwen3Model(
            Qwen3Config(
                vocab_size=VOCAB,
                hidden_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                num_key_value_heads=self.key_value_heads,
                head_dim=self.head_dim,
                intermediate_size=self.intermediate,
                max_position_embeddings=MAX_LENGTH,
                pad_token_id=None,
            )
        )


SHAPES = {
    "tiny": Shape(64, 2, 4, 2, 16, 128, 16, 256),  # to try this script
    "small": Shape(256, 4, 4, 2, 64, 768, 128, 2048),
    "large": Shape(1024, 8, 16, 8, 128, 3072, 512, 2048),
}


def make_texts(lengths: str, *, seed: int) -> Texts:
    """Queries, positives, and each row's negatives; random tokens, since their values cost nothing."""
    rng = np.random.default_rng(seed)
    count = ROWS * (2 + NEGATIVES)
    if lengths == "uniform":
        sizes = np.full(count, MEAN_LENGTH)
    else:
        spread = 0.83  # padded to the longest, a batch is then 4.8 times its tokens in the median, as measured on web text
        sizes = np.exp(rng.normal(np.log(MEAN_LENGTH) - spread**2 / 2, spread, size=count)).round().clip(4, MAX_LENGTH).astype(int)
    return [rng.integers(0, VOCAB, size=size) for size in sizes]


Step = Callable[[Texts], Tensor]


def _autocast(precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is Precision.BF16)


def reference(shape: Shape, precision: Precision) -> tuple[nn.Module, Step]:
    """The reference's way."""
    model = ReferenceWay(shape.backbone(), rank=shape.rank)
    model.backbone.get_input_embeddings().requires_grad_(requires_grad=False)  # it gets no gradient there

    def step(texts: Texts) -> Tensor:
        with _autocast(precision):
            states = model(texts, shape.exits)
        loss = reference_loss(states, num_rows=ROWS, dims=shape.dims, temperature=TEMPERATURE)
        loss.backward()
        return loss.detach()

    return model, step


def ours(
    shape: Shape, precision: Precision, *, dense: bool = False, checkpointing: Checkpointing = Checkpointing.NONE
) -> tuple[nn.Module, Step]:
    """A step of this project."""
    network = Network(shape.backbone(), rank=None if dense else shape.rank).train()
    network.checkpointing = checkpointing
    choose_attention(network.backbone, device=torch.device("cpu"), precision=precision)

    def step(texts: Texts) -> Tensor:
        with _autocast(precision):
            states = network(pack(texts, max_tokens=shape.bucket_tokens), shape.exits)
        loss = _our_terms(states.float(), shape).total
        loss.backward()
        return loss.detach()

    return network, step


def ours_in_chunks(shape: Shape, precision: Precision) -> tuple[nn.Module, Step]:
    """A step of this project with GradCache, a chunk being as large as a bucket."""
    network, _ = ours(shape, precision)
    nothing: Any = None  # of a plan, encoding reads the MEL rank and what dropout would be seeded with

    def step(texts: Texts) -> Tensor:
        every = np.arange(len(texts))
        plan = StepPlan(nothing, nothing, [ROWS], 0, None, every, every, mel_rank=None, step=0, seed=0)
        terms: Any = backward_in_chunks(
            network,
            chunks_of(pack(texts, max_tokens=shape.bucket_tokens), shape.bucket_tokens),
            plan,
            lambda states: _our_terms(states, shape),
            exits=shape.exits,
            backward=Tensor.backward,
            autocast=lambda: _autocast(precision),
        )
        return terms.total.detach()

    return network, step


def _our_terms(states: Tensor, shape: Shape) -> ContrastiveTerms:
    queries, positives, negatives = states.split([ROWS, ROWS, ROWS * NEGATIVES], dim=1)
    return contrastive_loss(
        queries,
        positives,
        dims=shape.dims,
        temperature=TEMPERATURE,
        num_rows=ROWS,
        items=positives,
        targets=torch.arange(ROWS),
        negatives=negatives.unflatten(1, (ROWS, NEGATIVES)),
    )


def sentence_transformers(shape: Shape, precision: Precision, *, cached: bool) -> tuple[nn.Module, Step]:
    """Matryoshka2dLoss with as many layers per step as we have exits; cached: CachedMNRL under MatryoshkaLoss, last layer only."""
    import tempfile
    from pathlib import Path

    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        Matryoshka2dLoss,
        MatryoshkaLoss,
        MultipleNegativesRankingLoss,
    )

    from mlembed_core.artifacts import write_json

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape.backbone().save_pretrained(folder)  # type: ignore[operator]  # transformers is not typed
        _write_words(folder)
        write_json(folder / "modules.json", [_module(0, "", "Transformer"), _module(1, "1_Pooling", "Pooling")])
        (folder / "1_Pooling").mkdir()
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": shape.hidden, "pooling_mode_lasttoken": True})
        model = SentenceTransformer(name, device="cpu")
    model.train()
    dims = list(shape.dims)
    loss_function: nn.Module
    if cached:
        loss_function = MatryoshkaLoss(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=ROWS), dims)
    else:
        loss_function = Matryoshka2dLoss(
            model, MultipleNegativesRankingLoss(model), dims, n_layers_per_step=len(shape.exits) - 1, n_dims_per_step=-1
        )

    def step(texts: Texts) -> Tensor:
        columns = [texts[:ROWS], texts[ROWS : 2 * ROWS], *(texts[2 * ROWS + index :: NEGATIVES] for index in range(NEGATIVES))]
        with _autocast(precision):
            loss: Tensor = loss_function([_padded(column) for column in columns], None)
        loss.backward()
        return loss.detach()

    return model, step


def _module(index: int, path: str, name: str) -> dict[str, Any]:
    return {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{name}"}


def _write_words(folder: Any) -> None:
    """A tokenizer, without which no folder loads; the texts here are token ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))  # noqa: S106  # no password
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a").save_pretrained(folder)  # noqa: S106


def _padded(texts: Texts) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(text) for text in texts], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(text), dtype=torch.long) for text in texts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask}


FP32, BF16 = Precision.FP32, Precision.BF16
VARIANTS: dict[str, Callable[[Shape], tuple[nn.Module, Step]]] = {
    "reference's way, fp32": lambda shape: reference(shape, FP32),
    "reference's way, bf16": lambda shape: reference(shape, BF16),
    "ours, fp32": lambda shape: ours(shape, FP32),
    "ours, bf16": lambda shape: ours(shape, BF16),
    "ours, fp32, selective": lambda shape: ours(shape, FP32, checkpointing=Checkpointing.SELECTIVE),
    "ours, bf16, selective": lambda shape: ours(shape, BF16, checkpointing=Checkpointing.SELECTIVE),
    "ours, fp32, full": lambda shape: ours(shape, FP32, checkpointing=Checkpointing.FULL),
    "ours, fp32, GradCache": lambda shape: ours_in_chunks(shape, FP32),
    "ours, fp32, dense table": lambda shape: ours(shape, FP32, dense=True),
    "sentence-transformers, Matryoshka2d": lambda shape: sentence_transformers(shape, FP32, cached=False),
    "sentence-transformers, Matryoshka, cached": lambda shape: sentence_transformers(shape, FP32, cached=True),
}


def measure(shape: Shape, lengths: str, names: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each variant, a step per round."""
    seconds: dict[str, list[float]] = {name: [] for name in names}
    built = {name: VARIANTS[name](shape) for name in names}
    for model, step in built.values():
        _warm_up(model, step, lengths)
    for turn in range(rounds):
        texts = make_texts(lengths, seed=turn)
        for name, (model, step) in built.items():
            gc.collect()
            spent, loss = _timed(model, step, texts)
            print(f"round {turn}: {name}: {spent:.2f} s, loss {loss:.4f}", file=sys.stderr, flush=True)
            seconds[name].append(spent)
    return seconds


def _timed(model: nn.Module, step: Step, texts: Texts) -> tuple[float, float]:
    """CPU seconds and loss of a step."""
    started = time.process_time()
    loss = step(texts)
    spent = time.process_time() - started
    model.zero_grad(set_to_none=True)
    return spent, float(loss)


def _warm_up(model: nn.Module, step: Step, lengths: str) -> None:
    """What happens once (kernels chosen, modules imported) happens here, on the first tokens of each text."""
    _timed(model, step, [text[:8] for text in make_texts(lengths, seed=0)])


def gemm_peak(precision: Precision, size: int = 1024, rounds: int = 5) -> float:
    """FLOP per CPU second of a matrix product, the best of some rounds."""
    dtype = torch.bfloat16 if precision is BF16 else torch.float32
    left, right = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(4):
            left @ right
        best = min(best, time.process_time() - started)
    return 4 * 2 * size**3 / best


def flops(shape: Shape, texts: Texts) -> int:
    """Of matrix products in one of our steps, attention left out."""
    _, step = ours(shape, FP32)
    with FlopCounterMode(display=False) as counter:
        step(texts)
    return int(counter.get_total_flops())


def alone(arguments: argparse.Namespace, name: str) -> tuple[int, float]:
    """Peak RSS in MB and CPU seconds of one step of a variant, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--shape", arguments.shape, "--lengths", arguments.lengths, "--alone", name]
    rss, seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return rss, seconds


def measure_alone(shape: Shape, lengths: str, name: str) -> tuple[int, float]:
    model, step = VARIANTS[name](shape)
    _warm_up(model, step, lengths)
    spent, _ = _timed(model, step, make_texts(lengths, seed=1))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, spent


def print_times(shape: Shape, arguments: argparse.Namespace, names: list[str]) -> None:
    seconds = measure(shape, arguments.lengths, names, arguments.rounds)
    # A round's texts are the same for all variants, so that ratios are taken round by round.
    first = seconds[names[0]]
    work = statistics.median(flops(shape, make_texts(arguments.lengths, seed=turn)) for turn in range(arguments.rounds))
    peaks = {precision: gemm_peak(precision) for precision in Precision}
    print(f"GEMM peak: fp32 {peaks[FP32] / 1e9:.0f}, bf16 {peaks[BF16] / 1e9:.0f} GFLOP/s; our matrix products: {work / 1e9:.0f} GFLOP\n")
    print(f"| {arguments.shape}, {arguments.lengths} | CPU s, median (min–max) | {names[0]} / this (min–max) | share of GEMM peak |")
    print("|---|---|---|---|")
    for name in names:
        times = seconds[name]
        ratios = [base / own for base, own in zip(first, times, strict=True)]
        precision = BF16 if "bf16" in name else FP32
        share = f"{work / statistics.median(times) / peaks[precision]:.0%}" if name.startswith("ours") else ""
        print(f"| {name} | {_spread(times)} | {_spread(ratios)} | {share} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--lengths", choices=("log_normal", "uniform"), default="log_normal")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", metavar="WORDS", help="variants whose names contain one of these; the first is the base")
    parser.add_argument("--memory", action="store_true", help="one step of each variant in a process of its own: peak RSS, CPU seconds")
    parser.add_argument("--keep-pages", action="store_true", help="all variants with the allocator's settings of our trainings")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.keep_pages and not os.environ.keys() >= ALLOCATOR.keys():  # read when a process starts
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.train_step", *sys.argv[1:]], {**os.environ, **ALLOCATOR})  # noqa: S606
    torch.set_num_threads(1)
    shape = SHAPES[arguments.shape]
    if arguments.alone:
        print(json.dumps(measure_alone(shape, arguments.lengths, arguments.alone)))
        return
    names = [name for name in VARIANTS if not arguments.only or any(words in name for words in arguments.only)]
    if arguments.memory:
        print(f"| {arguments.shape}, {arguments.lengths}, one step | peak RSS, MB | CPU s |\n|---|---|---|", flush=True)
        for name in names:
            rss, spent = alone(arguments, name)
            print(f"| {name} | {rss:,} | {spent:.1f} |", flush=True)
        return
    print_times(shape, arguments, names)


if __name__ == "__main__":
    main()
