"""The champion moves through one gate, on record, one hand at a time; in a real MLflow database.

Weights are stand-ins, so the proof of an export, which needs a model, is put on the versions beforehand: the tiny pipeline has real ones
(tests/integration/test_promotion.py).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlembed_core.artifacts import Workspace, write_manifest
from mlembed_core.errors import ArtifactError, RegistryError
from mlembed_core.export.verify import VerificationError
from mlembed_core.model.encoder import weights_hash
from mlembed_core.registry.client import open_registry
from mlembed_core.registry.gate import EXPORT_TAG, PromotionRefusedError
from mlembed_core.registry.moves import LOG, Act, Move, State, champions
from mlembed_core.registry.promote import history, promote, rollback
from mlembed_core.registry.prove import Prover
from mlembed_core.registry.register import register
from mlembed_core.train.tracking import connect, local_tracking_uri
from tests.unit.registry.conftest import PARAMS, make_workspace, write_model
from tests.unit.registry.scores import questions, write_table

slow = pytest.mark.slow  # a second or two each; the quick ones pass through the same code
GATE = """
suites:
  embedded: {type: local, tasks: {A: {type: retrieval, source: s}}}
gate: {margin: 0.01, controls: [untrained]}
"""


def client(workspace):
    return connect(local_tracking_uri(workspace))


def train(workspace, setting, level, *, broken=False):
    """A setting trained to answer with probability ``level``, and registered; returns its version's number."""
    write_model(workspace, setting)
    folder = workspace.models / setting
    save_file({"w": np.array([np.nan if broken else level, *map(ord, setting)])}, folder / "model.safetensors")
    write_manifest(
        folder,
        stage=f"train@{setting}",
        params={},
        inputs={name: workspace.root / "data" / name for name in ("backbone", "cache", "tokenizer")},
    )
    write_table(
        workspace.scores / setting / "embedded.parquet", {"A": questions(1, 300, level)}, weights=weights_hash(folder), setting=setting
    )
    (done,) = register(workspace, [setting])
    client(workspace).set_model_version_tag("house", done.version, EXPORT_TAG, "f" * 64)
    return done.version


@pytest.fixture
def house(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Data that pass their checks, and scores of the untrained control."""
    workspace = make_workspace(tmp_path / "clone", mlflow_database)
    workspace.params_file.write_text(PARAMS + GATE)
    write_manifest(workspace.cache, stage="cache", params={}, counts={"rows_train": 9})
    save_file({"w": np.ones(2)}, workspace.backbone / "model.safetensors")
    write_manifest(workspace.backbone, stage="backbone", params={})
    write_table(workspace.scores / "controls" / "embedded.parquet", {"A": questions(1, 300, 0.3)}, weights="b", setting="untrained")
    monkeypatch.chdir(workspace.root)
    monkeypatch.setenv("MLEMBED_USER", "ada")
    return workspace


def champion(workspace):
    found = client(workspace).get_registered_model("house").aliases.get("champion")
    return None if found is None else str(found)


def test_the_first_champion_beats_the_control(house):
    train(house, "3d", 0.6)
    done = promote(house, why="the first")
    assert champion(house) == "1"
    assert done.move is not None
    (move,) = history(house).moves
    assert (move.act, move.state, move.who, move.before, move.after, move.why) == (Act.PROMOTE, State.DONE, "ada", None, "1", "the first")
    assert move.figures["beats_the_control_untrained"]["before"] == pytest.approx(0.3, abs=0.06)


@slow
def test_no_better_than_the_control_is_no_champion(house):
    train(house, "3d", 0.3)
    with pytest.raises(
        PromotionRefusedError, match=r"Against the controls .*1 of \d conditions.*\n  beats_the_control_untrained: average 0"
    ):
        promote(house)
    assert champion(house) is None
    assert history(house).moves == ()


def test_every_reason_is_listed(house):
    train(house, "3d", 0.6)
    promote(house)
    train(house, "baseline", 0.4, broken=True)
    with pytest.raises(PromotionRefusedError) as caught:
        promote(house, "baseline")
    text = str(caught.value)
    assert "version 2 (baseline) was not promoted. Against the champion, version 1" in text
    for reason in (
        "beats_the_champion: average 0.",
        "no_task_drops: 1 of 1: embedded/A",
        "no_language_drops: 1 of 1: eng",
        "vectors_are_finite",
    ):
        assert reason in text
    assert caught.value.exit_code == 11
    assert champion(house) == "1"


@slow
def test_the_best_candidate_is_the_default(house):
    train(house, "3d", 0.7)
    train(house, "baseline", 0.5)
    assert promote(house).version == "1"
    again = promote(house, "champion")
    assert again.move is None
    assert "the champion already" in again.summary
    assert len(history(house).moves) == 1


@slow
def test_a_dry_run_moves_nothing(house):
    train(house, "3d", 0.6)
    assert "version 1 passes the gate" in promote(house, dry_run=True).summary
    assert champion(house) is None
    assert not (house.root / LOG).exists()


@slow
def test_failed_checks_of_the_data_behind_it_count(house):
    write_manifest(house.cache, stage="cache", params={}, counts={"rows_train": 0})
    train(house, "3d", 0.6)
    with pytest.raises(PromotionRefusedError, match=r"no_check_failed: 1 of \d failed: cache: rows_are_present"):
        promote(house)


@slow
def test_scores_of_other_weights_do_not_count(house):
    train(house, "3d", 0.6)
    write_table(house.scores / "3d" / "embedded.parquet", {"A": questions(1, 300, 0.9)}, weights="of another model")
    register(house, ["3d"])
    with pytest.raises(PromotionRefusedError, match="the scores of embedded are of other weights than the registered ones"):
        promote(house)


@slow
def test_artifacts_that_were_changed_are_refused(house):
    version = train(house, "3d", 0.6)
    (weights,) = (house.root / "mlartifacts").rglob("model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(PromotionRefusedError, match=rf"files_are_whole: house version {version} cannot be fetched"):
        promote(house)


@slow
def test_a_version_that_somebody_else_registered_is_none_of_ours(house):
    train(house, "3d", 0.6)
    client(house).create_model_version("house", source="runs:/x/model", run_id=None)
    with pytest.raises(RegistryError, match=r"version 2 has no tag mlembed\.setting.*not made by `mlembed register`"):
        promote(house, "2")


def test_a_version_that_does_not_exist_is_told_with_those_there_are(house):
    train(house, "3d", 0.6)
    with pytest.raises(RegistryError, match=r"no version, alias or candidate '7' \(versions: 1; aliases: candidate-3d → 1\)"):
        promote(house, "7")


@slow
def test_rollback_goes_back_one_champion_at_a_time(house):
    for setting, level in (("baseline", 0.5), ("3d", 0.7)):
        promote(house, train(house, setting, level))
    third = train(house, "baseline", 0.9)
    promote(house, third)
    assert rollback(house, why="complaints").after == "2"
    assert rollback(house).after == "1"
    with pytest.raises(RegistryError, match="no champion before 1"):
        rollback(house)
    assert champion(house) == "1"
    assert [move.act for move in history(house).moves] == [Act.PROMOTE] * 3 + [Act.ROLLBACK] * 2
    assert rollback(house, to="3").after == "3"


@slow
def test_rollback_goes_only_to_what_was_champion_and_is_whole(house):
    promote(house, train(house, "baseline", 0.5))
    promote(house, train(house, "3d", 0.7))
    other = train(house, "baseline", 0.1)
    with pytest.raises(RegistryError, match=rf"version {other} never was champion.*earlier champions: 1"):
        rollback(house, to=other)
    run = client(house).get_model_version("house", "1").run_id
    shutil.rmtree(next((house.root / "mlartifacts").rglob(run)))
    shutil.rmtree(house.work / "registry")
    with pytest.raises(RegistryError, match="version 1 cannot be fetched"):
        rollback(house)
    assert champion(house) == "2"


# ── The record ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@slow
def test_the_record_survives_the_loss_of_the_log(house):
    promote(house, train(house, "baseline", 0.5), why="first")
    promote(house, train(house, "3d", 0.7), why="second")
    moves = history(house).moves
    (house.root / LOG).unlink()
    assert history(house).moves == moves
    assert rollback(house).after == "1"


@slow
def test_a_log_that_was_changed_is_told(house):
    promote(house, train(house, "baseline", 0.5), why="first")
    promote(house, train(house, "3d", 0.7), why="second")
    log = house.root / LOG
    log.write_text(log.read_text().replace("first", "other"))
    with pytest.raises(ArtifactError, match=r"promotions\.jsonl, line \d: it does not follow the line before it"):
        history(house)


@slow
def test_an_alias_moved_by_hand_is_noted(house):
    train(house, "baseline", 0.5)
    promote(house)
    version = train(house, "3d", 0.7)
    client(house).set_registered_model_alias("house", "champion", version)
    promote(house, "champion")
    assert [(move.act, move.before, move.after) for move in history(house).moves] == [(Act.PROMOTE, None, "1"), (Act.BY_HAND, "1", "2")]


@pytest.mark.parametrize(("moved", "state"), [(True, State.DONE), pytest.param(False, State.ABANDONED, marks=pytest.mark.slow)])
def test_a_crash_within_a_move_is_settled(house, monkeypatch, moved, state):
    from mlflow.tracking import MlflowClient

    train(house, "3d", 0.6)
    move_alias = MlflowClient.set_registered_model_alias

    def crash(self, name, alias, version):
        if moved:
            move_alias(self, name, alias, version)
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", crash)
    with pytest.raises(KeyboardInterrupt):
        promote(house)
    (begun,) = history(house).moves
    assert begun.state is State.BEGUN
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", move_alias)
    promote(house)
    moves = history(house).moves
    assert moves[0].state is state
    assert len(moves) == (1 if moved else 2)
    assert champion(house) == "1"


@slow
def test_a_line_that_a_full_disk_cut_off_is_passed_over(house):
    promote(house, train(house, "baseline", 0.5))
    log = house.root / LOG
    with log.open("a") as handle:
        handle.write('{"act": "promote", "nu')
    promote(house, train(house, "3d", 0.7))
    assert [move.after for move in history(house).moves] == ["1", "2"]
    assert log.read_text().count("\n") == 5


@slow
def test_a_champion_that_changed_meanwhile_is_not_overwritten(house, monkeypatch):
    """On another machine, where the lock of a file does not reach."""
    from mlembed_core.registry import promote as module

    promote(house, train(house, "baseline", 0.5))
    train(house, "3d", 0.9)
    judge = module.judge

    def slowly(*arguments):
        found = judge(*arguments)
        client(house).set_registered_model_alias("house", "champion", "2")
        return found

    monkeypatch.setattr(module, "judge", slowly)
    with pytest.raises(RegistryError, match="changed from 1 to 2 while version 2 was compared"):
        promote(house, "2")


HOLDER = """
import sys, time
from mlembed_core.artifacts import Workspace
from mlembed_core.registry.client import open_registry
from mlembed_core.registry.moves import moving
workspace = Workspace.find()
with open_registry(workspace) as registry, moving(registry, workspace, "house"):
    print("held", flush=True)
    time.sleep(60)
"""


@slow
def test_of_two_promotions_one_is_told(house):
    train(house, "3d", 0.6)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3]), "MLEMBED_USER": "grace"}
    with subprocess.Popen([sys.executable, "-c", HOLDER], cwd=house.root, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(RegistryError, match=r"is being moved by somebody else \(grace, process \d+\); nothing was done"):
                promote(house)
        finally:
            holder.kill()  # the lock goes with the process, however it ends
    assert promote(house).move is not None


def test_a_lock_that_is_held_is_told_at_once(house):
    from mlembed_core.registry.moves import moving

    train(house, "3d", 0.6)
    with open_registry(house) as registry, moving(registry, house, "house"):
        started = time.monotonic()
        with pytest.raises(RegistryError, match=r"somebody else \(ada, process"):
            promote(house)
        assert time.monotonic() - started < 5
    assert champion(house) is None


def moved(act, after, state=State.DONE):
    return Move("house", 1, act, state, "ada", "", None, after, "")


def test_the_line_of_champions():
    moves = [moved(Act.PROMOTE, "1"), moved(Act.PROMOTE, "2"), moved(Act.PROMOTE, "9", State.ABANDONED), moved(Act.PROMOTE, "3")]
    assert champions(moves) == ["1", "2", "3"]
    assert champions([*moves, moved(Act.ROLLBACK, "2")]) == ["1", "2"]
    assert champions([*moves, moved(Act.ROLLBACK, "1"), moved(Act.PROMOTE, "4")]) == ["1", "4"]


@slow
def test_the_record_is_json(house):
    promote(house, train(house, "3d", 0.6))
    assert json.loads(json.dumps(history(house).as_dict()))["moves"][0]["act"] == "promote"


@slow  # two processes load torch
def test_what_cannot_be_exported_is_told(tmp_path):
    folder = tmp_path / "hollow"
    folder.mkdir()
    with Prover(tmp_path) as prover:
        prover.take(folder)
        with pytest.raises(VerificationError, match="hollow"):
            prover.answer()
    assert not (tmp_path / "export").exists()
