"""The documents' pictures of Dagster, MLflow and the report, from this workspace's own state: ``python -m docs.take_pictures``.

Starts the servers of ``make ui`` on free ports, drives a headless Chromium, waits until a page has what the picture is to show, and
writes ``dagster_graph.png``, ``dagster_asset.png``, ``mlflow_version.png`` and ``report.png`` into ``docs/images``. The pipeline must have
run (``make demo``). The browser test of the team stack (tests/integration/test_stack.py) takes the same pictures.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

from PIL import Image

from docs.browser import Page, browser
from mlembed_core.artifacts import Workspace, read_json
from mlembed_core.errors import MlembedError
from workflows.pipeline import PIPELINE
from workflows.ui import servers

STATES_S = 10.0  # until the states of all assets have been asked for
GRAPH_SIZE, ASSET_SIZE = (2600, 1600), (1600, 1000)  # the first wide enough to read all names at once
WIDTH = 1600  # of the pictures
MARGIN = 24
COLOURS = 256  # a flat page needs no more, and is a third of the bytes
# Where the assets and their groups lie on the page.
BOX = """(() => {
  const boxes = [...document.querySelectorAll('foreignObject')].map(element => element.getBoundingClientRect());
  const [x, y] = [Math.min(...boxes.map(box => box.left)), Math.min(...boxes.map(box => box.top))];
  return {x, y, width: Math.max(...boxes.map(box => box.right)) - x, height: Math.max(...boxes.map(box => box.bottom)) - y};
})()"""
# Whether every asset is drawn. Its state comes a moment later; the picture is taken once it has stopped changing.
DRAWN = "{names}.every(name => [...document.querySelectorAll('foreignObject')].some(box => box.textContent.includes(name)))"
CLICK = "[...[...document.querySelectorAll('tr')].find(row => row.innerText.startsWith({row})).querySelectorAll('a')].pop().click()"


def graph(page: Page, dagster: str) -> Image.Image:
    """All assets in their groups, each in the colour of its state."""
    groups = ",".join(sorted({f"global@global:{name}" for this in PIPELINE for name in this.definition.group_names_by_key.values()}))
    page.open(f"{dagster}/asset-groups?expanded={groups}", *GRAPH_SIZE)
    names = json.dumps([this.name for this in PIPELINE])
    page.wait_until(DRAWN.format(names=names), "every asset")
    time.sleep(STATES_S)
    whole, box = page.picture(), page.ask(BOX)
    left, top = box["x"] - MARGIN, box["y"] - MARGIN
    return whole.crop((int(left), int(top), int(left + box["width"] + 2 * MARGIN), int(top + box["height"] + 2 * MARGIN)))


def asset(page: Page, dagster: str, name: str, partition: str, chart: str) -> Image.Image:
    """An asset's page with one of its charts open."""
    page.open(f"{dagster}/assets/{name}?partition={partition}", *ASSET_SIZE)
    page.wait_until(f"[...document.querySelectorAll('tr')].some(row => row.innerText.startsWith('{chart}'))", f"its {chart}")
    page.ask(CLICK.format(row=json.dumps(chart)))
    page.wait_until("[...document.querySelectorAll('img')].some(image => image.src.startsWith('data:') && image.complete)", "the chart")
    return page.picture()


def materialise(page: Page, dagster: str, name: str, partition: str) -> None:
    """Press the buttons that materialise one partition."""
    page.open(f"{dagster}/assets/{name}?partition={partition}", *ASSET_SIZE)
    page.press("Materialize")
    page.press("Launch 1 run")


def materialised(page: Page, dagster: str, name: str, partition: str, run_id: str) -> Image.Image:
    """A partition's page, once it says that this run made it."""
    page.open(f"{dagster}/assets/{name}?view=partitions&partition={partition}", *ASSET_SIZE)
    text = "document.body.innerText"
    page.wait_until(f"{text}.includes('Materialized') && {text}.includes('{run_id[:8]}')", f"the partition, made by run {run_id[:8]}")
    return page.picture()


def version(page: Page, mlflow: str, name: str, number: str) -> Image.Image:
    """A model version's page in MLflow, with its tags and aliases."""
    page.open(f"{mlflow}/#/models/{name}/versions/{number}", *ASSET_SIZE)
    page.wait_until("document.body.innerText.includes('mlembed.setting')", "the version's tags")
    return page.picture()


def report(page: Page, file: Path) -> Image.Image:
    """The report, from its file."""
    page.open(file.resolve().as_uri(), *ASSET_SIZE)
    page.wait_until("document.querySelector('form.filters output')?.textContent", "the table's filter")
    return page.picture()


def save(picture: Image.Image, path: Path) -> None:
    """As a small PNG of the usual width."""
    height = round(picture.height * WIDTH / picture.width)
    resized = picture.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    path.parent.mkdir(parents=True, exist_ok=True)
    resized.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {WIDTH} × {height}, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", default="3d", help="whose training is shown")
    parser.add_argument("--port", type=int, default=3200, help="Dagster's (the next free one, if it is taken)")
    parser.add_argument("--mlflow-port", type=int, default=5200, help="MLflow's (likewise)")
    parser.add_argument("--folder", type=Path, help="where the pictures go (default: docs/images)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the servers and the browser are stopped then, too
    workspace = Workspace.find()
    folder = arguments.folder or workspace.root / "docs" / "images"
    try:
        with (
            browser() as page,
            servers(workspace, dagster_port=arguments.port, mlflow_port=arguments.mlflow_port) as (dagster, mlflow, _),
        ):
            save(graph(page, dagster), folder / "dagster_graph.png")
            save(asset(page, dagster, "trained_model", arguments.setting, "loss_curve"), folder / "dagster_asset.png")
            registered = read_json(workspace.registration(arguments.setting))
            save(version(page, mlflow, registered["name"], registered["version"]), folder / "mlflow_version.png")
            save(report(page, workspace.reports / "index.html"), folder / "report.png")
    except MlembedError as error:
        print(f"mlembed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
