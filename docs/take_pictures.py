"""The README's pictures of Dagster's pages, taken from this workspace's own state: ``python -m docs.take_pictures``.

Starts the servers of ``make ui`` on free ports, drives a headless Chromium over its DevTools protocol, waits until a page has what
the picture is to show, and writes ``docs/images/dagster_graph.png`` and ``docs/images/dagster_asset.png``. The pipeline must have run
(``make demo``).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import ClientConnection, connect

from mlembed_core.artifacts import Workspace
from mlembed_core.errors import MachineError, MlembedError
from workflows.pipeline import PIPELINE
from workflows.ui import servers

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)
PATIENCE_S = 180.0  # on a machine with other things to do
LOOK_EVERY_S = 0.25
STATES_S = 10.0  # until the states of all assets have been asked for
SETTLED_S = 3.0  # of the same picture: animations have ended and nothing is loading any more
# The page that a person sees at first asks for an address for news; this is what it notes down once somebody has skipped it.
SKIPPED = "localStorage.setItem('communityNux', '\"1\"')"
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


class Page:
    """One tab of the browser."""

    def __init__(self, connection: ClientConnection):
        self._connection = connection
        self._last_id = 0

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol, and its answer; events in between are let go.

        Raises:
            MachineError: the browser refused it.
        """
        self._last_id += 1
        self._connection.send(json.dumps({"id": self._last_id, "method": method, "params": params}))
        while (answer := json.loads(self._connection.recv(timeout=PATIENCE_S))).get("id") != self._last_id:
            pass
        if "error" in answer:
            raise MachineError(f"the browser refused {method}: {answer['error']['message']}")
        return dict(answer["result"])

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)["result"].get("value")

    def wait_until(self, expression: str, what: str) -> None:
        """Wait until the expression is true.

        Raises:
            MachineError: it did not become so; the message says ``what`` was waited for.
        """
        end = time.monotonic() + PATIENCE_S
        while not self.ask(expression):
            if time.monotonic() > end:
                raise MachineError(f"{self.ask('location.href')} did not show {what} within {PATIENCE_S:.0f} s")
            time.sleep(LOOK_EVERY_S)

    def open(self, address: str, width: int, height: int) -> None:
        """Go to ``address`` in a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=address)

    def picture(self) -> Image.Image:
        """The page as it looks once it has looked the same for a while."""
        end, since, last = time.monotonic() + PATIENCE_S, time.monotonic(), b""
        while time.monotonic() < end and time.monotonic() - since < SETTLED_S:
            now = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
            if now != last:
                since, last = time.monotonic(), now
            time.sleep(LOOK_EVERY_S)
        return Image.open(io.BytesIO(last))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """A headless Chromium with an empty profile.

    Raises:
        MachineError: there is none, or it did not come up.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        raise MachineError(f"none of {', '.join(NAMES)} is on PATH; on Debian: apt-get install chromium")
    # Chromium's sandbox refuses to run as root.
    flags = [*FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *flags, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_address_of_page(Path(profile), process), max_size=None) as connection:
                page = Page(connection)
                page.call("Page.enable")
                page.call("Page.addScriptToEvaluateOnNewDocument", source=SKIPPED)
                yield page
        finally:
            process.terminate()
            process.wait()


def _address_of_page(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the first tab listens; the browser writes its port into its profile."""
    end, port_file = time.monotonic() + PATIENCE_S, profile / "DevToolsActivePort"
    while time.monotonic() < end and process.poll() is None:
        if port_file.is_file() and (lines := port_file.read_text().splitlines()):
            with urllib.request.urlopen(f"http://127.0.0.1:{int(lines[0])}/json") as answer:  # on loopback
                pages = [target for target in json.load(answer) if target["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(LOOK_EVERY_S)
    raise MachineError("the browser did not come up")


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
            servers(workspace, dagster_port=arguments.port, mlflow_port=arguments.mlflow_port) as (dagster, _, _),
        ):
            save(graph(page, dagster), folder / "dagster_graph.png")
            save(asset(page, dagster, "trained_model", arguments.setting, "loss_curve"), folder / "dagster_asset.png")
    except MlembedError as error:
        print(f"mlembed: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
