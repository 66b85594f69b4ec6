"""Oracles: adapters that have learned nothing change nothing, and merged weights compute what adapters beside them do."""

import pytest
import torch

from mlembed_core.config.settings import LoraParams
from mlembed_core.errors import ConfigError
from mlembed_core.model.lora import add_adapters, merge_adapters
from mlembed_core.model.network import Network
from mlembed_core.model.pack import pack

from .architectures import LAYERS, stock, texts

EXITS = [1, LAYERS]


def states(network):
    with torch.no_grad():
        return network(pack(texts()), EXITS)


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_adapters_start_as_the_base_model_and_merge_into_a_plain_one(name):
    base = Network(stock(name), rank=8)
    keys, before = base.stock_state_dict().keys(), states(base)
    add_adapters(base, LoraParams(rank=3, alpha=6.0), seed=1)
    assert torch.equal(states(base), before)

    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapted = states(base)
    assert not torch.allclose(adapted, before, rtol=0.01)
    merge_adapters(base)
    torch.testing.assert_close(states(base), adapted, rtol=1e-9, atol=1e-9)
    assert base.stock_state_dict().keys() == keys


def trained(network):
    return {name.rsplit(".", 1)[-1] if "lora_" not in name else "lora" for name, p in network.named_parameters() if p.requires_grad}


def test_only_adapters_and_the_factors_are_trained():
    dense, mel = Network(stock()), Network(stock(), rank=8)
    for network in (dense, mel):
        add_adapters(network, LoraParams(rank=2, alpha=2.0), seed=1)
    assert trained(dense) == {"lora"}
    assert trained(mel) == {"lora", "u", "v"}
    mel(pack(texts()), EXITS).sin().sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in mel.parameters())
    merge_adapters(mel)
    assert all(parameter.requires_grad for parameter in mel.parameters())


def test_targets_are_chosen_and_the_draw_is_a_function_of_the_seed():
    def adapters(seed):
        network = Network(stock())
        add_adapters(network, LoraParams(rank=2, alpha=2.0, target_modules=["q_proj"]), seed=seed)
        return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}

    first, again, other = adapters(1), adapters(1), adapters(2)
    assert len(first) == 2 * LAYERS
    assert all("q_proj" in name for name in first)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_target_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match=r"lora.target_modules=\['query'\]: Qwen3Model has no such linear layers \(there are: down_proj"):
        add_adapters(Network(stock()), LoraParams(rank=2, alpha=2.0, target_modules=["query"]), seed=1)
