"""Exports: equal to the submodel in memory, of the size that the shapes say, whole or not at all."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import numpy as np
import psutil
import pytest
from safetensors import safe_open
from transformers import AutoModel

from mlembed_core.artifacts import read_json, write_json, write_manifest
from mlembed_core.config.model import Pooling
from mlembed_core.errors import ArtifactError, SubmodelError
from mlembed_core.export import slice as slicing
from mlembed_core.export.formats import open_encoder
from mlembed_core.export.golden import DOCUMENTS, VECTORS_FILE, read_golden
from mlembed_core.export.kinds import Format, StoredType
from mlembed_core.export.slice import take_out
from mlembed_core.export.verify import TOLERANCE, Probe, Reader, VerificationError, verify
from mlembed_core.model.encoder import Encoder
from mlembed_core.model.network import Network
from tests.parity.architectures import stock
from tests.unit.export.conftest import SameProcess, write_model

CUTS = [(None, None, None), (1, 8, 4), (2, 16, 8)]


def export(source, target, *, layers=None, dim=None, rank=None, form=Format.COMPAT, dtype=StoredType.FP32, instruction=None, probe=None):
    return take_out(
        source, target, probe or SameProcess(), layers=layers, dim=dim, rank=rank, form=form, dtype=dtype, instruction=instruction
    )


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize(("layers", "dim", "rank"), CUTS)
def test_vectors_and_size_are_those_of_the_submodel(mel_model, tmp_path, form, layers, dim, rank):
    done = export(mel_model, tmp_path / "out", layers=layers, dim=dim, rank=rank, form=form)
    submodel = Encoder.from_folder(mel_model, layers=layers, dim=dim, rank=rank).encode_documents(DOCUMENTS)
    opened = open_encoder(tmp_path / "out")
    np.testing.assert_allclose(opened.encode_documents(DOCUMENTS), submodel, atol=1e-6)
    assert opened.submodel.dim == (dim or 32)
    assert set(done.verification.differences) == {"mlembed", "sentence-transformers"}
    assert max(done.verification.differences.values()) < 1e-6
    assert done.weight_bytes == pytest.approx(done.computed_bytes, rel=0.02)


def test_a_dense_table_is_factorised_by_its_svd(dense_model, tmp_path):
    export(dense_model, tmp_path / "out", layers=2, rank=4, form=Format.FACTORISED)
    opened = open_encoder(tmp_path / "out")
    assert (opened.shape.layers, opened.shape.rank) == (2, 4)
    expected = Encoder.from_folder(dense_model, layers=2, rank=4).encode_documents(DOCUMENTS)
    np.testing.assert_allclose(opened.encode_documents(DOCUMENTS), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "pooling"), [("gemma3", Pooling.LAST), ("xlm_roberta", Pooling.MEAN), ("modernbert", Pooling.CLS)])
@pytest.mark.parametrize("form", Format)
def test_other_architectures(name, pooling, form, tmp_path):
    source = write_model(tmp_path, Network(stock(name, vocab_size=258).float(), rank=8, pooling=pooling))
    done = export(source, tmp_path / "out", layers=2, dim=8, rank=4, form=form)
    assert max(done.verification.differences.values()) < TOLERANCE


@pytest.mark.parametrize("form", Format)
@pytest.mark.parametrize("dtype", [StoredType.BF16, StoredType.FP16])
def test_rounded_weights_take_half_and_say_what_they_cost(mel_model, tmp_path, form, dtype):
    whole, half = export(mel_model, tmp_path / "whole", form=form), export(mel_model, tmp_path / "half", form=form, dtype=dtype)
    assert half.weight_bytes == pytest.approx(whole.weight_bytes / 2, rel=0.1)
    assert 0.99 < half.cosine < 1
    with safe_open(tmp_path / "half" / "model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {slicing.TORCH_TYPES[dtype]}  # noqa: SIM118


def test_the_folder_keeps_no_more_than_the_cut_needs(mel_model, tmp_path):
    for form in Format:
        export(mel_model, tmp_path / form, layers=1, dim=8, rank=4, form=form)
        assert not list((tmp_path / form).rglob("*.bin"))
    with safe_open(tmp_path / "factorised" / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {name for name in shapes if ".layers.1." in name} == set()
    assert (shapes["backbone.embed_tokens.u"], shapes["backbone.embed_tokens.v"]) == ((258, 4), (4, 32))
    facts = read_json(tmp_path / "factorised" / "mlembed.json")
    assert (facts["mrl_dims"], facts["mll_layers"], facts["mel_ranks"]) == ([8], [1], [4])
    # Plain transformers takes the compatible form as a Qwen3 that never had more layers.
    assert len(AutoModel.from_pretrained(tmp_path / "compat").layers) == 1


def test_an_export_is_a_function_of_its_model(mel_model, tmp_path):
    first, second = (export(mel_model, tmp_path / name / "out", dim=8).verification.fingerprint for name in ("a", "b"))
    assert first == second


def test_an_export_can_be_cut_again(mel_model, tmp_path):
    export(mel_model, tmp_path / "first", layers=2, dim=16, form=Format.FACTORISED)
    export(tmp_path / "first", tmp_path / "second", layers=1, dim=8, rank=4)
    expected = Encoder.from_folder(mel_model, layers=1, dim=8, rank=4).encode_documents(DOCUMENTS)
    np.testing.assert_allclose(open_encoder(tmp_path / "second").encode_documents(DOCUMENTS), expected, atol=1e-6)
    with pytest.raises(SubmodelError, match=r"dim=32 is out of range: this model has dim 1 … 16"):
        open_encoder(tmp_path / "first", dim=32)


def test_the_instruction_is_the_query_prompt(mel_model, tmp_path):
    done = export(mel_model, tmp_path / "out", instruction="Find code.")
    assert read_json(tmp_path / "out" / "config_sentence_transformers.json")["prompts"]["query"] == "Instruct: Find code.\nQuery: "
    assert max(done.verification.differences.values()) < 1e-6  # the query among the golden texts stands behind it


def test_nothing_is_left_where_the_check_fails(mel_model, tmp_path, monkeypatch):
    def forget_the_rotary_base(*arguments, **options):
        write(*arguments, **options)
        path = arguments[0] / "config.json"
        config = read_json(path)
        config.pop("rope_theta"), config.pop("rope_parameters")
        write_json(path, config)

    write = slicing.write_folder
    monkeypatch.setattr(slicing, "write_folder", forget_the_rotary_base)
    with pytest.raises(VerificationError, match="gives other vectors here than where it was exported: mlembed by"):
        export(mel_model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_overwritten(mel_model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists already; name another folder"):
        export(mel_model, tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    with pytest.raises(SubmodelError, match="layers=4 is out of range"):
        export(mel_model, tmp_path / "out", layers=4)
    with pytest.raises(ArtifactError, match="no checkpoint of this project"):
        export(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_type_that_ruins_the_vectors_is_refused(tmp_path):
    model = stock("qwen3", vocab_size=258).float()
    model.embed_tokens.weight.data *= 1e-9  # below what fp16 can hold
    with pytest.raises(ArtifactError, match=r"stored as fp16.*Export it with --dtype fp32 or bf16"):
        export(write_model(tmp_path, Network(model)), tmp_path / "out", dtype=StoredType.FP16)


@pytest.fixture(scope="module")
def exported(mel_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "out"
    return folder, export(mel_model, folder, layers=1, dim=8).verification.fingerprint


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported[0], tmp_path / "copy")


def test_tampering_is_told_file_by_file(copy):
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    (copy / "modules.json").write_text("[]")
    (copy / "tokenizer_config.json").unlink()
    (copy / "extra.py").write_text("")
    with pytest.raises(VerificationError) as caught:
        verify(copy, probe=SameProcess())
    message = str(caught.value)
    assert "model.safetensors was changed (other SHA-256)" in message
    assert "modules.json has 2 bytes" in message
    assert "tokenizer_config.json is missing" in message
    assert "extra.py was added" in message


def test_a_rewritten_manifest_has_another_fingerprint(copy, exported):
    _, fingerprint = exported
    verify(copy, fingerprint=fingerprint, probe=SameProcess())
    (copy / "extra.txt").write_text("")
    write_manifest(copy, stage="export", params={})
    with pytest.raises(VerificationError, match=f"not {fingerprint}: it is another export"):
        verify(copy, fingerprint=fingerprint, probe=SameProcess())


def test_a_stack_that_computes_other_vectors_is_named(copy):
    vectors, _ = read_golden(copy)
    np.save(copy / VECTORS_FILE, vectors + np.float32(1e-3))
    write_manifest(copy, stage="export", params={})
    with pytest.raises(VerificationError, match=r"mlembed by 0.001, sentence-transformers by 0.001 \(allowed: 1e-05\).*transformers 5\."):
        verify(copy, probe=SameProcess())


def test_what_is_no_export_is_refused(mel_model, copy):
    with pytest.raises(ArtifactError, match=r"is no export \(no export.json\)"):
        verify(mel_model)
    (copy / VECTORS_FILE).write_bytes(b"")
    with pytest.raises(ArtifactError, match="golden.npy is missing or damaged"):
        verify(copy)


@pytest.mark.slow
def test_a_fresh_process_says_why_it_cannot_read_a_folder(copy):
    (copy / "model.safetensors").write_bytes(b"no weights")
    with (
        Probe([Reader.MLEMBED]) as probe,
        pytest.raises(VerificationError, match="cannot be read: mlembed: ArtifactError: the weights in"),
    ):
        probe.differences(copy, read_golden(copy)[0])


# A fork must not be made in a process that has computed with torch already, as this one has.
FORKED = """
import os, signal, sys
from pathlib import Path
from mlembed_core.export.golden import read_golden
from mlembed_core.export.verify import ForkedProbe, Reader, VerificationError
import mlembed_core.export.slice
whole, damaged = (Path(name) for name in sys.argv[1:])
golden, _ = read_golden(whole)
for act in ("read", "read damaged", "die"):
    with ForkedProbe([Reader.MLEMBED]) as probe:
        if act == "die":
            os.kill(probe._forked.pid, signal.SIGKILL)
        try:
            print(probe.differences(damaged if act == "read damaged" else whole, golden)["mlembed"] < 1e-6)
        except VerificationError as error:
            print(error)
probe = ForkedProbe([Reader.MLEMBED])
print(probe._forked.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_fork_reads_what_a_fresh_process_would_and_never_outlives_its_parent(exported, copy):
    (copy / "model.safetensors").write_bytes(b"no weights")
    done = subprocess.run([sys.executable, "-c", FORKED, exported[0], copy], capture_output=True, text=True, timeout=300)
    read, damaged, died, forked = done.stdout.splitlines()
    assert read == "True"
    assert damaged.startswith(f"{copy} cannot be read: mlembed: ArtifactError: the weights in")
    assert died == f"{exported[0]} cannot be read: the process that read it died"
    assert done.returncode == -signal.SIGKILL
    psutil.wait_procs([process for process in psutil.process_iter() if process.pid == int(forked)], timeout=30)
    assert not psutil.pid_exists(int(forked))
