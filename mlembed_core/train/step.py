"""One training step's forward half: rows of the global batch to the loss of this process's share.

A step is planned (which texts this process encodes), encoded, and judged; the three are apart so that the encoding can go chunk by
chunk (``train/grad_cache.py``). Everything random here is drawn from (seed, step), so that all processes and every resumed run see
the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn

from mlembed_core.config.axes import Axes
from mlembed_core.config.settings import SettingParams
from mlembed_core.config.train import Objective, TrainParams
from mlembed_core.data.sampler import Batch, Sampler
from mlembed_core.data.store import TrainingCache
from mlembed_core.losses import false_negatives
from mlembed_core.losses.contrastive import contrastive_loss
from mlembed_core.losses.distillation import Role, distillation_loss
from mlembed_core.model.network import Network
from mlembed_core.model.pack import Bucket, filler, pack
from mlembed_core.train.distributed import gather, largest, rank, split_rows, world_size
from mlembed_core.train.sharding import is_sharded
from mlembed_core.train.teacher_vectors import TeacherVectors

RANK_STREAM = 1  # tells the draw of a MEL rank from the sampler's draws under the same seed and step


@dataclass(frozen=True)
class StepPlan:
    """What this process does in a step.

    Attributes:
        sizes: rows of the global batch that each process takes, contiguous shares in rank order.
        start: where this process's share begins.
        negative_ids: text ids of the global batch's hard negatives (rows × k), −1 for a missing one; None without such a term.
        texts: ids of the texts to encode, each once.
        positions: where the share's queries, positives and negatives (in this order) stand among ``texts``.
        mel_rank: of the step; None where the table is dense.
    """

    batch: Batch
    objective: Objective
    sizes: list[int]
    start: int
    negative_ids: NDArray[np.int64] | None
    texts: NDArray[np.int64]
    positions: NDArray[np.int64]
    mel_rank: int | None

    @property
    def num_rows(self) -> int:
        """Of this process's share; 0 where there are more processes than rows."""
        return self.sizes[rank()]

    @property
    def num_encoded(self) -> int:
        """Rows that are encoded. A process without a row still takes part in every collective call: it encodes one and counts none."""
        return max(self.num_rows, 1)


@dataclass(frozen=True)
class LossTerms:
    """Summands of the loss, times the number of processes: averaged over processes, those of the global batch."""

    in_batch: Float[Tensor, ""]
    hard: Float[Tensor, ""]
    distillation: Float[Tensor, ""]
    self_distillation: Float[Tensor, ""]

    @property
    def total(self) -> Float[Tensor, ""]:
        return self.in_batch + self.hard + self.distillation + self.self_distillation


@dataclass(frozen=True)
class StepLoss:
    """The loss of one step, and what was worked on."""

    terms: LossTerms
    num_tokens: int


def draw_rank(axes: Axes, *, seed: int, step: int) -> int | None:
    """The MEL rank of a step, ∝ rank among the trained ranks; None where the table is dense (ML-Embed, MEL)."""
    if axes.mel_ranks is None:
        return None
    ranks = np.asarray(axes.mel_ranks)
    return int(np.random.default_rng([seed, step, RANK_STREAM]).choice(ranks, p=ranks / ranks.sum()))


def step_loss(
    network: nn.Module,
    cache: TrainingCache,
    sampler: Sampler,
    batch: Batch,
    *,
    step: int,
    seed: int,
    axes: Axes,
    params: TrainParams,
    setting: SettingParams | None = None,
    teacher: Network | TeacherVectors | None = None,
) -> StepLoss:
    """Encode this process's share of the batch and compute its loss.

    The gradient of the returned loss, averaged over processes as DistributedDataParallel does, is that of one process with the
    whole batch: shares are sums divided by the global number of rows, times the number of processes.

    Args:
        setting: where the terms differ from ``params``; None: not at all.
        teacher: of ``setting.distillation``, frozen; or what it said of all texts.
    """
    setting = setting or SettingParams()
    plan = plan_step(
        cache, sampler, batch, step=step, seed=seed, axes=axes, objective=setting.objective_of(batch.source.kind, params.objectives)
    )
    states = encode(network, plan_buckets(network, cache, plan, max_tokens=params.bucket_tokens), axes.mll_layers, plan.mel_rank)
    taught = None if teacher is None else vectors_of(teacher, cache, plan, max_tokens=params.bucket_tokens, device=states.device)
    terms = loss_terms(states, taught, cache, plan, axes=axes, params=params, setting=setting)
    return StepLoss(terms, num_tokens(cache, plan))


def plan_step(cache: TrainingCache, sampler: Sampler, batch: Batch, *, step: int, seed: int, axes: Axes, objective: Objective) -> StepPlan:
    """Which rows this process takes, and which texts it encodes for them: one that occurs several times is encoded once."""
    sizes = split_rows(len(batch.rows), world_size())
    start = sum(sizes[: rank()])
    share = slice(start, start + sizes[rank()]) if sizes[rank()] else slice(0, 1)
    query_ids, passage_ids = cache.query_ids(batch.rows[share]), cache.passage_ids(batch.rows[share])
    parts, negative_ids = [query_ids, passage_ids], None
    if objective.num_hard_negatives:
        negative_ids = sampler.negatives(step, batch, objective.num_hard_negatives)
        # Padding (−1) points at the row's own positive: already encoded, and masked in the loss.
        parts.append(np.where(negative_ids[share] < 0, passage_ids[:, None], negative_ids[share]).ravel())
    texts, positions = np.unique(np.concatenate(parts), return_inverse=True)
    return StepPlan(
        batch=batch,
        objective=objective,
        sizes=sizes,
        start=start,
        negative_ids=negative_ids,
        texts=texts,
        positions=positions,
        mel_rank=draw_rank(axes, seed=seed, step=step),
    )


def plan_buckets(network: nn.Module, cache: TrainingCache, plan: StepPlan, *, max_tokens: int | None) -> list[Bucket]:
    """The plan's texts in buckets of ``max_tokens`` at most, of the form that the network wants."""
    inner = cast("Network", getattr(network, "module", network))  # DistributedDataParallel keeps the network in `module`
    buckets = pack([cache.tokens(int(text)) for text in plan.texts], max_tokens=max_tokens, joined=inner.joins_texts)
    if is_sharded(inner):
        # Processes go through a split network equally often; the states of the texts that fill up are read by nobody.
        missing = largest(len(buckets), device=next(inner.parameters()).device) - len(buckets)
        buckets += [filler(len(plan.texts) + index, joined=inner.joins_texts) for index in range(missing)]
    return buckets


def num_tokens(cache: TrainingCache, plan: StepPlan) -> int:
    """Tokens that this process encodes in the step, without padding."""
    return int(cache.lengths(plan.texts).sum())


def encode(network: nn.Module, buckets: Sequence[Bucket], exits: Sequence[int], mel_rank: int | None) -> Float[Tensor, "exit text hidden"]:
    """States of the buckets' texts, in ascending order of the texts' numbers."""
    device = next(network.parameters()).device
    states: Tensor = network([bucket.to(device) for bucket in buckets], exits, mel_rank)
    if states.dtype in (torch.bfloat16, torch.float16):
        states = states.float()  # a softmax at temperature 0.05 needs the digits
    return states


@torch.no_grad()
def vectors_of(
    teacher: Network | TeacherVectors, cache: TrainingCache, plan: StepPlan, *, max_tokens: int | None, device: torch.device
) -> Float[Tensor, "text wide"]:
    """The teacher's own vectors of the plan's texts: last exit, full rank.

    Args:
        max_tokens: encoded at a time, where they are not known.
        device: where the student, and the teacher if it has to work, are.
    """
    if isinstance(teacher, TeacherVectors):
        return teacher.of(plan.texts, device)
    buckets = plan_buckets(teacher, cache, plan, max_tokens=max_tokens)
    states: Tensor = teacher([bucket.to(device) for bucket in buckets], [teacher.num_layers], None)
    return states[0].float() if states.dtype in (torch.bfloat16, torch.float16) else states[0]


def loss_terms(
    states: Float[Tensor, "exit text hidden"],
    taught: Float[Tensor, "text wide"] | None,
    cache: TrainingCache,
    plan: StepPlan,
    *,
    axes: Axes,
    params: TrainParams,
    setting: SettingParams,
) -> LossTerms:
    """The loss of this process's share, from the states of the plan's texts.

    Args:
        taught: the teacher's states of the same texts, where the setting has one.
    """
    rows = _rows(states, plan)
    items = targets = excluded = None
    if plan.objective.in_batch:
        items = gather(rows.positives, plan.sizes, dim=1, with_grad=params.gather_with_grad)
        targets = torch.arange(plan.start, plan.start + plan.num_rows, device=states.device)
        excluded = _excluded(cache, plan.batch.rows, targets, params, queries=rows.queries[-1], items=items[-1])
    contrastive = contrastive_loss(
        rows.queries,
        rows.positives,
        dims=axes.mrl_dims,
        temperature=params.temperature,
        num_rows=len(plan.batch.rows),
        items=items,
        targets=targets,
        excluded=excluded,
        negatives=rows.negatives,
        absent=rows.absent,
    )
    distillation = self_distillation = states.new_zeros(())
    if setting.distillation is not None and taught is not None:
        roles = _roles(rows, _rows(taught[None], plan), plan)
        distillation = setting.distillation.weight * distillation_loss(roles, num_exits=len(states))
    if setting.self_distillation is not None and len(states) > 1:
        roles = _roles(_rows(states[:-1], plan), _rows(states[-1:], plan), plan)
        self_distillation = setting.self_distillation * distillation_loss(roles, num_exits=len(states))
    scale = world_size()
    # + 0 · every query's state: a process whose share is empty still owes the others a backward pass.
    anchor = states[:, plan.positions[: plan.num_encoded]].sum() * 0
    return LossTerms(
        in_batch=contrastive.in_batch * scale + anchor,
        hard=contrastive.hard * scale,
        distillation=distillation * scale,
        self_distillation=self_distillation * scale,
    )


@dataclass(frozen=True)
class _Rows:
    """States by role, of the rows that count."""

    queries: Float[Tensor, "exit query hidden"]
    positives: Float[Tensor, "exit query hidden"]
    negatives: Float[Tensor, "exit query neg hidden"] | None
    absent: Bool[Tensor, "query neg"] | None


def _rows(states: Float[Tensor, "exit text hidden"], plan: StepPlan) -> _Rows:
    index = torch.from_numpy(plan.positions).to(states.device)
    encoded, counted = plan.num_encoded, slice(0, plan.num_rows)
    negatives = absent = None
    if plan.negative_ids is not None:
        own = plan.negative_ids[plan.start : plan.start + plan.num_rows]
        negatives = states[:, index[2 * encoded :].view(encoded, own.shape[1])][:, counted]
        absent = torch.from_numpy(own < 0).to(states.device)
    return _Rows(
        queries=states[:, index[:encoded]][:, counted],
        positives=states[:, index[encoded : 2 * encoded]][:, counted],
        negatives=negatives,
        absent=absent,
    )


def _roles(students: _Rows, teachers: _Rows, plan: StepPlan) -> list[Role]:
    count = len(plan.batch.rows)
    roles = [Role(students.queries, teachers.queries[0], count), Role(students.positives, teachers.positives[0], count)]
    if plan.negative_ids is not None and students.negatives is not None and teachers.negatives is not None:
        present = int((plan.negative_ids >= 0).sum())
        roles.append(Role(students.negatives, teachers.negatives[0], present, students.absent))
    return roles


def _excluded(
    cache: TrainingCache, rows: NDArray[np.int64], targets: Tensor, params: TrainParams, *, queries: Tensor, items: Tensor
) -> Bool[Tensor, "query item"] | None:
    """Items that are no negatives, by all the masks that the parameters ask for; None where they ask for none."""
    device = targets.device
    masks = []
    if params.mask_same_text:
        query_ids, passage_ids = (torch.from_numpy(ids).to(device) for ids in (cache.query_ids(rows), cache.passage_ids(rows)))
        masks.append(false_negatives.same_text(query_ids[targets], targets, passage_ids, query_ids))
    if params.mask_same_label:
        labels = torch.from_numpy(cache.labels(rows)).to(device)
        masks.append(false_negatives.same_label(labels[targets], targets, labels))
    if params.mask_similar_margin is not None:
        masks.append(false_negatives.similar(queries, targets, items, margin=params.mask_similar_margin))
    return torch.stack(masks).any(dim=0) if masks else None
