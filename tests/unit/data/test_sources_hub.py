"""Files of a dataset of the hub: from a mirror, from the hub's own cache, fetched with resume, or missing with the command to run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlembed_core.config.data import HubOrigin
from mlembed_core.data.sources.hub import find_hub
from mlembed_core.errors import ConfigError, DataError, MachineError
from tests.mini_hub import mini_hub

REPO = "team/pairs"
OLD, NEW = "1" * 40, "2" * 40
CARD = "---\nlicense: cc-by-4.0\nlanguage: [en]\n---\n# Pairs\n"


def origin(*files: Any, revision: str | None = None) -> HubOrigin:
    return HubOrigin(type="hub", repo=REPO, revision=revision, files=list(files))


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """The hub's side: two revisions, the newer one with a file more."""
    root = tmp_path / "hub"
    for revision, names in ((OLD, ["a_en"]), (NEW, ["a_en", "a_fr", "deep/b"])):
        for name in names:
            path = root / REPO / revision / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            numbers = np.random.default_rng(5).integers(0, 2**60, size=4000).astype(str)
            pq.write_table(pa.table({"query": numbers, "passage": [f"p {revision[:1]} {name} {n}" for n in numbers]}), path)
        (root / REPO / revision / "README.md").write_text(CARD)
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This machine's mirror, and no hub to be reached."""
    from huggingface_hub import constants

    monkeypatch.setenv("MLEMBED_DATASETS", str(tmp_path / "here"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "here"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_what_was_fetched_once_is_found_without_a_network_and_keeps_its_revision(hub: Path, here: Path, online: None) -> None:
    asked: list[str] = []
    with mini_hub(hub, asked=asked) as endpoint:
        first = find_hub("mine", origin("a_*.parquet"), endpoint=endpoint)
    assert (first.revision, first.licence, first.fetched) == (NEW, "cc-by-4.0", True)
    assert [file.shown for file in first.files] == ["a_en.parquet", "a_fr.parquet"]
    assert sorted(asked) == ["README.md@0", "a_en.parquet@0", "a_fr.parquet@0"]
    assert (here / REPO / NEW / "a_fr.parquet").read_bytes() == (hub / REPO / NEW / "a_fr.parquet").read_bytes()
    again = find_hub("mine", origin("a_*.parquet"))  # the server is gone
    assert (again.revision, again.fetched, again.files) == (NEW, False, first.files)


def test_a_pinned_revision_is_what_is_fetched(hub: Path, online: None) -> None:
    with mini_hub(hub) as endpoint:
        assert find_hub("mine", origin("a_*.parquet", revision=OLD), endpoint=endpoint).revision == OLD
        with pytest.raises(ConfigError, match=r"sources\.mine: the hub has no dataset team/pairs at 3333"):
            find_hub("mine", origin("a_*.parquet", revision="3" * 40), endpoint=endpoint)


def test_a_broken_download_goes_on_with_the_files_that_are_missing(hub: Path, here: Path, online: None) -> None:
    asked: list[str] = []
    (hub / REPO / NEW / "a_fr.parquet").write_bytes(bytes(300_000))  # longer than the others
    with mini_hub(hub, asked=asked, breaks_after=200_000) as endpoint:
        with suppress(MachineError):  # or the library tries again by itself
            find_hub("mine", origin("a_*.parquet"), endpoint=endpoint)
        copy = find_hub("mine", origin("a_*.parquet"), endpoint=endpoint)
    assert [path.partition("@")[0] for path in asked] == ["README.md", "a_en.parquet", "a_fr.parquet", "a_fr.parquet"]
    assert [file.path.read_bytes() for file in copy.files] == [(hub / REPO / NEW / file.shown).read_bytes() for file in copy.files]


def test_half_a_download_does_not_pass_for_a_whole_one(hub: Path, here: Path, online: None) -> None:
    with mini_hub(hub) as endpoint:
        find_hub("mine", origin("a_*.parquet"), endpoint=endpoint)
        (here / REPO / NEW / "a_fr.parquet").unlink()
        assert find_hub("mine", origin("a_*.parquet"), endpoint=endpoint).fetched


def test_a_mirror_that_was_carried_here_will_do_and_patterns_without_a_slash_look_in_every_folder(hub: Path, here: Path) -> None:
    (hub / REPO / NEW).rename(hub / NEW)
    (here / REPO).mkdir(parents=True)
    (hub / NEW).rename(here / REPO / NEW)
    files = [{"path": "b.parquet", "languages": ["fra"]}, "a_en.parquet"]
    copy = find_hub("mine", origin(*files), languages=["eng"])
    assert [(file.shown, file.language) for file in copy.files] == [("a_en.parquet", "eng"), ("deep/b.parquet", "fra")]


def test_the_cache_of_the_hub_s_own_library_will_do(hub: Path, tmp_path: Path) -> None:
    snapshots = tmp_path / "hf" / "datasets--team--pairs" / "snapshots"
    snapshots.mkdir(parents=True)
    (hub / REPO / OLD).rename(snapshots / OLD)
    assert find_hub("mine", origin("a_en.parquet")).revision == OLD


def test_several_revisions_and_none_named(hub: Path, here: Path) -> None:
    here.mkdir()
    (hub / "team").rename(here / "team")
    with pytest.raises(ConfigError, match=rf"sources\.mine\.origin\.revision is null, and .* holds several revisions: {OLD}, {NEW}"):
        find_hub("mine", origin("a_en.parquet"))
    assert find_hub("mine", origin("a_fr.parquet")).revision == NEW  # only one has it


def test_without_a_network_one_message_says_what_is_missing_and_what_fetches_it(here: Path) -> None:
    with pytest.raises(MachineError) as caught:
        find_hub("mine", origin("a_*.parquet", "b.parquet"))
    message = str(caught.value)
    for part in (
        "team/pairs",
        "a_*.parquet, b.parquet",
        str(here),
        "`mlembed source mine`",
        "`mlembed prefetch --sources --mirror DIR`",
        "MLEMBED_DATASETS=DIR",
    ):
        assert part in message


def test_a_pattern_that_stands_for_nothing_names_what_is_near(hub: Path, online: None) -> None:
    message = r"sources\.mine\.origin\.files: team/pairs at 2+ has no file 'a_enn\.parquet'; near to it: a_en\.parquet"
    with mini_hub(hub) as endpoint, pytest.raises(DataError, match=message):
        find_hub("mine", origin("a_enn.parquet"), endpoint=endpoint)
