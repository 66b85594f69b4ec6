"""Oracles: exits against truly smaller stock models, full rank against the stock table, packed against one by one."""

import pytest
import torch
from torch import nn

from mlembed_core.config.model import Pooling
from mlembed_core.config.train import Checkpointing
from mlembed_core.errors import ConfigError, SubmodelError
from mlembed_core.model.low_rank import factorise
from mlembed_core.model.network import Network
from mlembed_core.model.pack import pack

from .architectures import CASES, HIDDEN, LAYERS, VOCAB, one_by_one, pool, stock, texts, truncated

TOLERANCE = 1e-10  # float64
# float32 inside the stock norms, rotary embeddings and eager softmax, whatever the weights are.
INNER_TOLERANCE = 1e-5


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request):
    return request.param


def close(found, expected, tolerance=INNER_TOLERANCE):
    # The absolute part is for gradients that are zero but for rounding: a bias of all keys shifts every score alike.
    return (found - expected).norm() < tolerance * expected.norm() + TOLERANCE


def test_an_exit_equals_a_truly_smaller_stock_model(case):
    name, pooling = case
    model, ids = stock(name), texts()
    expected = [one_by_one(truncated(model, name, depth), ids, pooling) for depth in range(1, LAYERS + 1)]
    with torch.no_grad():
        states = Network(model, pooling=pooling).eval()(pack(ids), range(1, LAYERS + 1))
    for depth, (found, smaller) in enumerate(zip(states, expected, strict=True), start=1):
        assert close(found, smaller), depth


def test_full_rank_equals_the_stock_model(case):
    name, pooling = case
    model, ids = stock(name), texts()
    expected = one_by_one(model, ids, pooling)
    with torch.no_grad():
        states = Network(model, rank=HIDDEN, pooling=pooling).eval()(pack(ids), [LAYERS])
    assert close(states[0], expected)


def test_the_dense_table_is_gone_under_mel(case):
    name, pooling = case
    network = Network(stock(name), rank=8, pooling=pooling)
    shapes = {tuple(parameter.shape) for parameter in network.parameters()}
    assert (VOCAB, HIDDEN) not in shapes
    assert {(VOCAB, 8), (8, HIDDEN)} <= shapes


@pytest.mark.parametrize("rank", [1, 5])
def test_a_cut_rank_equals_a_stock_model_with_the_product_as_its_table(case, rank):
    name, pooling = case
    model, ids = stock(name), texts()
    reference = truncated(model, name, LAYERS)
    network = Network(model, rank=8, pooling=pooling).eval()
    with torch.no_grad():
        reference.get_input_embeddings().weight.copy_(network.embedding.u[:, :rank] @ network.embedding.v[:rank])
        states = network(pack(ids), [LAYERS], rank)
    assert close(states[0], one_by_one(reference, ids, pooling))


def test_the_saved_weights_are_those_of_the_stock_model(case):
    name, pooling = case
    model = stock(name)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    found = Network(model, pooling=pooling).stock_state_dict()
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("max_tokens", [None, 1, 300])
def test_packed_equals_one_by_one(case, max_tokens):
    name, pooling = case
    model, ids = stock(name), texts(seed=5, count=40)
    expected = one_by_one(model, ids, pooling)
    with torch.no_grad():
        states = Network(model, pooling=pooling).eval()(pack(ids, max_tokens=max_tokens), [LAYERS])
    assert close(states[0], expected)


def test_a_neighbour_does_not_leak(case):
    name, pooling = case
    network, ids = Network(stock(name), pooling=pooling).eval(), texts(count=12)
    changed = [ids[0], *[(text - 1) % (VOCAB - 2) + 2 for text in ids[1:]]]
    with torch.no_grad():
        before, after = network(pack(ids), [LAYERS])[0], network(pack(changed), [LAYERS])[0]
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def expected_gradients(model, ids, exits, pooling, norm):
    loss = 0
    for text in ids:
        hidden = model(torch.from_numpy(text)[None], output_hidden_states=True).hidden_states
        for depth in exits:
            states = hidden[depth][0] if depth == LAYERS else norm(hidden[depth][0])
            loss = loss + pool(states, pooling).sin().sum()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    ("exits", "checkpointing"),
    [([LAYERS], Checkpointing.NONE), ([1, 2, LAYERS], Checkpointing.FULL), ([1, 2, LAYERS], Checkpointing.SELECTIVE)],
)
def test_gradients_equal_those_of_the_stock_model(case, exits, checkpointing):
    """The last layer works on pooled tokens only, padding and other texts share its rectangle: no gradient may notice."""
    name, pooling = case
    ids = texts(count=9)
    model = stock(name)
    norm = next((getattr(model, name) for name in ("norm", "final_norm") if hasattr(model, name)), nn.Identity())
    expected = expected_gradients(model, ids, exits, pooling, norm)

    network = Network(stock(name), pooling=pooling).train()
    network.checkpointing = checkpointing
    network(pack(ids), exits).sin().sum().backward()
    found = stock_names(network, model)
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        assert close(found[key].grad, gradient), key


def stock_names(network, model):
    """The network's trained parameters by the names that the stock model has for them."""
    moved = {
        "embedding.weight": next(f"{name}.weight" for name, module in model.named_modules() if module is model.get_input_embeddings()),
        "norm.weight": "final_norm.weight" if hasattr(model, "final_norm") else "norm.weight",
    }
    return {
        moved.get(name, name.removeprefix("backbone.")): parameter
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("policy", [Checkpointing.FULL, Checkpointing.SELECTIVE])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_checkpointing_changes_no_bit_of_the_gradients(policy, precision):
    def gradients(checkpointing):
        network = Network(stock().float(), rank=8).train()
        network.checkpointing = checkpointing
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision is torch.bfloat16):
            states = network(pack(texts(), max_tokens=200), [1, 2, LAYERS], 5)
        states.float().sin().sum().backward()
        return [parameter.grad for parameter in network.parameters()]

    for expected, found in zip(gradients(Checkpointing.NONE), gradients(policy), strict=True):
        assert torch.equal(expected, found)


@pytest.mark.parametrize(("policy", "share"), [(Checkpointing.FULL, 0.2), (Checkpointing.SELECTIVE, 0.8)])
def test_checkpointing_remembers_less(policy, share):
    def remembered(checkpointing):
        network = Network(stock(), rank=8).train()
        network.checkpointing = checkpointing
        sizes = {}

        def note(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            network(pack(texts(count=60)), [LAYERS])
        return sum(sizes.values())

    assert remembered(policy) < share * remembered(Checkpointing.NONE)


def test_factors_are_the_truncated_svd():
    table = torch.randn(60, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    left, singular, right = torch.linalg.svd(table, full_matrices=False)
    for rank in (1, 7, 20):
        u, v = factorise(table, rank)
        best = left[:, :rank] * singular[:rank] @ right[:rank]
        assert (u @ v - best).abs().max() < TOLERANCE
        assert (u.norm(dim=0) - singular[:rank]).abs().max() < TOLERANCE  # the singular values are in U
        assert (v @ v.T - torch.eye(rank, dtype=torch.float64)).abs().max() < TOLERANCE


def test_the_sampled_rank_gets_gradient_in_its_columns_only():
    network, ids = Network(stock(), rank=8), texts(count=4)
    network(pack(ids), [LAYERS], 3).square().sum().backward()
    gradient = network.embedding.u.grad
    assert gradient[:, :3].abs().sum() > 0
    assert gradient[:, 3:].abs().sum() == 0


def test_pooling_follows_the_architecture_unless_told():
    assert Network(stock("llama")).pooling is Pooling.LAST
    for name in ("bert", "modernbert", "gemma3_bidirectional"):
        assert Network(stock(name)).pooling is Pooling.MEAN
    with pytest.raises(ConfigError, match="backbone.pooling=cls reads the first token, which sees no other in a causal model"):
        Network(stock("llama"), pooling=Pooling.CLS)


def test_a_model_of_no_known_form_is_refused():
    with pytest.raises(SubmodelError, match="Linear has none of the forms whose exits are known"):
        Network(nn.Linear(2, 2))
