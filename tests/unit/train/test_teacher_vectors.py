"""A teacher's vectors kept on disk: those that it gives when it is asked, whoever encodes them and however often they are killed."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from mlembed_core.config.base import Precision
from mlembed_core.config.train import TrainParams
from mlembed_core.data.store import TrainingCache
from mlembed_core.errors import MachineError, TrainingInterruptedError
from mlembed_core.model.pack import pack
from mlembed_core.train import teacher_vectors
from mlembed_core.train.grad_cache import grad_cache_step
from mlembed_core.train.step import step_loss
from mlembed_core.train.teacher import Teacher
from mlembed_core.train.teacher_vectors import TeacherVectors, encode_all, taught_by
from tests.distributed.worker import SETTING, problem, teacher, write_cache

HIDDEN, WIDE = 16, 24


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder)
    return folder


@pytest.fixture(scope="module")
def cache(cache_folder):
    return TrainingCache.open(cache_folder)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(teacher_vectors, "BLOCK_TEXTS", 32)


def fill(cache, folder, **options):
    return encode_all(teacher().float(), cache, folder, hidden=HIDDEN, max_tokens=64, precision=Precision.FP32, **options)


def test_they_are_what_the_teacher_says_of_each_text_alone(cache, tmp_path):
    texts = np.array([0, 3, 3, cache.num_texts - 1, 40])
    found = fill(cache, tmp_path).of(texts, torch.device("cpu"))
    network = teacher().float()
    for vector, text in zip(found, texts, strict=True):
        expected = network(pack([cache.tokens(int(text))]), [network.num_layers])[0, 0]
        assert expected.shape == (WIDE,)
        torch.testing.assert_close(vector, expected[:HIDDEN], atol=1e-5, rtol=1e-5)


def test_killed_it_goes_on_with_the_blocks_that_are_missing(cache, tmp_path, monkeypatch):
    whole = fill(cache, tmp_path / "whole").values
    encode, encoded = teacher_vectors._encode, []

    class Killed(BaseException):
        pass

    def encode_some(network, cache, block, *rest):
        if len(encoded) == 2:
            raise Killed
        encoded.append(block)
        return encode(network, cache, block, *rest)

    monkeypatch.setattr(teacher_vectors, "_encode", encode_some)
    with pytest.raises(Killed):
        fill(cache, tmp_path / "killed")
    first, encoded[:] = list(encoded), []
    monkeypatch.setattr(teacher_vectors, "_encode", lambda *a: (encoded.append(a[2]), encode(*a))[1])
    assert np.array_equal(fill(cache, tmp_path / "killed").values, whole)
    assert first + encoded == list(range(-(-cache.num_texts // 32)))
    encoded.clear()
    fill(cache, tmp_path / "killed")
    assert encoded == []


def test_another_process_changes_no_bit(cache, tmp_path, monkeypatch):
    whole = fill(cache, tmp_path / "whole").values
    monkeypatch.setattr(teacher_vectors, "world_size", lambda: 2)
    monkeypatch.setattr(teacher_vectors, "rank", lambda: 1)  # of two, whose first one is on a node with a disk of its own
    assert np.array_equal(fill(cache, tmp_path / "second").values, whole)


def test_told_to_stop_it_keeps_what_is_done(cache, tmp_path):
    answers = iter([False, False, True, True, True])
    with pytest.raises(TrainingInterruptedError, match="what is done is kept in"):
        fill(cache, tmp_path, stop_requested=lambda: next(answers))
    assert sum((tmp_path / "done.bin").read_bytes()) == 2


def test_a_full_disk_is_told_before_anything_is_encoded(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_vectors.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 100}))
    with pytest.raises(MachineError, match=r"vectors.bin, where 0.0 GiB are free.*max_cache_gib"):
        fill(cache, tmp_path)


def chosen(cache, folder, *, max_gib, sha256="t" * 64):
    values = {"batch_size": 8, "objectives": {}, "learning_rate": 1e-3, "num_threads": 1, "precision": "fp32"}
    return taught_by(
        Teacher(teacher().float(), sha256),
        cache,
        folder,
        made_of="c",
        hidden=HIDDEN,
        max_gib=max_gib,
        params=TrainParams.model_validate(values),
        accelerator=Accelerator(cpu=True),
        stop_requested=lambda: False,
    )


def test_the_bound_decides(cache, tmp_path, capsys):
    size = cache.num_texts * HIDDEN * 4 / 2**30
    assert not isinstance(chosen(cache, tmp_path, max_gib=0.0), TeacherVectors)
    assert capsys.readouterr().out == ""
    assert not isinstance(chosen(cache, tmp_path, max_gib=size * 0.99), TeacherVectors)
    assert "it runs in every step" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert chosen(cache, tmp_path, max_gib=size).values.shape == (cache.num_texts, HIDDEN)
    chosen(cache, tmp_path, max_gib=1.0)
    assert len(list(tmp_path.iterdir())) == 1  # shared
    chosen(cache, tmp_path, max_gib=1.0, sha256="u" * 64)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("chunked", [False, True])
def test_a_step_learns_the_same_from_them(cache_folder, tmp_path, chunked):
    options = {"grad_cache_tokens": 24} if chunked else {}
    found = {}
    for name in ("asked", "kept"):
        network, cache, sampler, axes, params = problem(cache_folder, batch_size=7, **options)
        network.float()
        taught = teacher().float() if name == "asked" else fill(cache, tmp_path)
        arguments = {"step": 1, "seed": 5, "axes": axes, "params": params, "setting": SETTING, "teacher": taught}
        if chunked:
            loss = grad_cache_step(
                network, cache, sampler, sampler.batch(1), **arguments, backward=lambda value: value.backward(), autocast=nullcontext
            )
        else:
            loss = step_loss(network, cache, sampler, sampler.batch(1), **arguments)
            loss.terms.total.backward()
        assert loss.terms.distillation.item() > 0
        found[name] = [float(loss.terms.total.detach()), *(parameter.grad.norm().item() for parameter in network.parameters())]
    assert found["kept"] == pytest.approx(found["asked"], rel=1e-4)
