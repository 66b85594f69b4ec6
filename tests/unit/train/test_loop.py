"""The training loop: killed and resumed is uninterrupted, bit for bit; a loss that is no number stops it and says where."""

from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator

from mlembed_core.errors import TrainingError
from mlembed_core.train import resume
from mlembed_core.train.loop import train
from mlembed_core.train.optimizer import learning_rate
from tests.distributed.worker import problem, write_cache

STEPS = 10


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def run(folder, state, *, die_at=None, precision="fp32", spoil=False, steps=STEPS):
    network, cache, _, axes, params = problem(folder, batch_size=8)
    network = network.float()
    if spoil:
        with torch.no_grad():
            network.norm.weight[0] = float("nan")
    params = params.model_copy(update={"num_steps": steps, "checkpoint_every": 3, "log_every": 1, "precision": precision})

    def log(step, metrics):
        if step == die_at and "loss" in metrics:
            raise Killed

    curves = train(network, cache, axes=axes, params=params, seed=5, accelerator=Accelerator(cpu=True), state_folder=state, log=log)
    return network.state_dict(), curves


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_killed_twice_and_resumed_equals_uninterrupted(cache, tmp_path, precision):
    expected, curves = run(cache, tmp_path / "whole", precision=precision)
    for die_at in (5, 8):
        with pytest.raises(Killed):
            run(cache, tmp_path / "killed", die_at=die_at, precision=precision)
    found, resumed_curves = run(cache, tmp_path / "killed", precision=precision)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert resumed_curves == curves


def test_the_loss_falls_and_every_parameter_moves(cache, tmp_path):
    weights, curves = run(cache, tmp_path, steps=150)
    start = problem(cache, batch_size=8)[0].float().state_dict()
    losses = [row["loss"] for row in curves.loss]
    assert sum(losses[-30:]) < 0.7 * sum(losses[:30])  # 40 rows can be learnt by heart
    assert [name for name, value in weights.items() if torch.equal(value, start[name])] == []


def test_a_damaged_newest_state_gives_way_to_the_one_before(cache, tmp_path):
    expected, _ = run(cache, tmp_path / "state")
    newest = sorted((tmp_path / "state").glob("step-*"))[-1]
    weights = newest / "network.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    messages = []
    network, *_ = problem(cache, batch_size=8)
    network = network.float()
    found = resume.load_newest(
        tmp_path / "state", network=network, optimizer=torch.optim.AdamW(network.parameters(), fused=True), warn=messages.append
    )
    assert found is not None
    assert found[0] == 9
    assert str(newest) in messages[0]
    again, _ = run(cache, tmp_path / "state")
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_the_newest_states_are_kept_and_no_draft_is_left(cache, tmp_path):
    run(cache, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000009", "step-00000010"]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(cache, tmp_path):
    with pytest.raises(TrainingError, match=r"step 0: loss nan.*source only\. .*rows .*\["):
        run(cache, tmp_path, spoil=True)


def test_the_learning_rate_warms_up_and_ends_at_its_floor(cache):
    params = problem(cache, batch_size=8)[-1].model_copy(update={"warmup_fraction": 0.1, "min_learning_rate": 1e-5})
    rates = [learning_rate(step, 100, params) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[100] == pytest.approx(1e-5)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
