"""Forward, loss and backward of one training step, side by side: ours, the reference's way, sentence-transformers.

    python -m benchmarks.train_step --shape small --lengths log_normal   # CPU seconds of a step in interleaved rounds, and peak RSS
    python -m benchmarks.train_step --shape large --lengths log_normal --fresh   # a process for each step: one model in memory at a time
    python -m benchmarks.train_step --shape qwen3-0.6b --device cuda --only "bf16"   # seconds, peak memory of the GPU, tokens/s, MFU

Every variant has a process of its own and gets the same texts in each round, so that ratios can be compared where times cannot. Ours keep
freed memory, as our trainings do, the others run with the C library's default, as each is launched (``--same-allocator``: all with ours).
One thread on CPU. It prints and never asserts.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.step_variants import BF16, FP32, SHAPES, VARIANTS, Shape, Step, Texts, make_texts, ours
from benchmarks.worker import Worker
from mlembed_core.allocator import keep_freed_memory
from mlembed_core.config.base import Precision

MIB = 2**20


@dataclass
class Measured:
    """Of one variant: a value per round.

    Attributes:
        seconds: of the CPU; of the clock where the device is a GPU.
        memory: peak in MiB: RSS of the process, building the model included, or what torch had allocated on the GPU.
    """

    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)


def start(name: str, arguments: argparse.Namespace) -> Worker:
    """The process of a variant, which takes a step for every seed."""
    options = ["--shape", arguments.shape, "--lengths", arguments.lengths, "--device", arguments.device, "--work", name]
    return Worker("benchmarks.train_step", [*options, *(["--same-allocator"] if arguments.same_allocator else [])])


def work(shape: Shape, arguments: argparse.Namespace) -> None:
    """What a worker does: a step for each seed on stdin."""
    if arguments.work.startswith("ours") or arguments.same_allocator:
        keep_freed_memory()
    device = torch.device(arguments.device)
    model, step = VARIANTS[arguments.work](shape, device)
    # What happens once (kernels chosen, modules imported) happens here, on the first tokens of each text.
    _timed(model, step, [text[:8] for text in make_texts(shape, arguments.lengths, seed=0)], device)
    for line in sys.stdin:
        seconds, loss = _timed(model, step, make_texts(shape, arguments.lengths, seed=int(line)), device)
        print(json.dumps({"seconds": seconds, "loss": loss, "memory": _peak_memory(device)}), flush=True)


def _timed(model: nn.Module, step: Step, texts: Texts, device: torch.device) -> tuple[float, float]:
    """Seconds and loss of a step."""
    gc.collect()
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    _wait_for(device)
    started = clock()
    loss = step(texts)
    _wait_for(device)
    spent = clock() - started
    model.zero_grad(set_to_none=True)
    return spent, float(loss)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // MIB


def measure(names: Sequence[str], arguments: argparse.Namespace) -> dict[str, Measured]:
    """A step of each variant in each round, in turns."""
    measured = {name: Measured() for name in names}
    with _workers(names, arguments) as workers:
        for turn in range(arguments.rounds):
            for name in names:
                worker = workers.get(name) or start(name, arguments)
                try:
                    result = worker.ask(str(turn))
                finally:
                    if name not in workers:
                        worker.close()
                measured[name].seconds.append(result["seconds"])
                measured[name].memory.append(result["memory"])
                said = f"{result['seconds']:.2f} s, {result['memory']:,} MiB, loss {result['loss']:.4f}"
                print(f"round {turn}: {name}: {said}", file=sys.stderr, flush=True)
    return measured


@contextmanager
def _workers(names: Sequence[str], arguments: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    """A process per variant for all rounds; none with ``--fresh``."""
    workers = {} if arguments.fresh else {name: start(name, arguments) for name in names}
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


def gemm_peak(precision: Precision, device: torch.device, rounds: int = 5) -> float:
    """FLOP per second of a matrix product, the best of some rounds."""
    size = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision is BF16 else torch.float32
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    best = float("inf")
    for _ in range(rounds):
        _wait_for(device)
        started = clock()
        for _ in range(4):
            left @ right
        _wait_for(device)
        best = min(best, clock() - started)
    return 4 * 2 * size**3 / best


def flops(shape: Shape, texts: Texts) -> int:
    """Of the matrix products in one step of ours, which computes none twice; attention is left out."""
    _, step = ours(shape, FP32)
    with FlopCounterMode(display=False) as counter:
        step(texts)
    return int(counter.get_total_flops())


def print_table(shape: Shape, arguments: argparse.Namespace, measured: dict[str, Measured]) -> None:
    """Ratios are taken round by round, since a round's texts are the same for all variants."""
    device = torch.device(arguments.device)
    names = list(measured)
    batches = [make_texts(shape, arguments.lengths, seed=turn) for turn in range(arguments.rounds)]
    tokens = statistics.median(sum(map(len, texts)) for texts in batches)
    per_token = flops(shape, batches[0]) / sum(map(len, batches[0]))
    peaks = {precision: gemm_peak(precision, device) for precision in Precision}
    said = ", ".join(f"{precision.value} {peak / 1e12:.3f}" for precision, peak in peaks.items())
    print(f"GEMM peak: {said} TFLOP/s; matrix products of a step: {tokens * per_token / 1e12:.3f} TFLOP\n")
    unit = "s" if device.type == "cuda" else "CPU s"
    bases = [name for name in names if name.startswith(("reference", "sentence"))] or names[:1]
    columns = [
        f"{arguments.shape}, {arguments.lengths}",
        unit,
        *(f"{base} ÷ this" for base in bases),
        "peak MiB",
        "tokens/s",
        "of GEMM peak",
    ]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name in names:
        own = measured[name]
        ratios = [_spread([a / b for a, b in zip(measured[base].seconds, own.seconds, strict=True)]) for base in bases]
        seconds = statistics.median(own.seconds)
        share = tokens * per_token / seconds / peaks[BF16 if "bf16" in name else FP32]
        print(f"| {name} | {_spread(own.seconds)} | {' | '.join(ratios)} | {max(own.memory):,} | {tokens / seconds:,.0f} | {share:.0%} |")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--lengths", choices=("log_normal", "uniform"), default="log_normal")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", metavar="WORDS", help="variants whose names contain one of these")
    parser.add_argument("--fresh", action="store_true", help="a process for each step, so that one model is in memory at a time")
    parser.add_argument("--same-allocator", action="store_true", help="all variants keep freed memory as ours do")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = SHAPES[arguments.shape]
    if arguments.work:
        work(shape, arguments)
        return
    names = [name for name in VARIANTS if not arguments.only or any(words in name for words in arguments.only)]
    print_table(shape, arguments, measure(names, arguments))


if __name__ == "__main__":
    main()
