"""The reference's way in benchmarks/ computes our loss and our gradients: what is compared for speed is the same work."""

import pytest
import torch

from benchmarks import step_variants
from benchmarks.step_variants import CPU, FP32, VARIANTS, make_texts, ours, ours_in_chunks, reference

SHAPE = step_variants.SHAPES["tiny"]


@pytest.fixture(autouse=True)
def _small_vocabulary(monkeypatch):
    monkeypatch.setattr(step_variants, "VOCAB", 300)


def test_loss_and_gradients_equal_ours():
    texts = make_texts(SHAPE, "log_normal", seed=1)
    (theirs, their_step), (network, our_step) = reference(SHAPE, FP32), ours(SHAPE, FP32)
    assert float(their_step(texts)) == pytest.approx(float(our_step(texts)), rel=1e-5)  # float32
    expected = {name.removeprefix("backbone."): parameter.grad for name, parameter in theirs.named_parameters()}
    found = {name.removeprefix("backbone.").removeprefix("embedding."): p.grad for name, p in network.named_parameters()}
    assert found.keys() == expected.keys() - {"embed_tokens.weight"}
    for name, gradient in found.items():
        assert ((gradient - expected[name]).norm() / expected[name].norm()).item() < 1e-4, name


def test_chunks_have_the_same_gradients():
    texts = make_texts(SHAPE, "log_normal", seed=1)
    (whole, step), (chunked, step_in_chunks) = ours(SHAPE, FP32), ours_in_chunks(SHAPE, FP32)
    assert float(step(texts)) == pytest.approx(float(step_in_chunks(texts)), rel=1e-6)
    for expected, found in zip(whole.parameters(), chunked.parameters(), strict=True):
        assert ((found.grad - expected.grad).norm() / expected.grad.norm()).item() < 1e-4


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_leaves_a_gradient(name):
    model, step = VARIANTS[name](SHAPE, CPU)
    assert torch.isfinite(step(make_texts(SHAPE, "uniform", seed=0)))
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_half_of_the_padded_rectangle_is_waste_with_log_normal_lengths():
    sizes = [len(text) for text in make_texts(SHAPE, "log_normal", seed=0)]
    assert len(sizes) * max(sizes) / sum(sizes) > 3
