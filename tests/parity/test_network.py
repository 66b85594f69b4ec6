"""Oracles: exits against truly smaller stock models, full rank against the stock table, packed against one by one."""

import copy

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3Model

from mlembed_core.model.low_rank import factorise
from mlembed_core.model.network import Network
from mlembed_core.model.pack import pack

VOCAB, HIDDEN, LAYERS = 97, 32, 4
TOLERANCE = 1e-10  # float64


def stock(layers=LAYERS, seed=0):
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        pad_token_id=None,
        initializer_range=0.3,  # large enough that attention is far from uniform
    )
    return Qwen3Model(config).double().eval()


def texts(seed=0, count=23, longest=40):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, size=length) for length in rng.integers(1, longest, size=count)]


def one_by_one(model, ids):
    with torch.no_grad():
        return torch.stack([model(torch.from_numpy(text)[None]).last_hidden_state[0, -1] for text in ids])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_an_exit_equals_a_truly_smaller_stock_model(depth):
    model, ids = stock(), texts()
    smaller = copy.deepcopy(model)
    smaller.layers = smaller.layers[:depth]
    smaller.config.num_hidden_layers = depth
    expected = one_by_one(smaller, ids)
    exits = [1, 2, 3, 4]
    with torch.no_grad():
        states = Network(model).eval()(pack(ids), exits)
    assert (states[exits.index(depth)] - expected).abs().max() < TOLERANCE


def test_full_rank_equals_the_stock_model():
    model, ids = stock(), texts()
    expected = one_by_one(model, ids)
    with torch.no_grad():
        states = Network(model, rank=HIDDEN).eval()(pack(ids), [LAYERS])
    assert (states[0] - expected).abs().max() < 1e-8


def test_the_dense_table_is_gone_under_mel():
    network = Network(stock(), rank=8)
    shapes = {tuple(parameter.shape) for parameter in network.parameters()}
    assert (VOCAB, HIDDEN) not in shapes
    assert {(VOCAB, 8), (8, HIDDEN)} <= shapes


@pytest.mark.parametrize("rank", [1, 5, 8])
def test_a_cut_rank_equals_a_stock_model_with_the_product_as_its_table(rank):
    model, ids = stock(), texts()
    reference = copy.deepcopy(model)
    network = Network(model, rank=8).eval()
    with torch.no_grad():
        reference.embed_tokens.weight.copy_(network.embedding.u[:, :rank] @ network.embedding.v[:rank])
        states = network(pack(ids), [LAYERS], rank)
    assert (states[0] - one_by_one(reference, ids)).abs().max() < TOLERANCE


def test_factors_are_the_truncated_svd():
    table = torch.randn(60, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    left, singular, right = torch.linalg.svd(table, full_matrices=False)
    for rank in (1, 7, 20):
        u, v = factorise(table, rank)
        best = left[:, :rank] * singular[:rank] @ right[:rank]
        assert (u @ v - best).abs().max() < TOLERANCE
        assert (u.norm(dim=0) - singular[:rank]).abs().max() < TOLERANCE  # the singular values are in U
        assert (v @ v.T - torch.eye(rank, dtype=torch.float64)).abs().max() < TOLERANCE


@pytest.mark.parametrize("max_tokens", [None, 1, 50, 300])
def test_packed_equals_one_by_one(max_tokens):
    model, ids = stock(), texts(seed=5, count=40)
    expected = one_by_one(model, ids)
    with torch.no_grad():
        states = Network(model).eval()(pack(ids, max_tokens=max_tokens), [LAYERS])
    assert (states[0] - expected).abs().max() < TOLERANCE


def test_a_neighbour_does_not_leak():
    network, ids = Network(stock()).eval(), texts(count=12)
    changed = [ids[0], *[(text + 1) % VOCAB for text in ids[1:]]]
    with torch.no_grad():
        before, after = network(pack(ids), [LAYERS])[0], network(pack(changed), [LAYERS])[0]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_the_sampled_rank_gets_gradient_in_its_columns_only():
    network, ids = Network(stock(), rank=8), texts(count=4)
    network(pack(ids), [LAYERS], 3).square().sum().backward()
    gradient = network.embedding.u.grad
    assert gradient[:, :3].abs().sum() > 0
    assert gradient[:, 3:].abs().sum() == 0


@pytest.mark.parametrize("exits", [[LAYERS], [1, 2, LAYERS]])
def test_gradients_equal_those_of_the_stock_model(exits):
    """The last layer works on pooled tokens only, padding and other texts share its rectangle: no gradient may notice."""
    ids = texts(count=9)
    model = stock()
    loss = 0
    for text in ids:
        hidden = model(torch.from_numpy(text)[None], output_hidden_states=True).hidden_states
        states = [hidden[depth][0, -1] if depth == LAYERS else model.norm(hidden[depth][0, -1]) for depth in exits]
        loss = loss + sum(state.sin().sum() for state in states)
    loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}

    network = Network(stock())
    network(pack(ids), exits).sin().sum().backward()
    found = {name.removeprefix("backbone.").replace("embedding.", "embed_tokens."): p.grad for name, p in network.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # float32 inside the stock norms and rotary embedding, whatever the weights are
        assert ((found[name] - gradient).norm() / gradient.norm()).item() < 1e-5, name
