"""The size presets: shapes of the recipe's table, and what they are said to take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mlembed_core.budget import MEAN_TOKENS, QWEN3_VOCABULARY, SPLIT_OVER, Cluster, count_parameters, durations, estimate
from mlembed_core.config.axes import resolve_axes
from mlembed_core.config.data import LocalOrigin
from mlembed_core.config.model import LocalBackbone
from mlembed_core.config.presets import read
from mlembed_core.errors import ConfigError
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import random_backbone

ROOT = Path(__file__).parents[2]
PRESETS = ROOT / "configs" / "presets"
HEAD_DIM, KEY_VALUE_HEADS = 128, 8
# The recipe's table (hidden, MLP, layers), the heads of Qwen3 at that size, learning rate and epochs.
TABLE = {
    "80m": (320, 2048, 8, 16, 4e-5, 4),
    "160m": (640, 1536, 9, 16, 3e-5, 3),
    "330m": (896, 2560, 16, 16, 2e-5, 3),
    "0.6b": (1024, 3072, 28, 16, 1e-5, 2),
    "1.7b": (2048, 6144, 28, 16, 9e-6, 2),
    "4b": (2560, 9728, 36, 32, 7e-6, 2),
    "8b": (4096, 12288, 36, 32, 6e-6, 2),
    "14b": (5120, 17408, 40, 40, 5e-6, 2),
}
# Millions, as the sizes are called. 330M, 1.7B and 8B are rounded names (the last one counts a language model's head).
NAMED = {"80m": 80, "160m": 160, "0.6b": 600, "4b": 4000, "14b": 14000}


@pytest.mark.parametrize("size", TABLE)
def test_a_size_preset_has_the_recipes_shape(size):
    hidden, mlp, layers, heads, learning_rate, epochs = TABLE[size]
    params = read(PRESETS, f"ml-embed-{size}")
    count = count_parameters(params, root=ROOT)
    attention = hidden * HEAD_DIM * (2 * heads + 2 * KEY_VALUE_HEADS)
    expected = QWEN3_VOCABULARY * hidden + layers * (attention + 3 * hidden * mlp)
    assert count.total == pytest.approx(expected, rel=0.01)
    if size in NAMED:
        assert count.total / 1e6 == pytest.approx(NAMED[size], rel=0.01)
    assert (params.train.learning_rate, params.train.num_epochs) == (learning_rate, epochs)
    axes = resolve_axes("3d", params.settings["3d"], hidden=hidden, layers=layers)
    assert axes.mel_ranks[0] == 64
    assert (axes.mrl_dims[0], axes.mrl_dims[-1], axes.mll_layers[-1]) == (8, hidden, layers)


def test_the_networks_of_a_budget_are_those_that_are_trained():
    params = read(PRESETS, "tiny")
    budget = estimate(params, root=ROOT, rows=1000)
    vocabulary = params.tokenizer.vocab_size
    network = Network(random_backbone(params.backbone, vocab_size=vocabulary, seed=0), rank=params.settings["3d"].mel.rank)
    trained = sum(parameter.numel() for parameter in network.parameters())
    assert budget.gpu["3d"]["weights, gradients and moments"] == 16 * trained
    assert 2 * trained < budget.gpu_split["3d"]["weights, gradients and moments"] < 10 * trained  # the table is most of this model
    assert budget.disk["train@3d, resume states"] == params.train.kept_checkpoints * 12 * trained
    stock = sum(value.numel() for value in network.stock_state_dict().values())
    assert budget.disk["backbone"] == 4 * stock


def test_counting_takes_no_memory():
    before = torch.get_default_dtype(), torch.tensor(0).device
    assert count_parameters(read(PRESETS, "ml-embed-14b"), root=ROOT).total > 13e9  # 56 GB that nobody has here
    assert (torch.get_default_dtype(), torch.tensor(0).device) == before


def test_stage_one_has_the_seven_collections_and_no_instructions():
    params = read(PRESETS, "stage1")
    assert len(params.sources) == 7
    assert {source.kind.value for source in params.sources.values()} == {"retrieval"}
    assert {source.instruction for source in params.sources.values()} == {None}


def test_small_ones_are_pruned_to_their_size_and_taught_by_stage_two():
    one, two = read(PRESETS, "stage1"), read(PRESETS, "stage2")
    assert (two.backbone.name, two.backbone.version, two.backbone.prune) == (one.name, 1, None)
    assert set(one.sources) < set(two.sources)
    assert two.tokenizer == one.tokenizer  # what a teacher and a backbone have to share
    for size in ("80m", "160m", "330m"):
        small, shaped = read(PRESETS, f"stage2-{size}"), read(PRESETS, f"ml-embed-{size}")
        assert (small.backbone.name, small.backbone.version) == (one.name, 1)
        pruned = small.backbone.prune.model_dump(exclude={"num_texts"})
        assert pruned == {key: shaped.backbone.config[key] for key in pruned}
        assert all(pruned[key] <= one.backbone.config[key] for key in pruned)
        distillation = small.settings["3d"].distillation
        assert (distillation.teacher.name, distillation.teacher.version) == (two.name, 1)
        assert distillation.weight == pytest.approx(pruned["hidden_size"] / 10, rel=0.01)
        assert small.train == shaped.train
        assert set(small.sources) == set(two.sources)
        assert small.tokenizer == one.tokenizer


def test_a_shape_that_stands_elsewhere_is_refused():
    params = read(PRESETS, "tiny")
    local = params.model_copy(update={"backbone": LocalBackbone(type="local", path="x")})
    with pytest.raises(ConfigError, match=r"backbone.type=local: its shape stands in its own files"):
        estimate(local, root=ROOT)


def test_a_tokenizer_that_is_there_is_asked(tmp_path):
    (tmp_path / "downloads" / "tokenizer").mkdir(parents=True)
    vocabulary = {"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"content": "<eos>"}, {"content": "a"}]}
    (tmp_path / "downloads" / "tokenizer" / "tokenizer.json").write_text(json.dumps(vocabulary))
    (tmp_path / "downloads" / "retrieval").mkdir()
    (tmp_path / "downloads" / "retrieval" / "x.parquet").write_bytes(b"12345")
    budget = estimate(read(PRESETS, "ml-embed-80m"), root=tmp_path)
    assert budget.parameters.table == 3 * 320
    assert budget.disk["source"] == 5


def test_files_beside_the_workspace_are_counted(tmp_path):
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "x.parquet").write_bytes(b"123")
    params = read(PRESETS, "tiny")
    (name, source), *_ = params.sources.items()
    origin = LocalOrigin(type="local", files=[f"{tmp_path}/pairs/*.parquet"])
    outside = params.model_copy(update={"sources": {name: source.model_copy(update={"origin": origin})}})
    assert estimate(outside, root=ROOT).disk["source"] == 3


def test_time_on_a_cluster_is_counted_by_hand():
    params = read(PRESETS, "tiny")
    count, rank, hidden = count_parameters(params, root=ROOT), params.settings["3d"].mel.rank, params.backbone.shape["hidden_size"]
    texts = 2 + max(objective.num_hard_negatives for objective in params.train.objectives.values())
    tokens = params.train.batch_size * texts * MEAN_TOKENS
    one = durations(params, Cluster(1, tflops=1e-3, gbits=8), root=ROOT)["3d"]
    assert one.steps == params.train.num_steps
    assert one.flops == 6 * (count.layers + rank * hidden) * tokens  # nothing is computed again
    assert one.compute == pytest.approx(one.flops / (SPLIT_OVER * 1e9))
    assert (one.network, one.network_split) == (0, 0)  # a single machine sends nothing
    four = durations(params, Cluster(4, tflops=1e-3, gbits=8), root=ROOT)["3d"]
    assert four.compute == pytest.approx(one.compute / 4)
    network = Network(random_backbone(params.backbone, vocab_size=params.tokenizer.vocab_size, seed=0), rank=rank)
    trained = sum(parameter.numel() for parameter in network.parameters())
    assert four.network == pytest.approx(2 * 4 * trained * (3 / 4) / 1e9)  # a ring moves three quarters, twice; 8 Gbit/s are 1e9 bytes
    best, worst = four.hours_split
    assert best <= worst == pytest.approx(four.steps * (four.compute + four.network_split) / 3600)


def test_what_is_computed_again_costs_another_forward_pass():
    full = durations(read(PRESETS, "ml-embed-8b"), Cluster(16), root=ROOT)["3d"]
    count = count_parameters(read(PRESETS, "ml-embed-8b"), root=ROOT)
    tokens = full.tokens_per_gpu * 16 * SPLIT_OVER
    assert full.flops / tokens == pytest.approx(8 * count.layers, rel=0.01)  # checkpointing full; one chunk a GPU
    one = durations(read(PRESETS, "ml-embed-8b"), Cluster(1), root=ROOT)["3d"]
    assert one.flops / full.flops == pytest.approx(10 / 8, rel=0.01)  # more tokens a GPU than a chunk of GradCache has
