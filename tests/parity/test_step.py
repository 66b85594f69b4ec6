"""Oracle: a whole step, network and loss, against loops over texts, pairs, dims and exits: loss and every parameter's gradient.

The naive side is the recipe read literally: stock models that see one padded text at a time, the token table as the full product U·V,
the final norm on every exit, one cosine per pair, dim and exit. It shares no code and no memory with ours but the stock layers.
"""

import copy
import math

import numpy as np
import pytest
import torch
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from mlembed_core.config.axes import resolve_axes
from mlembed_core.config.data import Kind
from mlembed_core.config.settings import SettingParams
from mlembed_core.config.train import TrainParams
from mlembed_core.data.sampler import Sampler
from mlembed_core.data.store import CacheWriter, TrainingCache
from mlembed_core.model.network import Network
from mlembed_core.train.grad_cache import grad_cache_step
from mlembed_core.train.step import draw_rank, step_loss
from tests.parity.test_distillation import naive_mse
from tests.parity.test_losses import naive_loss
from tests.tiny import tiny_qwen3

TOLERANCE = 1e-9  # float64 rounding over some thousand terms is about 1e-13; the bound
VOCAB, HIDDEN, LAYERS, RANK = 40, 16, 2, 8
ROWS, LONGEST = 4, 7
SEED, STEP = 11, 5
TEMPERATURE = 0.05
DISTILLATION = {"weight": 0.7, "teacher": {"type": "local", "path": "unused"}}
OBJECTIVES = {
    "retrieval, in-batch": (Kind.RETRIEVAL, True, 0),
    "retrieval, hard": (Kind.RETRIEVAL, False, 2),
    "retrieval, both": (Kind.RETRIEVAL, True, 2),
    "clustering": (Kind.CLUSTERING, False, 3),
    "classification": (Kind.CLASSIFICATION, False, 1),
}


@pytest.fixture(autouse=True)
def _norms_in_float64(monkeypatch):
    """The stock norm computes in float32 whatever its input: inputs that differ by 1e-16 may round apart by 1e-7 there. In float64 on
    both sides the bound of 1e-9 speaks of our code."""

    def forward(self, hidden):
        return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(Qwen3RMSNorm, "forward", forward)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A source of each kind. Rows have 0 … 3 negatives (so that some are padding); two share a passage (a false negative)."""
    folder, rng = tmp_path_factory.mktemp("cache"), np.random.default_rng(0)
    with CacheWriter(folder) as writer:
        for kind in Kind:
            writer.begin_source(kind.value, kind=kind, num_negatives=3)

            def texts(count):
                lengths = rng.integers(1, LONGEST + 1, size=count)
                tokens = rng.integers(1, VOCAB, size=lengths.sum()).astype(np.uint32)
                return writer.add_texts(tokens, np.concatenate([[0], np.cumsum(lengths)]))

            counts = np.array([3, 1, 2, 3])
            passages = texts(ROWS)
            passages[3] = passages[1]
            writer.add_rows(
                validation=False,
                queries=texts(ROWS),
                passages=passages,
                negatives=texts(counts.sum()),
                num_negatives=counts,
                labels=["a", "b", "a", "c"] if kind is Kind.CLUSTERING else [None] * ROWS,
            )
        writer.finish(tokenizer="none")
    return TrainingCache.open(folder)


def stock(*, hidden, layers, seed):
    shape = {"hidden_size": hidden, "intermediate_size": hidden, "num_hidden_layers": layers, "num_key_value_heads": 1}
    return tiny_qwen3(seed=seed, vocab_size=VOCAB, **shape).double()


def make_params(kind, in_batch, hard, **options):
    return TrainParams.model_validate(
        {
            "batch_size": ROWS,
            "objectives": {kind.value: {"in_batch": in_batch, "num_hard_negatives": hard}},
            "temperature": TEMPERATURE,
            "mask_same_text": True,
            "learning_rate": 1e-3,
            "num_threads": 1,
            "precision": "fp32",
            **options,
        }
    )


def make_setting(*, mrl, mll, mel, distillation=False, **options):
    ranks = {"off": None, "static": {"rank": RANK}, "sampled": {"rank": RANK, "min_rank": 2, "sampled": True}}
    return SettingParams.model_validate(
        {
            "mrl": [4, 8] if mrl else None,
            "mll": [1] if mll else None,
            "mel": ranks[mel],
            "distillation": DISTILLATION if distillation else None,
            **options,
        }
    )


def batch_of(cache, kind):
    """The whole of a source as one batch."""
    sampler = Sampler(cache.sources, batch_size=ROWS, weights={kind.value: 1.0}, seed=SEED, num_steps=STEP + 1)
    return sampler, sampler.batch(STEP)


class Naive:
    """One padded text at a time through a stock model whose table is the full product of its factors."""

    def __init__(self, model, network=None):
        self.model = copy.deepcopy(model)
        self.parameters = dict(self.model.named_parameters())
        table = self.parameters.pop("embed_tokens.weight")
        self.factors = {"weight": table}
        if network is not None and hasattr(network.embedding, "u"):
            self.factors = {name: getattr(network.embedding, name).detach().clone().requires_grad_() for name in ("u", "v")}

    def states(self, ids, exits, rank):
        table = self.factors["weight"] if "weight" in self.factors else self.factors["u"][:, :rank] @ self.factors["v"][:rank]
        padded = torch.from_numpy(np.pad(ids.astype(np.int64), (0, LONGEST + 2 - len(ids))))
        hidden = self.model(inputs_embeds=table[padded][None], output_hidden_states=True).hidden_states
        deepest = len(hidden) - 1
        # The last of the stock model's hidden states is normed already.
        return [hidden[depth][0, len(ids) - 1] if depth == deepest else self.model.norm(hidden[depth][0, len(ids) - 1]) for depth in exits]

    def gradients(self):
        named = {("" if name == "norm.weight" else "backbone.") + name: value.grad for name, value in self.parameters.items()}
        return named | {f"embedding.{name}": value.grad for name, value in self.factors.items()}


def naive_step(cache, batch, sampler, naive, teacher, *, axes, params, setting):
    objective = params.objectives[batch.source.kind]
    rank = draw_rank(axes, seed=SEED, step=STEP)

    def encode(model, text_ids, exits, rank):
        return torch.stack([torch.stack(model.states(cache.tokens(int(text)), exits, rank)) for text in text_ids], dim=1)

    query_ids, passage_ids = cache.query_ids(batch.rows), cache.passage_ids(batch.rows)
    roles = [encode(naive, ids, axes.mll_layers, rank) for ids in (query_ids, passage_ids)]
    taught = [encode(teacher, ids, [teacher.model.config.num_hidden_layers], None)[0] for ids in (query_ids, passage_ids)]
    negatives = absent = None
    if objective.num_hard_negatives:
        ids = sampler.negatives(STEP, batch, objective.num_hard_negatives)
        absent = ids < 0
        ids = np.where(absent, query_ids[:, None], ids)  # what stands in a missing place must not matter: not what ours puts there
        negatives = encode(naive, ids.ravel(), axes.mll_layers, rank)
        roles.append(negatives)
        taught.append(encode(teacher, ids.ravel(), [teacher.model.config.num_hidden_layers], None)[0])
        negatives = negatives.unflatten(1, ids.shape)
    same = [
        [
            passage_ids[other] == passage_ids[row] or passage_ids[other] == query_ids[row] or query_ids[other] == query_ids[row]
            for other in range(ROWS)
        ]
        for row in range(ROWS)
    ]
    total = naive_loss(
        *(roles[:2]), negatives, dims=axes.mrl_dims, temperature=TEMPERATURE, in_batch=objective.in_batch, excluded=same, absent=absent
    )
    missing = [None, None, None if absent is None else absent.ravel()]
    exits = range(len(axes.mll_layers))
    for role, (students, teachers) in enumerate(zip(roles, taught, strict=True)):
        for exit_index in exits:
            if setting.distillation is not None:
                total = total + DISTILLATION["weight"] * naive_mse(students[exit_index], teachers.detach(), missing[role]) / len(exits)
            if setting.self_distillation is not None and exit_index != exits[-1]:
                follow = naive_mse(students[exit_index], students[-1].detach(), missing[role])
                total = total + setting.self_distillation * follow / len(exits)
    return total


def assert_step_equals_the_naive_one(cache, objective, setting, *, chunked=None):
    kind, in_batch, hard = OBJECTIVES[objective]
    params = make_params(kind, in_batch, hard, **({} if chunked is None else {"grad_cache_tokens": chunked}))
    sampler, batch = batch_of(cache, kind)
    axes = resolve_axes("x", setting, hidden=HIDDEN, layers=LAYERS)
    model, teacher_model = stock(hidden=HIDDEN, layers=LAYERS, seed=1), stock(hidden=24, layers=3, seed=2)
    naive_teacher, naive_model = Naive(teacher_model), copy.deepcopy(model)
    network = Network(model, rank=None if setting.mel is None else setting.mel.rank)
    naive = Naive(naive_model, network)
    teacher = Network(teacher_model).eval().requires_grad_(requires_grad=False) if setting.distillation is not None else None
    arguments = {"step": STEP, "seed": SEED, "axes": axes, "params": params, "setting": setting, "teacher": teacher}

    if chunked is None:
        ours = step_loss(network, cache, sampler, batch, **arguments).terms.total
        ours.backward()
    else:
        ours = grad_cache_step(
            network, cache, sampler, batch, **arguments, backward=torch.Tensor.backward, autocast=lambda: torch.enable_grad()
        ).terms.total
    expected = naive_step(cache, batch, sampler, naive, naive_teacher, axes=axes, params=params, setting=setting)
    expected.backward()

    assert ours.item() == pytest.approx(expected.item(), rel=TOLERANCE)
    gradients = naive.gradients()
    named = dict(network.named_parameters())
    assert named.keys() == gradients.keys()
    # Deviations are measured against the whole gradient: the key bias of a norm has a gradient of rounding noise only.
    scale = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values() if gradient is not None))
    for name, parameter in named.items():
        assert parameter.grad is not None, name
        assert gradients[name] is not None, name
        assert float((parameter.grad - gradients[name]).norm()) <= TOLERANCE * max(float(gradients[name].norm()), 1e-6 * scale), name


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("mrl", "mll"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("mel", ["off", "static", "sampled"])
@pytest.mark.parametrize("distillation", [False, True])
def test_loss_and_every_gradient_equal_the_naive_step(cache, objective, mrl, mll, mel, distillation):
    assert_step_equals_the_naive_one(cache, objective, make_setting(mrl=mrl, mll=mll, mel=mel, distillation=distillation))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_self_distillation_too(cache, objective):
    setting = make_setting(mrl=True, mll=True, mel="sampled", distillation=True, self_distillation=0.3)
    assert_step_equals_the_naive_one(cache, objective, setting)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("tokens", [1, 20, 10_000])
def test_in_chunks_too(cache, objective, tokens):
    """1: a chunk per text; 20: some chunks; 10,000: one."""
    setting = make_setting(mrl=True, mll=True, mel="sampled", distillation=True, self_distillation=0.3)
    assert_step_equals_the_naive_one(cache, objective, setting, chunked=tokens)


def test_the_sampled_rank_of_this_step_is_a_cut_one():
    """Otherwise the oracle would say nothing about cut ranks."""
    axes = resolve_axes("x", make_setting(mrl=False, mll=False, mel="sampled"), hidden=HIDDEN, layers=LAYERS)
    assert axes.mel_ranks == (2, 4, 8)
    assert draw_rank(axes, seed=SEED, step=STEP) == 4
