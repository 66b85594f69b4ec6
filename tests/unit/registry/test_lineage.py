"""From a version back to the sources, by hashes; and what `--check` tells of what is no longer so."""

import shutil
from pathlib import Path

import pytest

from mlembed_core.artifacts import Workspace, write_json, write_manifest
from mlembed_core.errors import ArtifactError, RegistryError
from mlembed_core.registry.dvc_record import dvc_directory_md5
from mlembed_core.registry.lineage import Place, Store, lineage
from mlembed_core.registry.register import register
from tests.unit.registry.conftest import make_workspace, write_model


@pytest.fixture
def house(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A registered model with a chain of manifests down to one source."""
    workspace = make_workspace(tmp_path / "clone", mlflow_database)
    source, corpus = workspace.sources / "names", workspace.corpora / "names"
    for folder in (source, corpus):
        folder.mkdir(parents=True)
        (folder / "rows.parquet").write_text(folder.parent.name)
    write_manifest(source, stage="source@names", params={}, counts={"rows": 3}, details={"licences": ["Unicode-3.0"]})
    write_manifest(workspace.tokenizer, stage="tokenizer", params={}, inputs={"source@names": source})
    write_manifest(corpus, stage="tokenize@names", params={}, inputs={"source@names": source, "tokenizer": workspace.tokenizer})
    write_manifest(workspace.cache, stage="cache", params={}, inputs={"tokenize@names": corpus, "tokenizer": workspace.tokenizer})
    write_model(workspace, "3d")
    monkeypatch.chdir(workspace.root)
    register(workspace, ["3d"])
    return workspace


def by_item(found):
    return {out.item: out for out in found.outs}


def test_from_the_alias_to_the_licence(house):
    found = lineage("models:/house@candidate-3d", house)
    assert (found.name, found.version, found.setting, found.aliases) == ("house", "1", "3d", ("candidate-3d",))
    assert [out.item for out in found.outs] == ["train@3d", "backbone", "cache", "tokenizer", "tokenize@names", "source@names"]
    assert by_item(found)["source@names"].licences == ("Unicode-3.0",)
    assert found.licences == {"Unicode-3.0": ["names"]}
    assert "Unicode-3.0: names" in found.summary
    assert found.mermaid.count("-->") == 9
    assert {out.place for out in found.outs} == {Place.DISK}


def cached(workspace, content):
    """Put bytes into DVC's cache, as DVC does; their md5."""
    import hashlib

    md5 = hashlib.md5(content).hexdigest()
    path = workspace.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5


@pytest.mark.slow
def test_what_is_gone_from_the_disk_is_found_in_dvcs_cache(house):
    folder = house.sources / "names"
    md5 = dvc_directory_md5(folder)
    listed = [{"md5": cached(house, path.read_bytes()), "relpath": path.name} for path in sorted(folder.iterdir())]
    place = house.root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, listed)
    (house.root / "dvc.lock").write_text(
        f"schema: '2.0'\nstages:\n  source@names:\n    outs:\n    - path: data/sources/names\n      hash: md5\n      md5: {md5}\n"
    )
    assert by_item(lineage("models:/house/1", house))["source@names"].md5 == md5
    shutil.rmtree(folder)
    found = by_item(lineage("models:/house/1", house))["source@names"]
    assert (found.place, found.md5, found.licences) == (Place.CACHE, md5, ("Unicode-3.0",))
    shutil.rmtree(house.root / ".dvc")
    found = by_item(lineage("models:/house/1", house, check=True))["source@names"]
    assert (found.place, found.md5) == (Place.NOWHERE, None)


def test_a_check_names_every_file_that_changed(house):
    assert lineage("models:/house/1", house, check=True).problems == ()
    (house.sources / "names" / "rows.parquet").write_text("sources?")
    (house.cache / "file").unlink()
    problems = lineage("models:/house/1", house, check=True).problems
    assert len(problems) == 2
    assert any("data/cache/file is missing" in line for line in problems)
    assert any("rows.parquet has 8 bytes" in line for line in problems)


@pytest.mark.slow  # a registration
def test_other_outs_than_the_versions_are_not_taken_for_its_own(house):
    write_manifest(house.cache, stage="cache", params={"other": 1})
    found = by_item(lineage("models:/house/1", house))
    assert found["cache"].place is Place.NOWHERE
    assert "tokenize@names" not in found


@pytest.mark.parametrize("item", ["source@../../etc", "source@/etc", "train@..", "passwd", "source@a/b"])
def test_a_manifest_cannot_lead_out_of_the_workspace(tmp_path, item):
    with pytest.raises(ArtifactError, match="is no item of the pipeline"):
        Store(Workspace(tmp_path), None).path(item)


@pytest.mark.parametrize("ref", ["house", "models:/house", "models:/../x/1", "models:/house/1/../2"])
def test_what_is_no_version_is_told(tmp_path, ref):
    with pytest.raises(RegistryError, match="is no registered version"):
        lineage(ref, Workspace(tmp_path))
