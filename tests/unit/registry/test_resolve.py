"""References to models: folders, aliases and versions, and what the messages say where there is nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import mlembed_core
from mlembed_core.artifacts import Workspace, manifest_hash
from mlembed_core.errors import ArtifactError, ConfigError, RegistryError
from mlembed_core.registry.register import register
from mlembed_core.registry.resolve import cache_folder, resolve
from tests.mini_hub import only_hub
from tests.tiny import tiny_qwen3, tokenizer_folder


@pytest.fixture
def registered(workspace: Workspace) -> Workspace:
    register(workspace)
    return workspace


def test_a_folder_is_itself(workspace: Workspace) -> None:
    assert resolve("models/3d") == Path("models/3d")
    assert resolve(workspace.models / "3d") == workspace.models / "3d"


def test_an_alias_and_its_version_are_the_same_folder(registered: Workspace) -> None:
    folder = resolve("models:/house@candidate-3d")
    assert manifest_hash(folder) == manifest_hash(registered.models / "3d")
    assert folder == resolve("models:/house/2")
    assert folder != resolve("models:/house@candidate-baseline")


def test_a_version_is_fetched_once(registered: Workspace) -> None:
    folder = resolve("models:/house/1")
    shutil.rmtree(registered.root / "mlartifacts")
    assert resolve("models:/house/1") == folder


def test_an_alias_that_moved_is_followed(registered: Workspace, retrain: Callable[[str, str], None]) -> None:
    before = resolve("models:/house@candidate-3d")
    retrain("3d", "other")
    register(registered, ["3d"])
    after = resolve("models:/house@candidate-3d")
    assert before != after
    assert manifest_hash(after) == manifest_hash(registered.models / "3d")


def test_a_missing_folder_lists_those_there_are(workspace: Workspace) -> None:
    with pytest.raises(ArtifactError, match=r"no model at models/4d \(there are: models/3d, models/baseline\)"):
        resolve("models/4d")


def test_a_missing_folder_outside_of_a_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"no model at models/3d \(and this folder lies in no clone"):
        resolve("models/3d")


def test_a_missing_alias_lists_those_there_are(registered: Workspace) -> None:
    with pytest.raises(RegistryError, match=r"no alias 'champion' \(aliases: candidate-3d → 2, candidate-baseline → 1; versions: "):
        resolve("models:/house@champion")


def test_a_missing_version_lists_those_there_are(registered: Workspace) -> None:
    with pytest.raises(RegistryError, match=r"no version 9 \(aliases: .*; versions: (1, 2|2, 1)\)"):
        resolve("models:/house/9")


def test_a_missing_model_lists_those_there_are(registered: Workspace) -> None:
    with pytest.raises(RegistryError, match=r"no model 'home' is registered .*there are: house\)"):
        resolve("models:/home/1")


@pytest.mark.parametrize("ref", ["models:/house", "models:house@x", "models:/house@a/b", "models:/house/latest", "models:/../x/1"])
def test_a_reference_that_is_none_shows_the_forms(workspace: Workspace, ref: str) -> None:
    with pytest.raises(RegistryError, match="models:/NAME@alias or models:/NAME/VERSION"):
        resolve(ref)


def test_damaged_artifacts_are_not_served(registered: Workspace) -> None:
    (weights,) = (path for path in (registered.root / "mlartifacts").rglob("model.safetensors") if "baseline" in path.read_text())
    weights.write_text("baseline v")
    with pytest.raises(RegistryError, match=r"(?s)house version 1 cannot be fetched .*changed after it was written"):
        resolve("models:/house/1")
    assert list((cache_folder() / "registry").iterdir()) == []


def test_lost_artifacts_are_named_and_registering_brings_them_back(registered: Workspace) -> None:
    shutil.rmtree(registered.root / "mlartifacts")
    with pytest.raises(RegistryError, match=r"(?s)house version 1 cannot be fetched .*artifacts are gone"):
        resolve("models:/house/1")
    assert [(done.created, done.model_uploaded) for done in register(registered)] == [(False, True), (False, True)]
    assert manifest_hash(resolve("models:/house/1")) == manifest_hash(registered.models / "baseline")


def test_outside_of_a_clone_there_must_be_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RegistryError, match="set MLFLOW_TRACKING_URI"):
        resolve("models:/house/1")


def test_outside_of_a_clone_models_go_to_the_users_cache(registered: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registered.root / 'mlflow.db'}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = resolve("models:/house@candidate-3d")
    assert folder.is_relative_to(tmp_path / "cache" / "mlembed")
    assert manifest_hash(folder) == manifest_hash(registered.models / "3d")


REVISION = "a" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A hub on loopback with one model of ours, and its cache; gives the model's folder."""
    from mlembed_core.model.checkpoint import write_checkpoint
    from mlembed_core.model.network import Network

    folder = tmp_path / "mirror" / "team" / "small" / REVISION
    folder.mkdir(parents=True)
    tokenizer = tokenizer_folder(tmp_path / "tokenizer")
    write_checkpoint(folder, Network(tiny_qwen3(seed=1, vocab_size=258), rank=8), tokenizer_folder=tokenizer, details={"setting": None})
    (folder / "code.py").write_text("raise SystemExit")
    with only_hub(tmp_path, monkeypatch):
        yield folder


def test_a_hub_id_at_a_commit_opens_at_a_cut(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    ref, texts = f"team/small@{REVISION}", ["a text", "another"]
    found = mlembed_core.load(ref, layers=1, dim=8, rank=4).encode_documents(texts)
    np.testing.assert_array_equal(found, mlembed_core.load(hub, layers=1, dim=8, rank=4).encode_documents(texts))
    assert not list(resolve(ref).glob("*.py"))  # no code comes along
    with pytest.raises(ConfigError, match=rf"the hub has no commit {REVISION} of team/other"):
        mlembed_core.load(f"team/other@{REVISION}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # from now on the cache serves
    np.testing.assert_array_equal(mlembed_core.load(ref, layers=1, dim=8, rank=4).encode_documents(texts), found)


@pytest.mark.parametrize("ref", ["team/small", "team/small@main", f"team/small@{'a' * 39}"])
def test_a_hub_id_without_a_full_commit_is_refused(ref: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="hub repository at a full commit"):
        mlembed_core.load(ref)
