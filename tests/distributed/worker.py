"""What the test of several processes runs in each of them: one step's loss and gradients, saved by the main process.

The problem (cache, network, batch) is made from seeds, the same in every process.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3Model

from mlembed_core.config.axes import Axes
from mlembed_core.config.data import Kind
from mlembed_core.config.train import TrainParams
from mlembed_core.data.sampler import Sampler
from mlembed_core.data.store import CacheWriter, TrainingCache
from mlembed_core.model.network import Network
from mlembed_core.stages.train import check_world_size
from mlembed_core.train.step import step_loss

VOCAB, NUM_ROWS, NUM_NEGATIVES = 50, 40, 3
STEPS = (0, 1, 2)


def write_cache(folder: Path) -> None:
    """Rows of random tokens; every third row repeats a passage, so that there are false negatives to mask."""
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
        cache.finish(tokenizer="none")


def problem(folder: Path, *, batch_size: int) -> tuple[Network, TrainingCache, Sampler, Axes, TrainParams]:
    cache = TrainingCache.open(folder)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=32,
        pad_token_id=None,
        initializer_range=0.3,
    )
    params = TrainParams.model_validate(
        {
            "batch_size": batch_size,
            "objectives": {"retrieval": {"in_batch": True, "num_hard_negatives": 2}},
            "mask_same_text": True,
            "learning_rate": 1e-3,
            "num_threads": 1,
            "precision": "fp32",
        }
    )
    sampler = Sampler(cache.sources, batch_size=batch_size, seed=3, num_steps=len(STEPS))
    axes = Axes(mrl_dims=(8, 16), mll_layers=(1, 2), mel_ranks=(2, 4, 8))
    return Network(Qwen3Model(config), rank=8).double(), cache, sampler, axes, params


def main() -> None:
    base = Path(sys.argv[1])
    torch.set_num_threads(1)
    accelerator = Accelerator()
    check_world_size()
    for batch_size in (1, 7, 16):  # 1: a process without a row; 7: uneven shares
        network, cache, sampler, axes, params = problem(base / "cache", batch_size=batch_size)
        model = accelerator.prepare(network)
        for step in STEPS:
            model.zero_grad()
            loss = step_loss(model, cache, sampler, sampler.batch(step), step=step, seed=5, axes=axes, params=params).terms.total
            accelerator.backward(loss)
            if accelerator.is_main_process:
                gradients = {name: parameter.grad.clone() for name, parameter in network.named_parameters()}
                save_file(gradients, base / f"gradients-{accelerator.num_processes}-{batch_size}-{step}.safetensors")
            mean = accelerator.reduce(loss.detach(), reduction="mean")
            if accelerator.is_main_process:
                (base / f"loss-{accelerator.num_processes}-{batch_size}-{step}").write_text(repr(float(mean)))


if __name__ == "__main__":
    main()
