"""What a report was made from: sources, tokenizer, training cache, backbone, models, score tables; their hashes, and a picture of them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from mlembed_core.artifacts import CONTROLS
from mlembed_core.evaluate.report.pictures import FAINT, INK, MUTED, PAPER, Picture, look

SHORT = 8  # digits of a hash that people see
LINE, GAP, PAD = 0.15, 0.36, 0.07  # inches: of text, between rows of boxes, inside a box
LETTERS_PER_INCH = 15  # at 8 points, about
ARROW: Any = {"arrowstyle": "->", "color": FAINT, "shrinkA": 0, "shrinkB": 0}
ORDER = ("tokenizer", "cache", "backbone")  # a model's inputs from left to right; others (a teacher) behind
TITLES = {"tokenizer": "Tokenizer", "cache": "Training cache", "backbone": "Backbone"}


@dataclass(frozen=True)
class Made:
    """A model's manifest.

    Attributes:
        digest: its hash.
        inputs: item → hash of that one's manifest.
    """

    digest: str
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Origin:
    """What a report was made from.

    Attributes:
        sources: names.
        models: by setting.
        tables: (setting or ``controls``, suite) → hash of the score table.
    """

    sources: tuple[str, ...] = ()
    models: Mapping[str, Made] = field(default_factory=dict)
    tables: Mapping[tuple[str, str], str] = field(default_factory=dict)

    @property
    def table_hashes(self) -> dict[str, str]:
        """Path → hash."""
        return {f"scores/{owner}/{suite}.parquet": digest for (owner, suite), digest in self.tables.items()}

    @property
    def hashes(self) -> dict[str, str]:
        """Path → hash, models first."""
        return {f"models/{setting}": made.digest for setting, made in self.models.items()} | self.table_hashes


@dataclass(frozen=True)
class _Box:
    lines: tuple[str, ...]
    above: tuple[int, ...]  # which boxes of the row before it was made from
    colour: str = FAINT


def picture(origin: Origin) -> Picture:
    """Rows of boxes, from the sources down to the score tables; lines tell which was made from which."""

    def draw(width: float, *, titled: bool) -> Figure:
        rows = [row for row in _rows(origin, width) if row]
        heights = [max(len(box.lines) for box in row) * LINE + 2 * PAD for row in rows]
        head = 0.3 if titled else 0.0
        total = sum(heights) + GAP * (len(rows) - 1) + head + 0.1
        figure = Figure(figsize=(width, total), dpi=72)
        if titled:
            figure.text(0.1 / width, 1 - 0.1 / total, "What it was made from", size=10.5, weight="bold", va="top")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, width)
        axes.set_ylim(0, total)
        top = total - head - 0.03
        before: list[float] = []  # the middles of the boxes above
        for row, height in zip(rows, heights, strict=True):
            cell = (width - 0.1) / len(row)
            middles = [0.05 + (index + 0.5) * cell for index in range(len(row))]
            for box, middle in zip(row, middles, strict=True):
                for index in box.above:
                    axes.annotate("", (middle, top), (before[index], top + GAP), arrowprops=ARROW)
                _draw_box(axes, box, middle - cell / 2 + 0.05, top - height, cell - 0.1, height)
            top, before = top - height - GAP, middles
        return figure

    return draw


def _rows(origin: Origin, width: float) -> Iterator[list[_Box]]:
    names = textwrap.wrap(", ".join(origin.sources), int((width - 0.3) * LETTERS_PER_INCH))
    count = len(origin.sources)
    yield [_Box((f"{count} source{'s' if count != 1 else ''}", *names), ())]
    inputs = _inputs(origin)
    yield [_Box((TITLES.get(item, item), digest[:SHORT]), () if item == "backbone" else (0,)) for item, digest in inputs]
    places = {key: index for index, key in enumerate(inputs)}
    models = list(origin.models.items())
    yield [
        _Box((setting, made.digest[:SHORT]), tuple(places[item] for item in made.inputs.items()), look(index)[0])
        for index, (setting, made) in enumerate(models)
    ]
    scores = []
    for index, owner in enumerate([*origin.models, CONTROLS]):
        tables = [f"{suite} {digest[:SHORT]}" for (who, suite), digest in origin.tables.items() if who == owner]
        above = (index,) if owner != CONTROLS else ()
        scores.append(_Box((f"scores/{owner}", *tables), above, look(index)[0] if above else FAINT))
    yield scores


def _inputs(origin: Origin) -> list[tuple[str, str]]:
    """What the models were made from, each once."""
    found = dict.fromkeys(item for made in origin.models.values() for item in made.inputs.items())
    return sorted(found, key=lambda item: (ORDER.index(item[0]) if item[0] in ORDER else len(ORDER), item))


def _draw_box(axes: Axes, box: _Box, left: float, bottom: float, width: float, height: float) -> None:
    shape = "round,pad=0,rounding_size=0.05"
    axes.add_patch(FancyBboxPatch((left, bottom), width, height, boxstyle=shape, facecolor=PAPER, edgecolor=box.colour, linewidth=1.0))
    for number, line in enumerate(_fitting(box.lines, width)):
        y = bottom + height - PAD - (number + 0.5) * LINE
        weight, colour = ("bold", INK) if number == 0 else ("normal", MUTED)
        axes.text(left + width / 2, y, line, ha="center", va="center", weight=weight, color=colour, size=8)


def _fitting(lines: Sequence[str], width: float) -> list[str]:
    """The lines, those that are too long for their box shortened."""
    letters = max(6, int(width * LETTERS_PER_INCH))
    return [line if len(line) <= letters else f"{line[: letters - 1]}…" for line in lines]
