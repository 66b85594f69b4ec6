"""The ways of a training step that ``benchmarks/train_step.py`` compares: ours, the reference's way, sentence-transformers.

Each takes the same texts and does the same work: forward, loss and backward over all exits and dims. The optimizer is left out, being
the same for all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from benchmarks.reference_way import ReferenceWay, reference_loss
from mlembed_core.artifacts import write_json
from mlembed_core.config.axes import MIN_MRL_DIM, MLL_EXITS, powers_of_two
from mlembed_core.config.base import Precision
from mlembed_core.config.train import Checkpointing
from mlembed_core.losses.contrastive import ContrastiveTerms, contrastive_loss
from mlembed_core.model.attention import choose_attention
from mlembed_core.model.network import Network
from mlembed_core.model.pack import pack
from mlembed_core.train.grad_cache import backward_in_chunks, chunks_of

VOCAB = 151_936  # of Qwen3
NEGATIVES = 7
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
    bucket_tokens: int  # of ours
    chunk_tokens: int  # of ours with GradCache
    rows: int = 8

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
    "tiny": Shape(64, 2, 4, 2, 16, 128, 16, 256, 256),  # to try this script
    "small": Shape(256, 4, 4, 2, 64, 768, 128, 2048, 2048),
    "large": Shape(1024, 8, 16, 8, 128, 3072, 512, 1024, 1024),
    "qwen3-0.6b": Shape(1024, 28, 16, 8, 128, 3072, 512, 16384, 32768, rows=32),  # for a GPU
}


def make_texts(shape: Shape, lengths: str, *, seed: int) -> Texts:
    """Queries, positives, and each row's negatives; random tokens, since their values cost nothing."""
    rng = np.random.default_rng(seed)
    count = shape.rows * (2 + NEGATIVES)
    if lengths == "uniform":
        sizes = np.full(count, MEAN_LENGTH)
    else:
        spread = 0.83  # padded to the longest, a batch is then 4.8 times its tokens in the median, as measured on web text
        sizes = np.exp(rng.normal(np.log(MEAN_LENGTH) - spread**2 / 2, spread, size=count)).round().clip(4, MAX_LENGTH).astype(int)
    return [rng.integers(0, VOCAB, size=size) for size in sizes]


Step = Callable[[Texts], Tensor]
CPU = torch.device("cpu")


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision is Precision.BF16)


def reference(shape: Shape, precision: Precision, device: torch.device = CPU) -> tuple[nn.Module, Step]:
    """The reference's way."""
    model = ReferenceWay(shape.backbone(), rank=shape.rank).to(device)
    model.backbone.get_input_embeddings().requires_grad_(requires_grad=False)  # it gets no gradient there

    def step(texts: Texts) -> Tensor:
        with _autocast(device, precision):
            states = model(texts, shape.exits)
        loss = reference_loss(states, num_rows=shape.rows, dims=shape.dims, temperature=TEMPERATURE)
        loss.backward()
        return loss.detach()

    return model, step


def ours(
    shape: Shape,
    precision: Precision,
    device: torch.device = CPU,
    *,
    dense: bool = False,
    checkpointing: Checkpointing = Checkpointing.NONE,
) -> tuple[nn.Module, Step]:
    """A step of this project."""
    network = Network(shape.backbone(), rank=None if dense else shape.rank).to(device).train()
    network.checkpointing = checkpointing
    choose_attention(network.backbone, device=device, precision=precision)

    def step(texts: Texts) -> Tensor:
        buckets = pack(texts, max_tokens=shape.bucket_tokens, joined=network.joins_texts)
        with _autocast(device, precision):
            states = network([bucket.to(device) for bucket in buckets], shape.exits)
        loss = _our_terms(states.float(), shape).total
        loss.backward()
        return loss.detach()

    return network, step


def ours_in_chunks(shape: Shape, precision: Precision, device: torch.device = CPU) -> tuple[nn.Module, Step]:
    """A step of this project with GradCache, a chunk being as large as a bucket."""
    network = cast("Network", ours(shape, precision, device)[0])

    def step(texts: Texts) -> Tensor:
        buckets = pack(texts, max_tokens=shape.bucket_tokens, joined=network.joins_texts)
        terms: Any = backward_in_chunks(
            network,
            chunks_of(buckets, shape.chunk_tokens),
            lambda states: _our_terms(states, shape),
            exits=shape.exits,
            mel_rank=None,
            backward=Tensor.backward,
            autocast=lambda: _autocast(device, precision),
        )
        return terms.total.detach()

    return network, step


def _our_terms(states: Tensor, shape: Shape) -> ContrastiveTerms:
    rows = shape.rows
    queries, positives, negatives = states.split([rows, rows, rows * NEGATIVES], dim=1)
    return contrastive_loss(
        queries,
        positives,
        dims=shape.dims,
        temperature=TEMPERATURE,
        num_rows=rows,
        items=positives,
        targets=torch.arange(rows, device=states.device),
        negatives=negatives.unflatten(1, (rows, NEGATIVES)),
    )


def sentence_transformers(shape: Shape, precision: Precision, device: torch.device = CPU, *, cached: bool) -> tuple[nn.Module, Step]:
    """Matryoshka2dLoss with as many layers per step as we have exits; cached: CachedMNRL under MatryoshkaLoss, last layer only."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        Matryoshka2dLoss,
        MatryoshkaLoss,
        MultipleNegativesRankingLoss,
    )

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shape.backbone().save_pretrained(folder)  # type: ignore[operator]  # transformers is not typed
        _write_words(folder)
        write_json(folder / "modules.json", [_module(0, "", "Transformer"), _module(1, "1_Pooling", "Pooling")])
        (folder / "1_Pooling").mkdir()
        write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": shape.hidden, "pooling_mode_lasttoken": True})
        model = SentenceTransformer(name, device=str(device))
    model.train()
    dims = list(shape.dims)
    loss_function: nn.Module
    if cached:
        loss_function = MatryoshkaLoss(model, CachedMultipleNegativesRankingLoss(model, mini_batch_size=shape.rows), dims)
    else:
        loss_function = Matryoshka2dLoss(
            model, MultipleNegativesRankingLoss(model), dims, n_layers_per_step=len(shape.exits) - 1, n_dims_per_step=-1
        )

    def step(texts: Texts) -> Tensor:
        rows = shape.rows
        columns = [texts[:rows], texts[rows : 2 * rows], *(texts[2 * rows + index :: NEGATIVES] for index in range(NEGATIVES))]
        with _autocast(device, precision):
            loss: Tensor = loss_function([_padded(column, device) for column in columns], None)
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


def _padded(texts: Texts, device: torch.device) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([torch.from_numpy(text) for text in texts], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(text), dtype=torch.long) for text in texts], batch_first=True)
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device)}


FP32, BF16 = Precision.FP32, Precision.BF16
SELECTIVE, FULL = Checkpointing.SELECTIVE, Checkpointing.FULL
VARIANTS: dict[str, Callable[[Shape, torch.device], tuple[nn.Module, Step]]] = {
    "reference's way, fp32": lambda shape, device: reference(shape, FP32, device),
    "reference's way, bf16": lambda shape, device: reference(shape, BF16, device),
    "ours, fp32": lambda shape, device: ours(shape, FP32, device),
    "ours, bf16": lambda shape, device: ours(shape, BF16, device),
    "ours, fp32, selective": lambda shape, device: ours(shape, FP32, device, checkpointing=SELECTIVE),
    "ours, bf16, selective": lambda shape, device: ours(shape, BF16, device, checkpointing=SELECTIVE),
    "ours, fp32, full": lambda shape, device: ours(shape, FP32, device, checkpointing=FULL),
    "ours, fp32, GradCache": lambda shape, device: ours_in_chunks(shape, FP32, device),
    "ours, bf16, GradCache": lambda shape, device: ours_in_chunks(shape, BF16, device),
    "ours, fp32, dense table": lambda shape, device: ours(shape, FP32, device, dense=True),
    "sentence-transformers, Matryoshka2d": lambda shape, device: sentence_transformers(shape, FP32, device, cached=False),
    "sentence-transformers, Matryoshka, cached": lambda shape, device: sentence_transformers(shape, FP32, device, cached=True),
}
