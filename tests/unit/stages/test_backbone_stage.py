"""The backbone stage on a small cache: pruned with its texts, and again from what it wrote."""

from __future__ import annotations

import pytest

from mlembed_core.artifacts import manifest_hash, read_json, read_manifest
from mlembed_core.errors import ConfigError
from mlembed_core.stages import backbone as stage
from mlembed_core.stages import cache as cache_stage
from tests.mini_hub import only_hub

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "head_dim": 16}
CONFIG = {"model_type": "qwen3", "num_key_value_heads": 2, **SHAPE}


@pytest.fixture
def cached(text_workspace, rows):
    text_workspace.add_source("only", rows)
    text_workspace.set("cache", {})
    text_workspace.set("seed", 1)
    text_workspace.tokenize()
    cache_stage.run(text_workspace.workspace)
    return text_workspace


def make(cached, **backbone):
    cached.set("backbone", backbone)
    stage.run(cached.workspace)
    return read_json(cached.workspace.backbone / "mlembed.json")["shape"]


def test_a_backbone_is_pruned_on_the_caches_texts(cached):
    prune = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_texts": 64}
    shape = make(cached, type="random", config=CONFIG, prune=prune)
    assert (shape["layers"], shape["dim"]) == (2, 16)
    assert read_json(cached.workspace.backbone / "config.json")["intermediate_size"] == 20
    manifest = read_manifest(cached.workspace.backbone)
    assert manifest["inputs"]["cache"] == manifest_hash(cached.workspace.cache)
    first = manifest_hash(cached.workspace.backbone)
    make(cached, type="random", config=CONFIG, prune=prune)
    assert manifest_hash(cached.workspace.backbone) == first


def test_a_folder_is_pruned_further(cached):
    make(cached, type="random", config=CONFIG)
    cached.workspace.backbone.rename(cached.workspace.root / "larger")
    assert make(cached, type="local", path="larger", prune={"num_hidden_layers": 1})["layers"] == 1
    with pytest.raises(ConfigError, match=r"backbone.prune.num_hidden_layers=4 exceeds the model's 3"):
        make(cached, type="local", path="larger", prune={"num_hidden_layers": 4})
    assert read_json(cached.workspace.backbone / "mlembed.json")["shape"]["layers"] == 1  # what was there before is untouched


def test_a_backbone_of_the_hub_is_that_commits(cached, monkeypatch):
    make(cached, type="random", config=CONFIG)
    root = cached.workspace.root
    commit = root / "mirror" / "team" / "base" / ("1" * 40)
    commit.parent.mkdir(parents=True)
    cached.workspace.backbone.rename(commit)
    with only_hub(root, monkeypatch):
        assert make(cached, type="hub", repo="team/base", revision="1" * 40)["layers"] == 3
        with pytest.raises(ConfigError, match=rf"backbone\.repo: the hub has no commit {'2' * 40} of team/base"):
            make(cached, type="hub", repo="team/base", revision="2" * 40)
    assert (cached.workspace.backbone / "model.safetensors").read_bytes() == (commit / "model.safetensors").read_bytes()
