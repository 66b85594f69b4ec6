"""GradCache: the gradient of the whole batch with the activations of one chunk (Gao et al., arXiv 2101.06983).

1. encode chunk by chunk, keeping the pooled states alone;
2. compute the loss from all states, and its gradient with respect to them;
3. encode each chunk again, with activations, and send its part of that gradient back through it.

Step 2 sees every row at once, so in-batch terms, hard negatives, distillation and all exits and dims are those of the undivided batch:
this is exact gradient accumulation, which plain accumulation (a loss per chunk) is not where rows are each other's negatives. The
largest chunk keeps its activations from the first pass and is encoded only once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from mlembed_core.config.axes import Axes
from mlembed_core.config.settings import SettingParams
from mlembed_core.config.train import TrainParams
from mlembed_core.data.sampler import Batch, Sampler
from mlembed_core.data.store import TrainingCache
from mlembed_core.model.network import Network
from mlembed_core.model.pack import Bucket
from mlembed_core.train.distributed import average_gradients
from mlembed_core.train.sharding import is_sharded
from mlembed_core.train.step import LossTerms, StepLoss, encode, loss_terms, num_tokens, plan_buckets, plan_step, vectors_of
from mlembed_core.train.teacher_vectors import TeacherVectors


def grad_cache_step(
    network: Network,
    cache: TrainingCache,
    sampler: Sampler,
    batch: Batch,
    *,
    step: int,
    seed: int,
    axes: Axes,
    params: TrainParams,
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager[object]],
    setting: SettingParams | None = None,
    teacher: Network | TeacherVectors | None = None,
) -> StepLoss:
    """``step_loss`` and its backward pass, in chunks of ``params.grad_cache_tokens``; the gradients are averaged over processes.

    Args:
        backward: runs a backward pass from a scalar (``accelerator.backward``).
        autocast: the precision of the forward pass.
    """
    setting, max_tokens = setting or SettingParams(), params.grad_cache_tokens
    if max_tokens is None:
        raise ValueError("train.grad_cache_tokens is null: there are no chunks")
    plan = plan_step(
        cache, sampler, batch, step=step, seed=seed, axes=axes, objective=setting.objective_of(batch.source.kind, params.objectives)
    )
    bucket_tokens = min(max_tokens, params.bucket_tokens or max_tokens)
    buckets = plan_buckets(network, cache, plan, max_tokens=bucket_tokens)
    with autocast():
        device = next(network.parameters()).device
        taught = None if teacher is None else vectors_of(teacher, cache, plan, max_tokens=bucket_tokens, device=device)
    terms = backward_in_chunks(
        network,
        # Processes go through a split network equally often: each bucket, of which they have as many, is a chunk.
        sorted(([bucket] for bucket in buckets), key=_num_padded) if is_sharded(network) else chunks_of(buckets, max_tokens),
        lambda states: loss_terms(states, taught, cache, plan, axes=axes, params=params, setting=setting),
        exits=axes.mll_layers,
        mel_rank=plan.mel_rank,
        backward=backward,
        autocast=autocast,
    )
    return StepLoss(terms, num_tokens(cache, plan))


def chunks_of(buckets: Sequence[Bucket], max_tokens: int) -> list[list[Bucket]]:
    """Neighbouring buckets joined up to ``max_tokens`` (padding counts), the largest chunk last; a larger bucket is a chunk of its own."""
    chunks: list[list[Bucket]] = []
    size = 0
    for bucket in buckets:
        if not chunks or size + bucket.ids.numel() > max_tokens:
            chunks.append([])
            size = 0
        chunks[-1].append(bucket)
        size += bucket.ids.numel()
    return sorted(chunks, key=_num_padded)


def backward_in_chunks(
    network: Network,
    chunks: Sequence[Sequence[Bucket]],
    loss_of: Callable[[Float[Tensor, "exit text hidden"]], LossTerms],
    *,
    exits: Sequence[int],
    mel_rank: int | None,
    backward: Callable[[Tensor], None],
    autocast: Callable[[], AbstractContextManager[object]],
) -> LossTerms:
    """Compute the loss of the chunks' texts and add its gradient to the parameters'.

    Args:
        network: the plain module. Processes may have different numbers of chunks, so that a wrapper which averages gradients in every
            backward pass would wait for passes that never come; they are averaged once, at the end.
        chunks: of all texts, at least one, the largest last.
        loss_of: from the states of all texts.
    """
    orders = [torch.cat([bucket.order for bucket in chunk]).sort().values for chunk in chunks]
    kept = len(chunks) - 1
    states: list[Tensor] = []
    for index, chunk in enumerate(chunks):
        with autocast(), torch.set_grad_enabled(index == kept):
            states.append(encode(network, chunk, exits, mel_rank))

    joined = torch.cat([part.detach() for part in states], dim=1)
    leaf = joined[:, torch.cat(orders).argsort().to(joined.device)].requires_grad_()
    with autocast():
        terms = loss_of(leaf)
    (gradient,) = torch.autograd.grad(terms.total, leaf)

    # The kept chunk first, which frees its activations; a product with a constant has that constant as its gradient.
    backward((states[kept] * gradient[:, orders[kept].to(gradient.device)]).sum())
    del states
    for index in range(kept):
        with autocast():
            again = encode(network, chunks[index], exits, mel_rank)
        backward((again * gradient[:, orders[index].to(gradient.device)]).sum())
    if not is_sharded(network):  # whose backward passes average
        average_gradients(network)
    return terms


def _num_padded(chunk: Sequence[Bucket]) -> int:
    return sum(bucket.ids.numel() for bucket in chunk)
