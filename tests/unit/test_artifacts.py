"""Outs appear whole or not at all, and manifests tell when a byte changed."""

import errno
import json

import pytest

from mlembed_core.artifacts import Workspace, manifest_hash, read_manifest, verify_files, write_manifest, writing
from mlembed_core.errors import ArtifactError, MachineError


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def make(workspace, target, text="one"):
    with writing(workspace, target) as draft:
        (draft / "a.txt").write_text(text)
        write_manifest(draft, stage="test", params={"x": 1}, counts={"rows": 3})


def test_a_failed_stage_leaves_the_earlier_out_and_no_scratch(workspace):
    target = workspace.root / "data" / "out"
    make(workspace, target)
    with pytest.raises(RuntimeError), writing(workspace, target) as draft:
        (draft / "a.txt").write_text("half")
        raise RuntimeError
    assert (target / "a.txt").read_text() == "one"
    assert list((workspace.work / "tmp").iterdir()) == []


def test_an_out_is_replaced_whole(workspace):
    target = workspace.root / "data" / "out"
    make(workspace, target)
    (target / "left-over").write_text("")
    make(workspace, target, "two")
    assert sorted(path.name for path in target.iterdir()) == ["a.txt", "manifest.json"]


def test_single_files_are_written_whole_too(workspace):
    target = workspace.root / "scores" / "x.json"
    with writing(workspace, target) as draft:
        draft.write_text("1")
    assert target.read_text() == "1"


def test_a_full_disk_is_told_with_the_path_and_harms_nothing(workspace):
    target = workspace.root / "data" / "out"
    make(workspace, target)
    with pytest.raises(MachineError, match="no space left on the disk while writing .*out.*MiB free"), writing(workspace, target):
        raise OSError(errno.ENOSPC, "No space left on device")
    verify_files(target)


def test_equal_content_gives_equal_manifests_anywhere(tmp_path):
    hashes = []
    for place in ("here", "there/deeper"):
        workspace = Workspace(tmp_path / place)
        make(workspace, workspace.root / "out")
        hashes.append(manifest_hash(workspace.root / "out"))
    assert hashes[0] == hashes[1]


def test_every_damage_is_found_and_named(workspace):
    target = workspace.root / "out"
    make(workspace, target)
    verify_files(target)
    file = target / "a.txt"
    for damage, message in (
        (lambda: file.write_text("two"), "other SHA-256"),
        (lambda: file.write_text("longer"), "6 bytes"),
        (file.unlink, "missing"),
    ):
        damage()
        with pytest.raises(ArtifactError, match=message) as caught:
            verify_files(target)
        assert "a.txt" in str(caught.value)


def test_missing_damaged_and_foreign_manifests_are_refused(workspace):
    target = workspace.root / "out"
    with pytest.raises(ArtifactError, match="`mlembed cache` makes it"):
        read_manifest(target, made_by="mlembed cache")
    make(workspace, target)
    (target / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        read_manifest(target)
    (target / "manifest.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(ArtifactError, match="schema version 99"):
        read_manifest(target)


def test_a_workspace_is_found_from_below_and_missed_with_advice(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "params.yaml").write_text("")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert Workspace.find().root == tmp_path
    with pytest.raises(ArtifactError, match="no workspace here"):
        Workspace.find(tmp_path.parent)
