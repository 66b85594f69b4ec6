"""Pruning: the identity at the same size, without loss where nothing is lost, and a stock model in any case."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, Qwen3Model

from mlembed_core.config.model import PruneParams
from mlembed_core.errors import ConfigError
from mlembed_core.model.pack import pack
from mlembed_core.model.prune import activation_norms, prune
from tests.parity.architectures import LAYERS, one_by_one, stock, texts

TEXTS = texts(count=17)
ALIVE_HIDDEN, ALIVE_MLP = 24, 36  # of 32 and 48


def buckets():
    return pack(TEXTS, max_tokens=100)


def cut(model, **sizes):
    return prune(model, PruneParams(**sizes), buckets())


def test_the_same_size_is_the_identity():
    model = stock()
    same = cut(model, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in same.state_dict().items())
    assert type(same) is Qwen3Model


@torch.no_grad()
def with_dead_weights(model, seed=0):
    """Some dimensions of the residual stream and some neurons carry nothing, each layer's own."""
    generator = torch.Generator().manual_seed(seed)
    dead = torch.randperm(32, generator=generator)[ALIVE_HIDDEN:]
    model.embed_tokens.weight[:, dead] = 0
    for layer in model.layers:
        layer.self_attn.o_proj.weight[dead] = 0
        layer.mlp.down_proj.weight[dead] = 0
        layer.mlp.up_proj.weight[torch.randperm(48, generator=generator)[ALIVE_MLP:]] = 0
    model.norm.weight.mul_(torch.rand(32, generator=generator) + 0.5)
    return dead


def test_what_carries_nothing_goes_without_a_trace():
    model = stock()
    dead = with_dead_weights(model)
    small = cut(model, hidden_size=ALIVE_HIDDEN, intermediate_size=ALIVE_MLP).eval()
    alive = torch.tensor(sorted(set(range(32)) - set(dead.tolist())))
    # The norm's epsilon weighs a little otherwise.
    torch.testing.assert_close(one_by_one(small, TEXTS), one_by_one(model, TEXTS)[:, alive], rtol=1e-4, atol=1e-4)


def test_depth_keeps_the_first_layers():
    model = stock()
    shallow = cut(model, num_hidden_layers=2)
    assert len(shallow.layers) == shallow.config.num_hidden_layers == 2
    for name, value in shallow.layers[1].state_dict().items():
        assert torch.equal(value, model.layers[1].state_dict()[name])


def test_norms_are_those_of_all_tokens_and_of_no_padding():
    model = stock()
    hidden, mlps = activation_norms(model, buckets())
    seen_hidden, seen_mlp = [], []
    model.layers[0].self_attn.q_proj.register_forward_pre_hook(lambda _, inputs: seen_hidden.append(inputs[0][0]))
    model.layers[3].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen_mlp.append(inputs[0][0]))
    one_by_one(model, TEXTS)
    rms = torch.cat(seen_mlp).double().square().mean(dim=0).sqrt()
    torch.testing.assert_close(mlps[3], rms)
    assert (hidden >= torch.cat(seen_hidden).double().square().mean(dim=0).sqrt()).all()


def test_what_comes_out_is_saved_and_loaded_as_a_stock_model(tmp_path):
    small = cut(stock().float(), hidden_size=16, intermediate_size=20, num_hidden_layers=2).eval()
    small.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    np.testing.assert_allclose(one_by_one(loaded, TEXTS), one_by_one(small, TEXTS), atol=1e-6)


def test_the_recipes_sizes_come_from_the_0_6b_shape():
    """At a tenth of the width, with the proportions of hidden to MLP to depth; the shapes themselves stand in the presets."""
    model = stock(layers=28, hidden_size=96, intermediate_size=288)
    for hidden, mlp, layers in ((32, 192, 8), (60, 144, 9), (84, 240, 16)):
        small = cut(model, hidden_size=hidden, intermediate_size=mlp, num_hidden_layers=layers)
        assert small.embed_tokens.weight.shape[1] == hidden
        assert small.layers[-1].mlp.up_proj.weight.shape == (mlp, hidden)
        assert small.layers[-1].self_attn.q_proj.weight.shape == (32, hidden)
        assert len(small.layers) == layers


def test_llama_and_qwen2_are_pruned_others_refused():
    for name in ("llama", "qwen2"):
        model = stock(name)
        assert torch.equal(one_by_one(cut(model).eval(), TEXTS), one_by_one(model, TEXTS))
    for name in ("bert", "gemma", "gemma3", "modernbert"):
        with pytest.raises(ConfigError, match="prune is made for decoders of the Qwen and Llama form"):
            cut(stock(name), num_hidden_layers=1)


def test_larger_sizes_and_empty_caches_are_refused():
    with pytest.raises(ConfigError, match=r"backbone.prune.hidden_size=33 exceeds the model's 32"):
        cut(stock(), hidden_size=33)
    with pytest.raises(ConfigError, match="no texts to calibrate on"):
        prune(stock(), PruneParams(hidden_size=16), [])
