"""The training loop: killed and resumed is uninterrupted, bit for bit; a loss that is no number stops it and says where."""

from itertools import count, pairwise

import pytest
import torch
from accelerate import Accelerator

from mlembed_core.config.settings import SettingParams
from mlembed_core.errors import MachineError, TrainingError, TrainingInterruptedError
from mlembed_core.train import resume, state_folder
from mlembed_core.train.faults import naming_the_knobs
from mlembed_core.train.loop import train
from mlembed_core.train.optimizer import learning_rate
from tests.distributed.worker import problem, write_cache

STEPS = 10


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it."""


def run(folder, state, *, die_at=None, spoil=(), network=None, setting=None, stop_requested=lambda: False, **options):
    """Train the problem of the two-process test in this process.

    Args:
        die_at: raise after this step's row of the loss curve.
        spoil: steps whose gradient is made a NaN.
        options: other parameters.
    """
    options = {"num_steps": STEPS, "checkpoint_every": 3, "log_every": 1, **options}
    made, cache, _, axes, params = problem(folder, batch_size=8, **options)
    network = (made if network is None else network).float()
    steps = count(resume_step(state))
    network.embedding.u.register_hook(lambda gradient: gradient * (float("nan") if next(steps) in spoil else 1.0))

    def log(step, metrics):
        if step == die_at and "loss" in metrics:
            raise Killed

    curves = train(
        network,
        cache,
        axes=axes,
        params=params,
        seed=5,
        accelerator=Accelerator(cpu=True),
        state_folder=state,
        log=log,
        setting=setting,
        stop_requested=stop_requested,
    )
    return network.state_dict(), curves


def resume_step(state):
    """The step that a run with this state folder starts at."""
    return max((int(path.name.removeprefix("step-")) for path in state.glob("step-*")), default=0)


def assert_equal(found, expected):
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    write_cache(folder)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp32"},
        {"precision": "bf16"},
        {"grad_cache_tokens": 40},
        {"spoil": (3, 6), "max_skipped_steps": 2},
    ],
    ids=["fp32", "bf16", "in chunks", "with skipped steps"],
)
def test_killed_twice_and_resumed_equals_uninterrupted(cache, tmp_path, options):
    expected, curves = run(cache, tmp_path / "whole", **options)
    for die_at in (5, 8):
        with pytest.raises(Killed):
            run(cache, tmp_path / "killed", die_at=die_at, **options)
    found, resumed_curves = run(cache, tmp_path / "killed", **options)
    assert_equal(found, expected)
    assert resumed_curves == curves


def test_chunks_are_another_way_to_the_same_run(cache, tmp_path):
    expected, curves = run(cache, tmp_path / "whole")
    found, chunked_curves = run(cache, tmp_path / "chunked", grad_cache_tokens=40)
    losses = [[row["loss"] for row in each.loss] for each in (curves, chunked_curves)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # float32, and Adam's first steps divide small by small
    assert max(float((found[name] - value).abs().max()) for name, value in expected.items()) < 1e-3


def test_the_loss_falls_and_every_parameter_moves(cache, tmp_path):
    weights, curves = run(cache, tmp_path, num_steps=150)
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
    found = resume.read_newest(tmp_path / "state", warn=messages.append)
    assert found is not None
    assert found.step == 9
    assert str(newest) in messages[0]
    again, _ = run(cache, tmp_path / "state")
    assert_equal(again, expected)


@pytest.mark.parametrize(("kept", "expected"), [(1, [10]), (2, [9, 10]), (3, [6, 9, 10])])
def test_the_newest_states_are_kept_and_no_draft_is_left(cache, tmp_path, kept, expected):
    run(cache, tmp_path, kept_checkpoints=kept)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:08d}" for step in expected]


def test_told_to_stop_it_saves_and_leaves_and_goes_on_later(cache, tmp_path):
    expected, curves = run(cache, tmp_path / "whole")
    answers = iter([False, False, False, True])
    with pytest.raises(TrainingInterruptedError, match="after step 4 of 10 is saved"):
        run(cache, tmp_path / "stopped", stop_requested=lambda: next(answers))
    assert resume_step(tmp_path / "stopped") == 4
    found, resumed_curves = run(cache, tmp_path / "stopped")
    assert_equal(found, expected)
    assert resumed_curves == curves


def test_told_to_stop_without_checkpoints_it_saves_too(cache, tmp_path):
    with pytest.raises(TrainingInterruptedError):
        run(cache, tmp_path, checkpoint_every=None, stop_requested=lambda: True)
    assert resume_step(tmp_path) == 1


def test_one_folder_of_states_serves_one_training(tmp_path, monkeypatch):
    monkeypatch.setattr(state_folder, "LOCK_PATIENCE_S", 0.2)
    with state_folder.only_one(tmp_path), pytest.raises(MachineError, match="another process is training"), state_folder.only_one(tmp_path):
        pass
    with state_folder.only_one(tmp_path):
        pass


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows(cache, tmp_path):
    network = problem(cache, batch_size=8)[0]
    with torch.no_grad():
        network.norm.weight[0] = float("nan")
    with pytest.raises(TrainingError, match=r"step 0: loss nan.*source only\. .*rows .*\["):
        run(cache, tmp_path, network=network)


def test_a_gradient_that_is_no_number_changes_no_weight(cache, tmp_path):
    start = problem(cache, batch_size=8)[0].float().state_dict()
    network = problem(cache, batch_size=8)[0]
    with pytest.raises(TrainingError, match="step 0: loss .*, gradient norm nan"):
        run(cache, tmp_path, network=network, spoil=(0,))
    assert_equal(network.state_dict(), start)


def test_steps_are_skipped_and_counted_up_to_the_bound(cache, tmp_path, capsys):
    _, curves = run(cache, tmp_path / "two", spoil=(2, 5), max_skipped_steps=2)
    assert curves.skipped == [2, 5]
    assert "left out step 5" in capsys.readouterr().out
    with pytest.raises(TrainingError, match=r"step 7: .*2 steps were left out before"):
        run(cache, tmp_path / "three", spoil=(2, 5, 7), max_skipped_steps=2)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"
        ),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "numpy"],
)
def test_out_of_memory_names_the_knobs(cache, error):
    params = problem(cache, batch_size=8, bucket_tokens=512)[-1]
    with (
        pytest.raises(MachineError, match=r"grad_cache_tokens \(now null.*bucket_tokens \(now 512.*batch_size \(now 8"),
        naming_the_knobs(params),
    ):
        raise error


def test_a_real_refusal_of_the_allocator_is_recognised(cache):
    with pytest.raises(MachineError, match="out of memory in a training step"), naming_the_knobs(problem(cache, batch_size=8)[-1]):
        torch.empty(2**60, dtype=torch.uint8)


def test_other_errors_pass_as_they_are(cache):
    with pytest.raises(RuntimeError, match="shapes"), naming_the_knobs(problem(cache, batch_size=8)[-1]):
        raise RuntimeError("shapes do not fit")


def test_the_curve_shows_kind_and_terms(cache, tmp_path):
    setting = SettingParams.model_validate({"mll": "auto", "self_distillation": 0.5})
    _, curves = run(cache, tmp_path, setting=setting)
    for row in curves.loss:
        assert row["kind"] == "retrieval"
        assert row["distillation"] is None  # no such term
        assert row["loss"] == pytest.approx(row["in_batch"] + row["hard"] + row["self_distillation"])


def test_a_setting_chooses_its_terms(cache, tmp_path):
    setting = SettingParams.model_validate({"objectives": {"retrieval": {"in_batch": True, "num_hard_negatives": 0}}})
    _, curves = run(cache, tmp_path, setting=setting)
    assert [row["hard"] for row in curves.loss] == [None] * STEPS
    assert all(row["loss"] == row["in_batch"] for row in curves.loss)


def test_the_learning_rate_warms_up_and_ends_at_its_floor(cache):
    params = problem(cache, batch_size=8)[-1].model_copy(update={"warmup_fraction": 0.1, "min_learning_rate": 1e-5})
    rates = [learning_rate(step, 100, params) for step in range(101)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[100] == pytest.approx(1e-5)
    assert all(later <= earlier for earlier, later in pairwise(rates[10:]))
