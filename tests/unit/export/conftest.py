"""A trained checkpoint of every kind that can be exported, and a probe that spares a test the fresh process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mlembed_core.artifacts import write_manifest
from mlembed_core.export.golden import difference
from mlembed_core.export.probe import READERS
from mlembed_core.export.verify import Probe, Reader
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.network import Network
from tests.tiny import tiny_qwen3, tokenizer_folder

AXES = {"mrl_dims": [8, 16, 32], "mll_layers": [1, 2, 3], "mel_ranks": [4, 8]}
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
# A rotary base that is no library's default: one that is lost shows.
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 777.0}}


class SameProcess(Probe):
    """Computes where the test runs; the fresh process has tests of its own."""

    def __init__(self, readers=tuple(Reader)):
        self.readers = list(readers)

    def __exit__(self, *_):
        pass

    def differences(self, folder, golden):
        return {reader.value: difference(np.asarray(READERS[reader](folder)), golden) for reader in self.readers}


def write_model(base: Path, network: Network, **details) -> Path:
    """A model folder as a training leaves it."""
    out = base / "model"
    out.mkdir(parents=True)
    tokenizer = tokenizer_folder(base / "tokenizer", max_length=48)
    write_checkpoint(out, network, tokenizer_folder=tokenizer, details={"setting": "3d", **details})
    write_manifest(out, stage="train@3d", params={}, inputs={"tokenizer": tokenizer})
    return out


@pytest.fixture(scope="session")
def mel_model(tmp_path_factory) -> Path:
    """Three layers, dim 32, a table of rank 8."""
    model = tiny_qwen3(seed=0, vocab_size=258, **SHAPE, **ROPE)
    return write_model(tmp_path_factory.mktemp("mel"), Network(model, rank=8), **AXES)


@pytest.fixture(scope="session")
def dense_model(tmp_path_factory) -> Path:
    """The same with a dense table."""
    model = tiny_qwen3(seed=0, vocab_size=258, **SHAPE, **ROPE)
    return write_model(tmp_path_factory.mktemp("dense"), Network(model), **(AXES | {"mel_ranks": None}))
