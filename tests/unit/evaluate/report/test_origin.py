"""The picture of what a report was made from: every box and every line of it, and that it can be read at both widths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mlembed_core.artifacts import CONTROLS
from mlembed_core.evaluate.report.origin import Made, Origin, picture
from mlembed_core.evaluate.report.pictures import NARROW, WIDE, svg

SHARED = {"tokenizer": "a" * 64, "cache": "b" * 64}
ORIGIN = Origin(
    sources=tuple(f"collection_{number}" for number in range(159)),
    models={
        "baseline": Made("1" * 64, {"backbone": "c" * 64, **SHARED}),
        "3d": Made("2" * 64, {**SHARED, "backbone": "d" * 64}),  # from another backbone
    },
    tables={("baseline", "mine"): "3" * 64, ("3d", "mine"): "4" * 64, (CONTROLS, "mine"): "5" * 64},
)


def boxes(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_text()]


def lines(figure: Figure) -> list[tuple[Any, Any]]:
    arrows: Iterator[Any] = (text for text in figure.axes[0].texts if getattr(text, "arrow_patch", None) is not None)
    return [(arrow.xyann, arrow.xy) for arrow in arrows]


def test_each_input_is_one_box_whoever_was_made_from_it() -> None:
    words = boxes(picture(ORIGIN)(WIDE, titled=False))
    assert "159 sources" in words
    assert "collection_158" in " ".join(words)
    assert [words.count(name) for name in ("Tokenizer", "Training cache", "Backbone", "baseline", "3d")] == [1, 1, 2, 1, 1]
    assert {"cccccccc", "dddddddd", "11111111", "mine 44444444", "scores/controls"} <= set(words)


def test_lines_tell_what_was_made_from_what() -> None:
    # Sources to tokenizer and cache; three inputs to each model; each model to its scores. The controls have no model.
    assert len(lines(picture(ORIGIN)(WIDE, titled=False))) == 2 + 2 * 3 + 2


def test_all_words_stay_inside_of_the_picture_at_both_widths() -> None:
    for width in (WIDE, NARROW):
        figure = picture(ORIGIN)(width, titled=False)
        renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
        for text in figure.axes[0].texts:
            if text.get_text():
                extent = text.get_window_extent(renderer)
                assert extent.x0 >= 0, text
                assert extent.x1 <= width * 72, text


def test_the_same_origin_is_the_same_bytes() -> None:
    first, second = (svg(picture(ORIGIN), width=WIDE, name="origin", title="t") for _ in range(2))
    assert first == second
    assert "mine 44444444" in first
