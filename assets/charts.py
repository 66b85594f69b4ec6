"""Pictures for an asset's page in Dagster: small PNGs inside Markdown, since that is what its metadata can show."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dagster import MarkdownMetadataValue, MetadataValue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE_INCHES = (6.4, 3.2)
DPI = 100


def picture(png: bytes, title: str) -> MarkdownMetadataValue:
    """A PNG that travels inside the event, so that it shows wherever the event does."""
    return MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})")


def picture_file(path: Path, title: str) -> MarkdownMetadataValue:
    return picture(path.read_bytes(), title)


def loss_curve(steps: Sequence[int], losses: Sequence[float], smooth: Sequence[float]) -> MarkdownMetadataValue:
    """Training loss per logged step, and its running mean: batches are of one source each, so single points jump."""
    figure = _figure("step", "loss")
    axis = figure.axes[0]
    axis.plot(steps, losses, ".", color="#9aa7b8", markersize=4)
    axis.plot(steps, smooth, color="#1f5fa8", linewidth=2)
    return picture(_png(figure), "loss curve")


def frontier(points: Mapping[str, tuple[float, float]]) -> MarkdownMetadataValue:
    """Average score against megabytes on disk, a point per submodel: name → (MB, score)."""
    figure = _figure("MB on disk (fp32)", "average of the main scores")
    axis = figure.axes[0]
    for name, (size, score) in points.items():
        axis.plot(size, score, "o", color="#1f5fa8", markersize=5)
        axis.annotate(name, (size, score), textcoords="offset points", xytext=(4, 3), fontsize=6.5, color="#404040")
    axis.margins(x=0.15)
    return picture(_png(figure), "frontier")


def _figure(x: str, y: str) -> Figure:
    from matplotlib.figure import Figure  # a second to import: where a picture is drawn only

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axis = figure.subplots()
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(color="#e4e8ee")
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
