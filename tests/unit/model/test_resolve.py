"""Backbones from parameters: what every architecture gets, and what is refused."""

import pytest
import torch
from torch import nn

from mlembed_core.config.base import parse
from mlembed_core.config.model import RandomBackbone
from mlembed_core.errors import ConfigError
from mlembed_core.model.count_init import initialise_from_counts
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import check_positions, load_folder, random_backbone

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 40}


def build(model_type, **settings):
    params = parse(RandomBackbone, {"type": "random", "config": {"model_type": model_type, **SHAPE, **settings}}, origin="test")
    return random_backbone(params, vocab_size=50, seed=1)


def dropouts(model):
    return {module.p for module in model.modules() if isinstance(module, nn.Dropout)}


@pytest.mark.parametrize("model_type", ["qwen3", "llama", "gemma3_text", "bert", "xlm-roberta", "modernbert"])
def test_a_random_backbone_of_each_architecture_trains_without_dropout(model_type):
    model = build(model_type)
    assert dropouts(model) <= {0.0}
    assert Network(model).shape.vocab == 50


def test_dropout_is_off_in_a_folder_that_asks_for_it(tmp_path):
    model = build("bert")
    model.config.hidden_dropout_prob = 0.1
    model.save_pretrained(tmp_path)
    assert dropouts(load_folder(tmp_path)) == {0.0}


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = build("bert"), build("bert")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("model_type", "limit"), [("bert", 40), ("xlm-roberta", 38)])
def test_texts_longer_than_the_learned_positions_are_refused(model_type, limit):
    model = build(model_type)
    check_positions(model, limit)
    with pytest.raises(ConfigError, match=f"tokenizer.max_length={limit + 1} exceeds the {limit} positions of the backbone"):
        check_positions(model, limit + 1)


def test_rotary_positions_have_no_such_limit():
    check_positions(build("qwen3"), 10_000)


def test_counts_start_decoders_only():
    with pytest.raises(ConfigError, match="initialisation=counts is made for decoders of the Qwen and Llama form, not for BertModel"):
        initialise_from_counts(build("bert"), [], eos_id=0, seed=1)
