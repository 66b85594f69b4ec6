"""Tiny sources whose texts carry the number of what they are about, and stand-in encoders that do or do not understand it."""

import re
import zlib

import numpy as np
import pytest

from mlembed_core.artifacts import Workspace, write_manifest
from mlembed_core.config.grid import Shape
from mlembed_core.data.rows import Row, RowWriter, to_table
from mlembed_core.data.tokenize import EOS, PAD, save_tokenizer, train_tokenizer
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.network import Network
from tests.tiny import tiny_qwen3

NUM_CONCEPTS = 60
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
LANGUAGES = ("deu", "fra", "zul")


def direction(*parts):
    """A vector that depends on the parts alone."""
    return np.random.default_rng(zlib.crc32(repr(parts).encode())).standard_normal(32).astype(np.float32)


class StandIn:
    """An encoder whose state of a text is ``meaning(text, rank, layers)``; counts what it is asked for."""

    def __init__(self, meaning):
        self.shape = Shape(layers=3, dim=32, rank=16, vocab=100)
        self.max_length = 8
        self.calls = []
        self._meaning = meaning

    def exit_states(self, texts, *, rank, layers, batch_tokens=8192):
        self.calls.append((rank, tuple(layers), list(texts)))
        return np.stack([np.stack([self._meaning(text, rank, layer) for text in texts]) for layer in layers])

    def num_parameters(self, submodel):
        return {"table": submodel.rank * (100 + 32), "layers": 1000 * submodel.layers, "other": 32}


def understands(text, rank, layers):
    """Texts about one thing point one way, at every cut."""
    return direction(re.findall(r"\d+", text)) * (1 + layers)


def is_random(text, rank, layers):
    return direction(text, rank, layers)


@pytest.fixture
def understanding():
    return StandIn(understands)


@pytest.fixture
def random():
    return StandIn(is_random)


@pytest.fixture
def stand_in():
    return StandIn


@pytest.fixture
def write_source(tmp_path):
    """Writes the out of stage ``source`` for rows of (query, passage, lang, label, split); gives the folder of all sources."""

    def write(name, rows, **params):
        folder = tmp_path / "data" / "sources" / name
        folder.mkdir(parents=True)
        with RowWriter(folder, 0) as writer:
            writer.write(to_table([Row(query, passage, (), lang, label, split) for query, passage, lang, label, split in rows], 0))
        write_manifest(folder, stage=f"source@{name}", params=params)
        return folder.parent

    return write


@pytest.fixture
def sources(write_source):
    """A retrieval, a bitext and a labelled source."""
    splits = ["test"] * NUM_CONCEPTS + ["train"] * NUM_CONCEPTS
    write_source("answers", [(f"what is {n}?", f"{n} is this", None, None, split) for n, split in enumerate(splits)])
    pairs = [(f"thing {n}", f"{lang} {n}", lang, None, split) for n, split in enumerate(splits) for lang in LANGUAGES]
    write_source("names", [row if n % 2 else (row[1], row[0], *row[2:]) for n, row in enumerate(pairs)])
    labels = [(f"class {n % 12} text {'abcdefghij'[n % 10]}{'xyz'[n % 3]}{s}", n % 12, s) for s in ("train", "test") for n in range(120)]
    return write_source("classes", [(text, f"{text} too", LANGUAGES[label % 3], f"label{label}", split) for text, label, split in labels])


@pytest.fixture
def workspace(tmp_path, sources):
    """A workspace with a tiny real backbone and the setting `mine`, of rank 12."""
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
