"""What is fetched from the hub, what is not, and when its cache will do."""

from __future__ import annotations

import json

import pytest
from huggingface_hub import constants

from mlembed_core.errors import ConfigError, MachineError
from mlembed_core.hub import WEIGHTS_INDEX, fetch
from tests.mini_hub import only_hub

REPO, REVISION = "team/large", "5" * 40
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A model in two parts, with all that nobody should get; gives the list of what was sent."""
    folder = tmp_path / "mirror" / REPO / REVISION
    (folder / "original").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    for name in (
        "config.json",
        "tokenizer.json",
        "1_Pooling/config.json",
        *PARTS,
        "original/whole.safetensors",
        "pytorch_model.bin",
        "model.py",
    ):
        (folder / name).write_text(f"{{}} {name}")
    (folder / WEIGHTS_INDEX).write_text(json.dumps({"weight_map": {"table": PARTS[0], "norm": PARTS[1]}}))
    with only_hub(tmp_path, monkeypatch) as sent:
        yield sent


def get(**options):
    return fetch(REPO, REVISION, path="backbone.repo", **options)


def test_no_code_no_pickle_and_no_second_copy_of_the_weights(hub):
    there = {file.relative_to(get()).as_posix() for file in get().rglob("*") if not file.is_dir()}
    assert there == {"config.json", "tokenizer.json", "1_Pooling/config.json", WEIGHTS_INDEX, *PARTS}


def test_what_lies_in_the_cache_is_not_asked_for_again(hub):
    folder, sent = get(), len(hub)
    assert get() == folder
    assert get(files=("tokenizer.json",)) == folder
    assert len(hub) == sent


def test_a_copy_with_the_tokenizer_alone_is_no_copy_of_the_model(hub):
    folder = get(files=("tokenizer.json",), optional=("special_tokens_map.json",))
    assert not list(folder.glob("*.safetensors"))
    get()
    assert all((folder / part).is_file() for part in PARTS)


def test_a_copy_that_lacks_a_part_is_completed(hub):
    (get() / PARTS[1]).unlink()
    assert (get() / PARTS[1]).is_file()


def test_without_copy_and_network_the_command_is_shown(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    command = f"hf download {REPO} --revision {REVISION} --include '*.json' --include '*.safetensors'"
    with pytest.raises(MachineError, match=rf"backbone\.repo: cannot fetch {REPO} at {REVISION}") as error:
        get()
    assert command in str(error.value)


@pytest.mark.parametrize(("repo", "revision"), [(REPO, "6" * 40), ("team/absent", REVISION)])
def test_what_the_hub_does_not_have_is_a_mistake_in_the_parameters(hub, repo, revision):
    with pytest.raises(ConfigError, match=f"backbone.repo: the hub has no commit {revision} of {repo}, or hides it"):
        fetch(repo, revision, path="backbone.repo")


def test_a_name_that_is_none(hub):
    with pytest.raises(ConfigError, match=r"backbone\.repo: 'a/b/c' is no name of a hub repository"):
        fetch("a/b/c", REVISION, path="backbone.repo")
