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
PATIENCE_S = 60.0
LOOK_EVERY_S = 0.25
SETTLED_S = 1.5  # of the same picture: animations have ended and nothing is loading any more


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

    def picture(self) -> bytes:
        """A PNG of the page, once it has been the same for a while."""
        end, since, last = time.monotonic() + PATIENCE_S, time.monotonic(), b""
        while time.monotonic() < end:
            now = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
            if now != last:
                since, last = time.monotonic(), now
            elif time.monotonic() - since > SETTLED_S:
                break
            time.sleep(LOOK_EVERY_S)
        return last


@contextlib.contextmanager
def browser(width: int, height: int) -> Iterator[Page]:
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
            [program, *flags, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_address_of_page(Path(profile), process), max_size=None) as connection:
                page = Page(connection)
                page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
                yield page
        finally:
            process.terminate()
            process.wait()


def _address_of_page(profile: Path, process: subprocess.Popen[bytes]) -> str:
    """Where the first tab listens; the browser writes its port into its profile."""
    end, port_file = time.monotonic() + PATIENCE_S, profile / "DevToolsActivePort"
    while time.monotonic() < end and process.poll() is None:
        if port_file.is_file() and (lines := port_file.read_text().splitlines()):
            with urllib.request.urlopen(f"http://127.0.0.1:{int(lines[0])}/json") as answer:  # noqa: S310  # loopback
                pages = [target for target in json.load(answer) if target["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(LOOK_EVERY_S)
    raise MachineError("the browser did not come up")
