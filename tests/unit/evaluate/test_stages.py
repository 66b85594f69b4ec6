"""The stages on a real, tiny checkpoint: the out, its purity, its faults; and vectors equal to those of a cut encoder."""

import json
import os

import numpy as np
import pandas as pd
import pytest

from mlembed_core.artifacts import Workspace, write_manifest
from mlembed_core.config.grid import Submodel
from mlembed_core.data.tokenize import EOS, PAD, save_tokenizer, train_tokenizer
from mlembed_core.errors import ArtifactError, ConfigError, DataError, SubmodelError
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.encoder import Encoder
from mlembed_core.model.network import Network
from mlembed_core.stages import control, evaluate
from tests.tiny import tiny_qwen3

PARAMS = """
evaluation:
  num_threads: 1
  batch_tokens: 128
  submodels: [{}, {layers: 1, dim: 8, rank: 4}]
suites:
  small:
    type: local
    tasks:
      Answers: {type: retrieval, source: answers, max_queries: 20}
      Names: {type: bitext_mining, source: names}
      Classes: {type: classification, source: classes}
"""


pytestmark = pytest.mark.usefixtures("environment_stays")


@pytest.fixture
def workspace(tmp_path, sources):
    workspace = Workspace(tmp_path)
    workspace.params_file.parent.mkdir()
    workspace.params_file.write_text(PARAMS)
    workspace.tokenizer.mkdir()
    tokenizer = train_tokenizer([[f"what is {n}? {n} is this thing" for n in range(200)]], vocab_size=300)
    save_tokenizer(tokenizer, workspace.tokenizer, special_tokens={"eos_token": EOS, "pad_token": PAD}, max_length=16)
    write_manifest(workspace.tokenizer, stage="tokenizer", params={})
    for seed, (out, rank) in enumerate(((workspace.backbone, None), (workspace.models / "mine", 12))):
        out.mkdir(parents=True)
        model = tiny_qwen3(seed=seed, vocab_size=tokenizer.get_vocab_size())
        write_checkpoint(out, Network(model, rank=rank), tokenizer_folder=workspace.tokenizer, details={})
        write_manifest(out, stage="test", params={})
    return workspace


def test_scores_of_a_setting(workspace):
    evaluate.run(workspace, "mine", "small")
    frame = pd.read_parquet(workspace.scores / "mine" / "small.parquet")
    found = json.loads((workspace.scores / "mine" / "small.json").read_text())
    assert list(found) == ["l1-d8-r4", "l2-d16-r12"]
    for scores in found.values():
        assert set(scores) == {"average", "Answers", "Names", "Classes"}
    assert set(frame["submodel"]) == set(found)
    assert frame[frame["main"]]["score"].between(0, 1).all()
    assert set(frame["setting"]) == {"mine"}


def test_scores_of_the_controls(workspace):
    control.run(workspace, "small")
    frame = pd.read_parquet(workspace.scores / "controls" / "small.parquet")
    found = json.loads((workspace.scores / "controls" / "small.json").read_text())
    assert set(found) == {"untrained l2-d16-r16", "word_tfidf", "char_tfidf", "bm25"}
    assert set(frame["setting"]) == {"untrained", "word_tfidf", "char_tfidf", "bm25"}
    assert frame[frame["setting"] == "bm25"]["layers"].isna().all()
    assert frame[frame["setting"] == "untrained"]["bytes_fp32"].gt(0).all()


def test_the_same_inputs_give_the_same_bytes(workspace):
    outs = []
    for _ in range(2):
        evaluate.run(workspace, "mine", "small")
        outs.append([(workspace.scores / "mine" / name).read_bytes() for name in ("small.parquet", "small.json")])
    assert outs[0] == outs[1]
    assert str(workspace.root).encode() not in outs[0][0]


@pytest.mark.parametrize("cut", [{}, {"layers": 1, "dim": 8, "rank": 4}, {"rank": 5}])
def test_vectors_equal_those_of_an_encoder_opened_at_the_cut(workspace, cut):
    from mlembed_core.evaluate.encoder import StateStore

    texts = [f"what is {n}?" for n in range(30)] + ["a much longer text that does not fit into the limit of tokens at all"]
    whole, at_the_cut = Encoder.from_folder(workspace.models / "mine"), Encoder.from_folder(workspace.models / "mine", **cut)
    others = [whole.shape.full, Submodel(1, 4, 3)]
    states = StateStore(whole, [at_the_cut.submodel, *others], batch_tokens=64).states(texts, at_the_cut.submodel)
    vectors = states / np.linalg.norm(states, axis=1, keepdims=True)
    assert np.allclose(vectors, at_the_cut.encode_documents(texts), atol=1e-6)


def test_faults_are_named_and_leave_the_scores(workspace):
    evaluate.run(workspace, "mine", "small")
    before = (workspace.scores / "mine" / "small.parquet").read_bytes()
    with pytest.raises(ConfigError, match="suites has no 'smal'; did you mean 'small'"):
        evaluate.run(workspace, "mine", "smal")
    with pytest.raises(ArtifactError, match="'mien' is not trained \\(trained are: mine\\)"):
        evaluate.run(workspace, "mien", "small")
    workspace.params_file.write_text(PARAMS.replace("rank: 4", "rank: 13"))
    with pytest.raises(SubmodelError, match=r"evaluation.submodels\[1\] and .*mine: rank=13 is out of range"):
        evaluate.run(workspace, "mine", "small")
    workspace.params_file.write_text(PARAMS.replace("source: names", "source: nemas"))
    with pytest.raises(ArtifactError, match="mlembed source nemas"):
        evaluate.run(workspace, "mine", "small")
    assert (workspace.scores / "mine" / "small.parquet").read_bytes() == before
    assert not list((workspace.work / "tmp").iterdir())


def test_a_source_without_test_rows_stops_before_the_model_is_read(workspace, write_source):
    write_source("mine", [("q", "p", None, None, "train")])
    workspace.params_file.write_text(PARAMS.replace("source: answers", "source: mine"))
    (workspace.models / "mine" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="suites.small.tasks.Answers"):
        evaluate.run(workspace, "mine", "small")


def test_a_local_suite_never_asks_the_network(workspace, monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    evaluate.run(workspace, "mine", "small")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
