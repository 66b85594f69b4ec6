"""The pictures: sizes, that labels keep apart, and that the SVG fits into a page."""

from __future__ import annotations

import re
import struct
from itertools import pairwise

import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.evaluate.report import pictures
from mlembed_core.evaluate.report.pictures import NARROW, WIDE, frontier, losses, png, retention, smoothed, spread, svg
from mlembed_core.evaluate.report.read import Curve
from mlembed_core.evaluate.report.summarise import Cost, Report

CURVES = {"baseline": (Curve((0, 10, 20), (3.0, 2.0, 1.5)), Curve((0, 20), (2.0, 1.0)))}


@pytest.fixture(scope="module")
def found(finished: Workspace) -> Report:
    return Report.load(finished.reports / "report.json")


def test_pngs_are_sharp_at_a_readme_width(finished: Workspace) -> None:
    for name in ("frontier.png", "retention.png", "loss.png"):
        content = (finished.reports / name).read_bytes()
        width, height = struct.unpack(">II", content[16:24])
        assert (content[:8], width) == (b"\x89PNG\r\n\x1a\n", 1600)
        assert 500 < height < 1600


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("cost", list(Cost))
def test_every_submodel_is_a_point_with_a_tooltip(found: Report, cost: Cost, width: float) -> None:
    text = svg(frontier(found.suites, cost), width=width, name="a", title="b")
    keys = re.findall(r'class="point" data-key="([^"]+)"><title>([^<]+)</title>', text)
    assert sorted(key for key, _ in keys) == sorted(f"{item.setting}/{item.name}" for item in found.suites[0].submodels)
    assert ("3d/l1-d4-r16", "3d, 1 layer · dim 4: 0.400, 100 % kept, 600 B, 100 FLOP/token, 16 B/vector") in keys


def test_what_carries_meaning_is_written_in_the_picture(found: Report) -> None:
    text = svg(frontier(found.suites), width=WIDE, name="a", title="b")
    words = re.findall(r"<text[^>]*>([^<]+)</text>", text)
    for label in ("average of 2 tasks", "baseline 0.500", "3d 0.450", "char TF-IDF 0.525", "untrained 0.250", "1 layer", "uncut"):
        assert label in words
    assert not any("BM25" in word for word in words)  # it has no average to draw


def test_retention_starts_with_what_is_left_at_the_deepest_cut(found: Report) -> None:
    words = re.findall(r"<text[^>]*>([^<]+)</text>", svg(retention(found.suites), width=WIDE, name="a", title="b"))
    for label in ("50 %", "88 %", "70 %", "112 %", "40 %", "75 %"):  # dim 4, layers 1, rank 4; baseline, then 3d
        assert label in words


def test_svgs_need_nothing_from_outside_and_do_not_clash(found: Report) -> None:
    first, second = (svg(frontier(found.suites), width=WIDE, name=name, title="b") for name in ("one", "two"))
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for text, known in zip((first, second), ids, strict=True):
        assert "http" not in text
        assert "xlink" not in text  # its namespace would have to be declared
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', text)) <= known
        assert not re.findall(r"#[0-9a-f]{6}\b", text)  # every colour follows the page's theme
    assert second == first.replace("one-", "two-")


def test_no_cut_and_no_validation_make_pictures_too(found: Report) -> None:
    bare = found.suites[0].model_copy(
        update={
            "settings": [
                setting.model_copy(update={"submodels": [item for item in setting.submodels if item.full]})
                for setting in found.suites[0].settings
            ],
            "controls": [],
        }
    )
    assert "no submodel is cut" in svg(retention([bare]), width=WIDE, name="a", title="b")
    assert png(frontier([bare]))[:4] == b"\x89PNG"
    assert png(losses({"a": (Curve((1,), (2.0,)), Curve((), ()))}))[:4] == b"\x89PNG"
    assert png(losses({"a": (Curve((), ()), Curve((), ()))}))[:4] == b"\x89PNG"


def test_two_suites_share_one_picture(found: Report) -> None:
    both = [found.suites[0], found.suites[0].model_copy(update={"name": "another"})]
    text = svg(frontier(both), width=WIDE, name="a", title="b")
    assert "small: average of 2 tasks" in text
    assert "another: average of 2 tasks" in text
    assert "another: Fewer layers" in svg(retention(both), width=NARROW, name="a", title="b")


def test_spread_moves_labels_as_little_as_possible() -> None:
    assert spread([0.0, 50.0, 100.0], 10.0) == [0.0, 50.0, 100.0]
    assert spread([0.0, 0.0], 10.0) == [-5.0, 5.0]
    assert spread([0.0, 4.0, 5.0, 100.0], 10.0) == pytest.approx([-7.0, 3.0, 13.0, 100.0])
    assert all(after - before >= 10 - 1e-9 for before, after in pairwise(spread([1.0, 2.0, 3.0, 12.0, 13.0], 10.0)))


def test_smoothing_keeps_a_constant_and_the_length() -> None:
    assert smoothed([2.0] * 100) == pytest.approx([2.0] * 100)
    assert smoothed([1.0, 2.0, 3.0]) == pytest.approx([1.5, 2.0, 2.5])


def test_settings_differ_in_colour_and_in_marker() -> None:
    looks = [pictures.look(index) for index in range(6)]
    assert len({colour for colour, _ in looks}) == len({marker for _, marker in looks}) == 6
