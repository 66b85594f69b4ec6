"""What the test of several processes runs in each of them: some steps' losses and gradients, saved by the main process.

The problem (cache, network, batch) is made from seeds, the same in every process.
"""

import itertools
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import Qwen3Model

from mlembed_core import lifeline
from mlembed_core.config.axes import Axes
from mlembed_core.config.data import Kind
from mlembed_core.config.settings import SettingParams
from mlembed_core.config.train import TrainParams
from mlembed_core.data.sampler import Sampler
from mlembed_core.data.store import CacheWriter, TrainingCache
from mlembed_core.model.network import Network
from mlembed_core.stages.train import check_world_size
from mlembed_core.train import loop, sharding
from mlembed_core.train.grad_cache import grad_cache_step
from mlembed_core.train.step import step_loss
from tests.tiny import tiny_qwen3

VOCAB, NUM_ROWS, NUM_NEGATIVES = 50, 40, 3
STEPS = (0, 1, 2)
BATCH_SIZES = (1, 7, 16)  # 1: a process without a row; 7: uneven shares
# What each variant changes of the parameters; all terms and masks are on in those that name none.
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without_gradient": {"gather_with_grad": False},
    "chunked": {"grad_cache_tokens": 24},
    "recomputed": {"activation_checkpointing": "full", "bucket_tokens": 24},
    "replayed": {"activation_checkpointing": "selective", "bucket_tokens": 24},
}
SETTING = SettingParams.model_validate(
    {
        "mll": "auto",
        "distillation": {"weight": 3.0, "teacher": {"type": "local", "path": "unused"}},
        "self_distillation": 2.0,
    }
)


def write_cache(folder: Path, *, held_out: int = 0) -> None:
    """Rows of random tokens; every third row repeats a passage, so that there are false negatives to mask.

    Args:
        held_out: so many rows more, for validation.
    """
    rng = np.random.default_rng(0)
    with CacheWriter(folder) as cache:
        cache.begin_source("only", kind=Kind.RETRIEVAL, num_negatives=NUM_NEGATIVES)

        def texts(count: int) -> np.ndarray:
            lengths = rng.integers(2, 9, size=count)
            return cache.add_texts(rng.integers(1, VOCAB, size=lengths.sum()).astype(np.uint32), np.concatenate([[0], np.cumsum(lengths)]))

        queries, passages, negatives = texts(NUM_ROWS), texts(NUM_ROWS), texts(NUM_ROWS * NUM_NEGATIVES)
        passages[::3] = passages[0]
        cache.add_rows(
            validation=False,
            queries=queries,
            passages=passages,
            negatives=negatives,
            num_negatives=np.full(NUM_ROWS, NUM_NEGATIVES),
            labels=[None] * NUM_ROWS,
        )
        if held_out:
            none = np.zeros(0, dtype=np.int64)
            cache.add_rows(
                validation=True,
                queries=texts(held_out),
                passages=texts(held_out),
                negatives=none,
                num_negatives=np.zeros(held_out, dtype=np.int64),
                labels=[None] * held_out,
            )
        cache.finish(tokenizer="none")


def stock(*, hidden: int, seed: int) -> Qwen3Model:
    return tiny_qwen3(seed=seed, vocab_size=VOCAB, hidden_size=hidden)


def teacher() -> Network:
    return Network(stock(hidden=24, seed=1)).double().eval().requires_grad_(requires_grad=False)


def problem(folder: Path, *, batch_size: int, **options: Any) -> tuple[Network, TrainingCache, Sampler, Axes, TrainParams]:
    cache = TrainingCache.open(folder)
    params = TrainParams.model_validate(
        {
            "batch_size": batch_size,
            "objectives": {"retrieval": {"in_batch": True, "num_hard_negatives": 2}},
            "mask_same_text": True,
            "learning_rate": 1e-3,
            "num_threads": 1,
            "precision": "fp32",
            **options,
        }
    )
    sampler = Sampler(cache.sources, batch_size=batch_size, seed=3, num_steps=len(STEPS))
    axes = Axes(mrl_dims=(8, 16), mll_layers=(1, 2), mel_ranks=(2, 4, 8))
    return Network(stock(hidden=16, seed=0), rank=8).double(), cache, sampler, axes, params


def train_and_keep(base: Path, network: Network, cache: TrainingCache, *, accelerator: Accelerator, **options: Any) -> None:
    """A whole training; the main process writes its weights and curves into ``base``.

    Args:
        options: of :func:`mlembed_core.train.loop.train`.
    """
    options = {"log": lambda *_: None, **options}
    curves = loop.train(network, cache, seed=5, accelerator=accelerator, state_folder=base / "state", **options)
    if accelerator.is_main_process:
        save_file(network.state_dict(), base / "weights.safetensors")
        (base / "curves.json").write_text(json.dumps(asdict(curves)))


def share_of(network: Network) -> float:
    """The fraction of all weights that this process holds."""
    parameters = list(network.parameters())
    held = sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
    return held / sum(p.numel() for p in parameters)


def main() -> None:
    base = Path(sys.argv[1])
    torch.set_num_threads(1)
    lifeline.hold()
    accelerator = Accelerator()
    check_world_size()
    for batch_size, (variant, options) in itertools.product(BATCH_SIZES, VARIANTS.items()):
        masks = {"mask_same_text": True, "mask_similar_margin": 0.2}
        network, cache, sampler, axes, params = problem(base / "cache", batch_size=batch_size, **masks, **options)
        network.checkpointing = params.activation_checkpointing
        model = network
        if sharding.asked_for():
            sharding.shard(network, device=accelerator.device, precision=params.precision)
        else:
            model = accelerator.prepare(network)
        (base / f"share-{accelerator.num_processes}-{accelerator.process_index}").write_text(str(share_of(network)))
        for step in STEPS:
            model.zero_grad()
            arguments: Any = {"step": step, "seed": 5, "axes": axes, "params": params, "setting": SETTING, "teacher": teacher()}
            batch = sampler.batch(step)
            if params.grad_cache_tokens is None:
                loss = step_loss(model, cache, sampler, batch, **arguments).terms.total
                accelerator.backward(loss)
            else:
                chunked = {"backward": accelerator.backward, "autocast": nullcontext}
                loss = grad_cache_step(network, cache, sampler, batch, **arguments, **chunked).terms.total
            mean = accelerator.reduce(loss.detach(), reduction="mean")
            gradients = {key: sharding.whole(value.grad).clone() for key, value in network.named_parameters()}
            if accelerator.is_main_process:
                name = f"{variant}-{accelerator.num_processes}-{batch_size}-{step}"
                save_file(gradients, base / f"{name}.safetensors")
                (base / f"{name}.loss").write_text(repr(float(mean)))


if __name__ == "__main__":
    main()
