"""A headless Chromium, driven over its DevTools protocol: for the pictures of the documents and for the test of the pages."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from websockets.sync.client import ClientConnection, connect

from mlembed_core.errors import MachineError

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
SETTLED_S = 3.0  # of the same picture: animations have ended and nothing is loading any more
# The page that a person sees at first asks for an address for news; this is what it notes down once somebody has skipped it.
SKIPPED = "localStorage.setItem('communityNux', '\"1\"')"

# Presses a button and says whether there was one.
PRESS = """(() => {{
  const found = [...document.querySelectorAll('button')].find(button => !button.disabled && button.innerText.trim().startsWith({text}));
  if (found) found.click();
  return !!found;
}})()"""


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

    def press(self, text: str) -> None:
        """Press the button that begins with ``text``, once it is there and can be pressed.

        Raises:
            MachineError: there was none.
        """
        self.wait_until(PRESS.format(text=json.dumps(text)), f"a button {text!r}")

    def account(self, name: str, password: str) -> None:
        """Send name and password with every request from now on, as a browser does once somebody has filled in its dialogue."""
        token = base64.b64encode(f"{name}:{password}".encode()).decode()
        self.call("Network.enable")
        self.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {token}"})

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
