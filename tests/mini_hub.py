"""The part of the hub's interface that a download of a dataset or a model uses, over a mirror: a local server for tests."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def mini_hub(mirror: Path, *, asked: list[str] | None = None, breaks_after: int | None = None) -> Iterator[str]:
    """Serve ``mirror`` (``ORG/NAME/REVISION/``; the last revision by name is ``main``) on loopback.

    Args:
        asked: gets the path of every file that is sent, with the first byte asked for behind an ``@``.
        breaks_after: bytes of a file after which the connection is cut, once.

    Yields:
        The endpoint.
    """
    handler = type("Handler", (_Hub,), {"root": mirror, "asked": asked if asked is not None else [], "breaks": [breaks_after]})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def only_hub(root: Path, patch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let the hub's library know ``root/mirror`` as its hub, and ``root/cache`` as its cache.

    Yields:
        The files sent so far, as in :func:`mini_hub`.
    """
    from huggingface_hub import constants

    asked: list[str] = []
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HF_HUB_CACHE", str(root / "cache"))
    with mini_hub(root / "mirror", asked=asked) as endpoint:
        patch.setattr(constants, "ENDPOINT", endpoint)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        yield asked


class _Hub(BaseHTTPRequestHandler):
    root: Path
    asked: list[str]
    breaks: list[int | None]

    def do_GET(self, *, head: bool = False) -> None:
        path = self.path.split("?")[0]
        if path.startswith(("/api/datasets/", "/api/models/")):
            repo, _, revision = re.sub("/(revision|tree)/", "@", re.sub("^/api/(datasets|models)/", "", path)).partition("@")
            revision = revision if revision not in ("", "main") else max((p.name for p in (self.root / repo).glob("*")), default="")
            folder = self.root / repo / revision
            files = {file.relative_to(folder).as_posix(): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
            found: Any = {"id": repo, "sha": revision, "siblings": [{"rfilename": name} for name in files]}
            if "/tree/" in path:
                found = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in files.items()]
            self.answer(json.dumps(found).encode() if files else None, "", head=head)
            return
        repo, _, rest = path.removeprefix("/datasets").removeprefix("/").partition("/resolve/")
        file = self.root / repo / rest
        if not head:
            self.asked.append(f"{rest.partition('/')[2]}@{self.first_byte}")
        self.answer(file.read_bytes() if file.is_file() else None, rest.split("/")[0], head=head, can_break=True)

    def do_HEAD(self) -> None:
        self.do_GET(head=True)

    @property
    def first_byte(self) -> int:
        return int(re.sub(r"bytes=(\d+)-.*", r"\1", self.headers.get("Range", "bytes=0-")))

    def answer(self, body: bytes | None, commit: str, *, head: bool, can_break: bool = False) -> None:
        first = self.first_byte if can_break else 0
        self.send_response(404 if body is None else 206 if first else 200)
        if body is None and self.path.startswith("/api/"):
            self.send_header("X-Error-Code", "RevisionNotFound")
        whole = body or b""
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - first))
        self.send_header("ETag", f'"{hash(body)}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        if not head and body:
            if can_break and self.breaks[0] is not None and len(body) > self.breaks[0]:
                self.wfile.write(body[first : self.breaks[0]])
                self.breaks[0] = None
                self.close_connection = True
                return
            self.wfile.write(body[first:])

    def log_message(self, *_: Any) -> None:
        pass
