"""Merged checkpoints: the arithmetic, and a training that keeps them only where held-out rows say so."""

import math

import pytest
import torch

from mlembed_core.config.base import parse
from mlembed_core.config.train import MergeMethod, TrainParams
from mlembed_core.errors import ArtifactError, ConfigError
from mlembed_core.train import loop, resume
from mlembed_core.train.merge import merge, slerp
from tests.distributed.worker import write_cache

from .test_loop import assert_equal, run

OPTIONS = {"checkpoint_every": 3, "kept_checkpoints": 4}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder, held_out=20)
    return folder


def test_slerp_walks_the_arc():
    east, north = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 1.0]).double()
    for share in (0, 0.25, 0.5, 1):
        angle = share * math.pi / 2
        torch.testing.assert_close(slerp(east, north, share), torch.tensor([math.cos(angle), math.sin(angle)]).double())
    torch.testing.assert_close(slerp(east, 3 * east, 0.5), 2 * east)  # parallel: the straight line
    assert torch.equal(slerp(east, torch.zeros(2).double(), 0.5), east / 2)


@pytest.mark.parametrize("method", MergeMethod)
def test_every_checkpoint_counts_the_same(method):
    states = [{"w": torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))} for seed in range(3)]
    merged = merge(states, method)["w"]
    assert merged.dtype == torch.float32
    if method is MergeMethod.AVERAGE:
        torch.testing.assert_close(merged, torch.stack([state["w"] for state in states]).mean(dim=0))
    else:
        one, two, three = (state["w"].double() for state in states)
        torch.testing.assert_close(merged, slerp(slerp(one, two, 1 / 2), three, 1 / 3).float())
    assert torch.equal(merge([states[0], states[0]], method)["w"], states[0]["w"])


@pytest.mark.parametrize("method", MergeMethod)
def test_the_lower_held_out_loss_decides(cache, tmp_path, method):
    plain, _ = run(cache, tmp_path / "plain", **OPTIONS)
    found, curves = run(cache, tmp_path / "merged", merge={"method": method, "last": 3}, **OPTIONS)
    expected = merge(resume.last_weights(tmp_path / "merged", count=3), method)
    assert_equal(found, expected if curves.merge["merged"] < curves.merge["last"] else plain)


@pytest.mark.parametrize("better", [True, False])
def test_both_ends_are_possible(cache, tmp_path, monkeypatch, better):
    losses = iter([1.0, 0.5 if better else 1.5])
    monkeypatch.setattr(loop._Run, "_held_out_loss", lambda _: next(losses))
    found, curves = run(cache, tmp_path / "state", merge={"method": "average", "last": 2}, **OPTIONS)
    states = resume.last_weights(tmp_path / "state", count=2)
    assert_equal(found, merge(states, MergeMethod.AVERAGE) if better else states[-1])
    assert curves.merge == {"last": 1.0, "merged": 0.5 if better else 1.5}


def test_a_run_that_was_killed_in_the_merge_comes_to_the_same_end(cache, tmp_path, monkeypatch):
    options = {"merge": {"method": "slerp", "last": 3}, **OPTIONS}
    expected, curves = run(cache, tmp_path / "whole", **options)

    class Killed(BaseException):
        pass

    def die(*_arguments, **_options):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "merge", die)
        run(cache, tmp_path / "killed", **options)
    found, resumed_curves = run(cache, tmp_path / "killed", **options)
    assert_equal(found, expected)
    assert resumed_curves == curves


def test_too_few_checkpoints_are_told(cache, tmp_path):
    with pytest.raises(ArtifactError, match=r"train.merge.last=4, but .* holds 1 checkpoints; lower it, or train.checkpoint_every"):
        run(cache, tmp_path / "state", merge={"method": "average", "last": 4}, checkpoint_every=100, kept_checkpoints=4)


def test_a_merge_that_nothing_could_judge_is_refused(tmp_path):
    write_cache(tmp_path)
    with pytest.raises(ConfigError, match=r"train.merge is kept only where .* no source in use has two of them"):
        run(tmp_path, tmp_path / "state", merge={"method": "average", "last": 2}, **OPTIONS)


def test_a_merge_needs_checkpoints_that_are_kept():
    values = {
        "batch_size": 8,
        "objectives": {"retrieval": {"in_batch": True, "num_hard_negatives": 0}},
        "learning_rate": 1e-4,
        "num_threads": 1,
        "merge": {"method": "average", "last": 3},
    }
    with pytest.raises(ConfigError, match=r"merge.last=3 needs checkpoint_every and kept_checkpoints ≥ 3 \(found None and 2\)"):
        parse(TrainParams, values, origin="test")
    assert parse(TrainParams, values | {"checkpoint_every": 10, "kept_checkpoints": 3}, origin="test").merge.last == 3
