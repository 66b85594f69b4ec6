"""The report's pictures: quality against cost, what a cut along each axis keeps, and the losses.

Each picture is drawn by one function, twice over: as PNG for READMEs and runs, and as SVG for the page, where the colours are CSS
variables (so that it follows the reader's light or dark theme) and every point says in a tooltip what it is. The bytes depend on the
numbers alone: no user's matplotlibrc, dates, versions or random ids get in.

Colours follow Okabe and Ito's, which differ for colour-blind readers too; each setting also has a marker of its own. Lengths are in
points (1/72 inch) unless they say otherwise.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, Protocol

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import OffsetFrom
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from mlembed_core.evaluate.report import wording
from mlembed_core.evaluate.report.read import Curve
from mlembed_core.evaluate.report.summarise import Cost, SettingSummary, SubmodelSummary, SuiteSummary, pareto_line, whole_controls

# Stand-ins for the page's CSS variables: each value means one thing in a picture, so that it can be swapped in the SVG.
PAPER, INK, MUTED, RULE, FAINT = "#fefefe", "#1b1f24", "#57606a", "#e3e6ea", "#8c959f"
SETTING_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b5569a", "#a87900", "#444c56")
MARKERS = ("s", "o", "D", "^", "v", "P")
CSS_NAMES = {PAPER: "paper", INK: "ink", MUTED: "muted", RULE: "rule", FAINT: "faint"} | {
    colour: f"setting-{index}" for index, colour in enumerate(SETTING_COLOURS)
}

WIDE, NARROW = 8.0, 4.1  # inches: a README column, a phone
MARGIN = 0.1  # inches left of titles
PNG_DPI = 200  # 1600 pixels for the 800 of a README: sharp on a dense screen
MAX_LABELS = 8  # points named in one panel; more cannot be read
ROUND_STEPS = (1, 2, 2.5, 5, 10)
MANY_POINTS = 40  # of one setting; past that, those off the Pareto line step back
LINE_GAP = 11.0  # between labels in the right margin
AXIS_TITLES = {"dim": "Shorter vectors (dim)", "rank": "Smaller token table (rank)", "layers": "Fewer layers"}
COST_TITLES = {
    Cost.BYTES: ("size on disk", "weights on disk (fp32)"),
    Cost.FLOPS: ("compute", "compute of a forward pass, per token"),
    Cost.VECTOR: ("index size", "one vector in the index (fp32)"),
}
STYLE: Any = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same glyphs on every machine
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8.0,
    "axes.labelpad": 5.0,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "xtick.labelcolor": MUTED,
    "xtick.labelsize": 8.0,
    "xtick.major.size": 3.0,
    "ytick.labelcolor": MUTED,
    "ytick.labelsize": 8.0,
    "ytick.major.size": 0.0,
    "text.color": INK,
    "text.parse_math": False,
    "figure.facecolor": PAPER,
    "savefig.facecolor": "auto",
    "svg.fonttype": "none",  # text stays text: set in the page's own font, selectable
    "svg.hashsalt": "mlembed",
}


class Picture(Protocol):
    """Draws itself at a width in inches; without its title where the page has a heading already."""

    def __call__(self, width: float, *, titled: bool) -> Figure: ...


def png(picture: Picture) -> bytes:
    """The picture as PNG: 1600 pixels wide, on white."""
    with _style():
        buffer = io.BytesIO()
        picture(WIDE, titled=True).savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
        return buffer.getvalue()


def svg(picture: Picture, *, width: float, name: str, title: str) -> str:
    """The picture as an ``<svg>`` element to stand inside a page, its colours CSS variables.

    Args:
        width: in inches, :data:`WIDE` or :data:`NARROW`.
        name: unique in the page; prefixes all ids.
        title: what a screen reader says.
    """
    with _style():
        buffer = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        picture(width, titled=False).savefig(buffer, format="svg", metadata=metadata, transparent=True)
    return _for_page(buffer.getvalue(), name, title)


@contextmanager
def _style() -> Iterator[None]:
    """Matplotlib's own defaults and ours; what a user's matplotlibrc says stays outside."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _for_page(text: str, name: str, title: str) -> str:
    """Matplotlib's SVG file as an element of an HTML page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    viewbox = re.search(r'viewBox="[^"]*"', text)
    assert viewbox is not None  # matplotlib always writes one
    text = f'<svg {viewbox[0]} role="img" aria-label="{title}">' + text[text.index(">") + 1 :]
    text = re.sub(r'<g id="point\|([^|"]*)\|([^"]*)">', r'<g class="point" data-key="\1"><title>\2</title>', text)
    text = re.sub(r'<g id="[^"]*"(/?)>', r"<g\1>", text)  # names like "axes_1" mean nothing to a reader
    text = re.sub(r'id="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"#(m|p|image|clip)([0-9a-f]{8,})", rf"#{name}-\1\2", text)
    text = text.replace("font-family: 'DejaVu Sans'", "font-family: var(--sans)")
    for colour, variable in CSS_NAMES.items():
        text = text.replace(colour, f"var(--{variable})")
    return text


def frontier(suites: Sequence[SuiteSummary], cost: Cost = Cost.BYTES) -> Picture:
    """Quality against a cost, one panel per suite.

    Every submodel is a point. Each setting's line steps through its best submodels at or below a cost; filled points are on the Pareto
    line of all settings together and are named. Dashed lines are controls, which have no cost on this scale.
    """

    def draw(width: float, *, titled: bool) -> Figure:
        grid = _Grid(width, rows=len(suites), height=3.9 if width > NARROW else 3.3, right=1.5 if width > NARROW else 1.28)
        subject, _ = COST_TITLES[cost]
        note = "each point a submodel; filled: nothing smaller is as good" if cost is Cost.BYTES else "each point a submodel"
        figure, panels = grid.figure(f"Quality against {subject}" if titled else "", note)
        for axes, suite in zip(panels, suites, strict=True):
            _draw_frontier(axes, suite, cost, titled=len(suites) > 1)
        return figure

    return draw


def retention(suites: Sequence[SuiteSummary]) -> Picture:
    """The share of the uncut average that is left when one axis is cut and the others are whole; one row per suite."""
    cuts = [axis for axis in AXIS_TITLES if any(_cut_along(setting, axis) for suite in suites for setting in suite.settings)]

    def draw(width: float, *, titled: bool) -> Figure:
        columns = max(len(cuts), 1) if width > NARROW else 1
        rows = len(suites) * max(len(cuts), 1) // columns
        grid = _Grid(width, rows=rows, columns=columns, height=2.1, right=0.2, left=0.55, key=True)
        figure, panels = grid.figure("What is left of the score after a cut" if titled else "", "average, in percent of the uncut model's")
        names = list(dict.fromkeys(setting.name for suite in suites for setting in suite.settings))
        _draw_key(figure, names, below=0.56 if titled else 0.12)
        for axes, (suite, axis) in zip(panels, [(suite, axis) for suite in suites for axis in cuts or [""]], strict=True):
            _draw_retention(axes, suite, axis, named=len(suites) > 1)
        return figure

    return draw


def losses(curves: Mapping[str, tuple[Curve, Curve]]) -> Picture:
    """Training and validation loss by step, per setting, from its (loss, validation) curves."""
    validated = any(validation.steps for _, validation in curves.values())

    def draw(width: float, *, titled: bool) -> Figure:
        columns = 2 if validated and width > NARROW else 1
        rows = 2 if validated and width <= NARROW else 1
        grid = _Grid(width, rows=rows, columns=columns, height=2.3, right=0.9, left=0.45)
        note = "validation is of the full model: one term, the same for every setting" if validated else ""
        figure, panels = grid.figure("Loss" if titled else "", note)
        _draw_losses(panels[0], {name: loss for name, (loss, _) in curves.items()}, "Training (own objective)", smooth=True)
        if validated:
            _draw_losses(panels[1], {name: loss for name, (_, loss) in curves.items()}, "Validation (full model)", smooth=False)
        return figure

    return draw


@dataclass(frozen=True)
class _Grid:
    """Panels at fixed places; all lengths in inches, so that labels can be placed before anything is drawn."""

    width: float
    rows: int
    height: float
    columns: int = 1
    left: float = 0.5
    right: float = 0.2
    above: float = 0.3  # of a panel: its title
    below: float = 0.5  # of a panel: its axis
    key: bool = False

    def figure(self, title: str, note: str) -> tuple[Figure, list[Axes]]:
        head = (0.42 if title else 0.02) + (0.24 if self.key else 0.0)
        total = head + self.rows * (self.above + self.height + self.below)
        figure = Figure(figsize=(self.width, total), dpi=72)
        if title:
            figure.text(MARGIN / self.width, 1 - 0.1 / total, title, size=10.5, weight="bold", va="top")
            figure.text(MARGIN / self.width, 1 - 0.29 / total, note, size=8, color=MUTED, va="top")
        panels = []
        cell = self.width / self.columns
        for index in range(self.rows * self.columns):
            row, column = divmod(index, self.columns)
            bottom = total - head - (row + 1) * (self.above + self.height + self.below) + self.below
            box = (column * cell + self.left, bottom, cell - self.left - self.right, self.height)
            panels.append(figure.add_axes((box[0] / self.width, box[1] / total, box[2] / self.width, box[3] / total)))
        return figure, panels


def _renderer(figure: Figure) -> RendererAgg:
    """What measures text, at the figure's 72 dots per inch: points."""
    renderer: RendererAgg = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]  # a gap of matplotlib's
    return renderer


def look(index: int) -> tuple[str, str]:
    """Colour and marker of the n-th setting, in every picture."""
    return SETTING_COLOURS[index % len(SETTING_COLOURS)], MARKERS[index % len(MARKERS)]


def _draw_frontier(axes: Axes, suite: SuiteSummary, cost: Cost, *, titled: bool) -> None:
    _, label = COST_TITLES[cost]
    controls = [control for control in whole_controls(suite) if control.average is not None]
    costs = [submodel.cost(cost) for submodel in suite.submodels]
    averages = [submodel.average for submodel in suite.submodels] + [control.average or 0.0 for control in controls]
    _log_scale(axes, costs, cost)
    room = max(max(averages) - min(averages), 0.02)
    axes.set_ylim(min(averages) - 0.06 * room, max(averages) + 0.08 * room)
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.2f}"))
    axes.set_xlabel(label)
    title = f"average of {len(suite.tasks)} tasks" if len(suite.tasks) > 1 else wording.task(suite.tasks[0].name)
    axes.set_title(f"{suite.name}: {title}" if titled else title, color=MUTED, weight="normal", size=8, x=-0.02 if titled else 0)
    ends = []
    for control in controls:
        assert control.average is not None
        axes.axhline(control.average, color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1.5)
        ends.append(_End(control.average, f"{wording.control(control)} {wording.score(control.average)}", MUTED))
    for index, setting in enumerate(suite.settings):
        colour, _ = look(index)
        line = pareto_line(setting.submodels, cost)
        right = axes.get_xlim()[1]
        axes.step(
            [*(item.cost(cost) for item in line), right],
            [*(item.average for item in line), line[-1].average],
            where="post",
            color=colour,
            linewidth=1.5,
            zorder=2,
        )
        ends.append(_End(line[-1].average, f"{setting.name} {wording.score(line[-1].average)}", colour, bold=True))
    for index, setting in enumerate(suite.settings):
        _draw_points(axes, setting, index, cost)
    _label_ends(axes, ends)
    _label_points(axes, suite, cost)


def _draw_points(axes: Axes, setting: SettingSummary, index: int, cost: Cost) -> None:
    """One artist per submodel, so that each can have a tooltip: strong on the Pareto line, hollow elsewhere."""
    colour, marker = look(index)
    crowded = len(setting.submodels) > MANY_POINTS
    for submodel in setting.submodels:
        best = cost in submodel.pareto
        axes.plot(
            submodel.cost(cost),
            submodel.average,
            linestyle="none",
            marker=marker,
            markersize=6.5 if best else 3.0 if crowded else 4.5,
            alpha=0.4 if crowded and not best else 1.0,
            markerfacecolor=colour if best else PAPER,
            markeredgecolor=PAPER if best else colour,
            markeredgewidth=0.9,
            zorder=4 if best else 3,
            gid=_point_id(setting, submodel),
            clip_on=False,
        )


def _point_id(setting: SettingSummary, submodel: SubmodelSummary) -> str:
    """Becomes a tooltip in the page, see :func:`_for_page`."""
    costs = [wording.amount(submodel.cost(cost), cost) for cost in Cost]
    numbers = [wording.score(submodel.average), costs[0], f"{costs[1]}/token", f"{costs[2]}/vector"]
    if submodel.retention is not None:
        numbers.insert(1, f"{wording.percent(submodel.retention)} kept")
    return f"point|{setting.name}/{submodel.name}|{setting.name}, {wording.cut(submodel, setting.shape)}: {', '.join(numbers)}"


# Tick values within a decade, coarse to fine; the first list that gives enough ticks is taken.
TICK_STEPS: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 4, 5, 6, 8),
    tuple(step / 10 for step in range(10, 100)),
)
TICK_GAP = 36.0  # a label like "12.5 MB" and some air


def _log_scale(axes: Axes, costs: Sequence[int], cost: Cost) -> None:
    """A logarithmic x axis with a few round ticks; the values themselves where there are only a few."""
    low, high = min(costs), max(costs)
    axes.set_xscale("log")
    margin = max(high / low, 1.5) ** 0.05
    left, right = low / margin**1.6, high * margin
    axes.set_xlim(left, right)
    candidates: list[list[float]] = [sorted(map(float, set(costs)))] if len(set(costs)) <= 6 else []
    decades = [10.0**power for power in range(math.floor(math.log10(left)), math.ceil(math.log10(right)) + 1)]
    candidates += [[step * decade for decade in decades for step in steps if left <= step * decade <= right] for steps in TICK_STEPS]
    panel = axes.get_position().width * _figure(axes).get_figwidth() * 72
    points_per_factor = panel / math.log(right / left)
    kept = [_apart(ticks, TICK_GAP / points_per_factor) for ticks in candidates]
    enough = 4 if panel > 250 else 3
    ticks = next((ticks for ticks in kept if len(ticks) >= enough), max(kept, key=len))
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([wording.amount(tick, cost) for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def _apart(ticks: Sequence[float], gap: float) -> list[float]:
    """The ticks that are at least ``gap`` (in natural logarithms) from the one kept before."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or math.log(tick / kept[-1]) >= gap:
            kept.append(tick)
    return kept


def _figure(axes: Axes) -> Figure:
    figure = axes.figure
    assert isinstance(figure, Figure)  # no subfigures here
    return figure


@dataclass(frozen=True)
class _End:
    """A label in the right margin, for the line that ends there at ``height`` (in data units)."""

    height: float
    text: str
    colour: str
    bold: bool = False


@dataclass(frozen=True)
class _Start:
    """The left end of a line, in data units."""

    x: float
    height: float
    colour: str


def _heights_in_points(axes: Axes, heights: Sequence[float]) -> list[float]:
    """How far above the panel's lower edge data heights lie."""
    low, high = axes.get_ylim()
    panel = axes.get_position().height * _figure(axes).get_figheight() * 72
    return [(height - low) / (high - low) * panel for height in heights]


def _label_ends(axes: Axes, ends: Sequence[_End]) -> None:
    """Name lines where they leave the panel, moved apart as little as possible where they would collide."""
    ends = sorted(ends, key=lambda end: (end.height, end.text))
    wanted = _heights_in_points(axes, [end.height for end in ends])
    for end, place in zip(ends, spread(wanted, LINE_GAP), strict=True):
        axes.annotate(
            end.text,
            xy=(1, end.height),
            xycoords=("axes fraction", "data"),
            xytext=(10, place),
            textcoords=OffsetFrom(axes.patch, (1, 0), "points"),
            color=end.colour,
            weight="bold" if end.bold else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": end.colour, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 2, "relpos": (0, 0.5)},
        )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending ``heights`` moved, as little as possible (least squares), until neighbours are at least ``gap`` apart.

    That is isotonic regression of ``heights[i] - i * gap``: neighbours out of order are pooled at their mean.
    """
    pools: list[list[float]] = []
    for index, height in enumerate(heights):
        pools.append([height - index * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    flat = [float(np.mean(pool)) for pool in pools for _ in pool]
    return [height + index * gap for index, height in enumerate(flat)]


# Where the name of a point may stand, best first: (x, y) from the point, horizontal and vertical alignment. Up and to the left of a
# point on the Pareto line there is no other point.
LABEL_PLACES = (
    (-5, 2, "right", "bottom"),
    (0, 6, "center", "bottom"),
    (5, 2, "left", "bottom"),
    (-7, 0, "right", "center"),
    (7, -2, "left", "top"),
    (0, -6, "center", "top"),
    (-5, -3, "right", "top"),
)


def _label_points(axes: Axes, suite: SuiteSummary, cost: Cost) -> None:
    """Name the submodels on the Pareto line: in one line or several, where the name covers nothing; else where it crosses no more
    than a control's line; else not at all, the page's tooltip has it.
    """
    shapes = {setting.name: setting.shape for setting in suite.settings}
    members = pareto_line(suite.submodels, cost)
    if len(members) > MAX_LABELS:
        keep = {round(index * (len(members) - 1) / (MAX_LABELS - 1)) for index in range(MAX_LABELS)}
        members = [member for index, member in enumerate(members) if index in keep]
    renderer = _renderer(_figure(axes))
    inside = axes.get_window_extent(renderer)
    dots = [axes.transData.transform((item.cost(cost), item.average)) for item in suite.submodels]
    taken = [Bbox.from_extents(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    steps, dashes = _line_boxes(axes)
    for member in members:
        name = wording.cut(member, shapes[member.setting])
        text = axes.annotate(name, (member.cost(cost), member.average), size=7.5, zorder=5, linespacing=1.1)
        text.set_anncoords("offset points")
        words = dict.fromkeys((name, name.replace(" · ", "\n")))
        for obstacles, form, (x, y, horizontal, vertical) in product(([*taken, *steps, *dashes], [*taken, *steps]), words, LABEL_PLACES):
            text.set(text=form, position=(x, y), ha=horizontal, va=vertical)
            box = text.get_window_extent(renderer)
            if box.x0 >= inside.x0 and box.x1 <= inside.x1 and box.y1 <= inside.y1 and not any(map(box.overlaps, obstacles)):
                taken.append(box)
                break
        else:
            text.remove()


def _line_boxes(axes: Axes) -> tuple[list[Bbox], list[Bbox]]:
    """The straight pieces of the settings' lines and of the controls', as thin boxes in display units."""
    steps: list[Bbox] = []
    dashes: list[Bbox] = []
    for line in axes.get_lines():
        corners: list[list[float]] = np.asarray(line.get_transform().transform_path(line.get_path()).vertices).tolist()
        stepped = line.get_drawstyle() == "steps-post"
        if stepped:
            corners = [corner for (x0, y0), (x1, y1) in pairwise(corners) for corner in ([x0, y0], [x1, y0], [x1, y1])]
        for (x0, y0), (x1, y1) in pairwise(corners):
            box = Bbox.from_extents(min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1)
            (steps if stepped else dashes).append(box)
    return steps, dashes


def _cut_along(setting: SettingSummary, axis: str) -> list[SubmodelSummary]:
    """The submodels of ``setting`` cut along ``axis`` and along no other."""
    others = [other for other in AXIS_TITLES if other != axis]
    full = setting.shape
    return [
        submodel
        for submodel in setting.submodels
        if submodel.retention is not None
        and getattr(submodel, axis) < getattr(full, axis)
        and all(getattr(submodel, other) == getattr(full, other) for other in others)
    ]


def _draw_retention(axes: Axes, suite: SuiteSummary, axis: str, *, named: bool) -> None:
    if not axis:
        axes.text(0.5, 0.5, "no submodel is cut along one axis alone", ha="center", color=MUTED, transform=axes.transAxes)
        axes.set_axis_off()
        return
    axes.set_title((f"{suite.name}: " if named else "") + AXIS_TITLES[axis])
    sizes: set[int] = set()
    lowest: list[_Start] = []
    for index, setting in enumerate(suite.settings):
        colour, marker = look(index)
        submodels = sorted(
            [*_cut_along(setting, axis), *(submodel for submodel in setting.submodels if submodel.full)],
            key=lambda item: getattr(item, axis),
        )
        kept = [100 * (submodel.retention or 0.0) for submodel in submodels]
        at = [getattr(submodel, axis) for submodel in submodels]
        sizes |= set(at)
        axes.plot(at, kept, color=colour, linewidth=1.5, zorder=2)
        for x, y, submodel in zip(at, kept, submodels, strict=True):
            axes.plot(
                x,
                y,
                linestyle="none",
                marker=marker,
                markersize=5,
                markerfacecolor=colour,
                markeredgecolor=PAPER,
                markeredgewidth=0.8,
                zorder=3,
                gid=_point_id(setting, submodel),
                clip_on=False,
            )
        if len(kept) > 1:
            lowest.append(_Start(at[0], kept[0], colour))
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(sizes) / (max(sizes) / min(sizes)) ** 0.36, max(sizes) * (max(sizes) / min(sizes)) ** 0.06)
    # From the right, so that the full size keeps its label; a sixth of the axis holds five digits.
    gap = math.log(max(sizes) / min(sizes)) / 6
    ticks = [1 / tick for tick in _apart([1 / size for size in sorted(sizes, reverse=True)], gap)]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:.0f}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())
    everything = [
        100 * item.retention for setting in suite.settings for name in AXIS_TITLES for item in _cut_along(setting, name) if item.retention
    ]
    low, high = min([*everything, 100.0]), max([*everything, 100.0])
    axes.set_ylim(low - 0.14 * (high - low + 1), high + 0.12 * (high - low + 1))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} %"))
    axes.set_xlabel({"dim": "dimensions", "rank": "rank", "layers": "layers"}[axis])
    _label_starts(axes, lowest)


def _label_starts(axes: Axes, starts: Sequence[_Start]) -> None:
    """Say at the left end of each line what is left there; labels moved apart where they would collide."""
    starts = sorted(starts, key=lambda start: (start.height, start.colour))
    wanted = _heights_in_points(axes, [start.height for start in starts])
    for start, was, place in zip(starts, wanted, spread(wanted, LINE_GAP), strict=True):
        axes.annotate(
            f"{start.height:.0f} %",
            (start.x, start.height),
            (-6, place - was),
            textcoords="offset points",
            ha="right",
            va="center",
            color=start.colour,
            weight="bold",
            size=7.5,
        )


def _draw_key(figure: Figure, names: Sequence[str], *, below: float) -> None:
    """The settings' names in their colours, in one line that lies ``below`` inches under the upper edge."""
    width, height = figure.get_size_inches()
    renderer = _renderer(figure)
    x = MARGIN
    for index, name in enumerate(names):
        colour, marker = look(index)
        spot = Line2D([(x + 0.05) / width], [1 - (below - 0.01) / height], marker=marker, color=colour, markersize=5, markeredgecolor=PAPER)
        figure.add_artist(spot)
        text = figure.text((x + 0.14) / width, 1 - below / height, name, color=colour, weight="bold", size=8.5, va="center")
        x += 0.14 + text.get_window_extent(renderer).width / 72 + 0.22


def _draw_losses(axes: Axes, curves: Mapping[str, Curve], title: str, *, smooth: bool) -> None:
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS))
    ends = []
    for index, (name, curve) in enumerate(curves.items()):
        colour, _ = look(index)
        if not curve.steps:
            continue
        if smooth:
            axes.plot(curve.steps, curve.losses, color=colour, linewidth=0.6, alpha=0.35)
        line = smoothed(curve.losses) if smooth else list(curve.losses)
        axes.plot(curve.steps, line, color=colour, linewidth=1.6, marker="" if smooth else "o", markersize=3)
        ends.append(_End(line[-1], name, colour, bold=True))
    _label_ends(axes, ends)


def smoothed(losses: Sequence[float]) -> list[float]:
    """Centred running mean over about a tenth of the curve: batches of different sources have different losses."""
    half = max(len(losses) // 20, 1)
    return [float(np.mean(losses[max(index - half, 0) : index + half + 1])) for index in range(len(losses))]
