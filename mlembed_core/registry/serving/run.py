"""``mlembed serve``: load a model, listen, and say where."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import socket

from mlembed_core.errors import ConfigError, MachineError

KEY_VARIABLE = "MLEMBED_API_KEY"
MIN_KEY_LENGTH = 16
NEEDED = ("fastapi", "prometheus_client", "uvicorn")


def serve(
    ref: str, *, layers: int | None, dim: int | None, rank: int | None, host: str, port: int, name: str | None, threads: int | None
) -> None:
    """Serve the model ``ref`` until told to stop (SIGINT or SIGTERM), when what is being computed is still answered.

    Args:
        layers, dim, rank: the largest cut that clients may ask for, and what they get where they do not ask.

    Raises:
        ConfigError: an address that others reach, without a key.
        MachineError: a package is missing, or the port is taken.
        ArtifactError, RegistryError, SubmodelError: see :func:`mlembed_core.registry.load.load`.
    """
    missing = [package for package in NEEDED if importlib.util.find_spec(package) is None]
    if missing:
        raise MachineError(f"serving needs {', '.join(missing)}; `pip install 'mlembed[serve]'` (or `make setup`) brings it")
    key = os.environ.get(KEY_VARIABLE) or None
    check_address(host, key)
    listening = _listen(host, port)  # before the model is loaded: a taken port should not cost that
    try:
        import torch
        import uvicorn

        from mlembed_core.registry.load import load
        from mlembed_core.registry.serving.app import Options, make_app
        from mlembed_core.registry.serving.submodels import Submodels

        if threads is not None:
            torch.set_num_threads(threads)
        submodels = Submodels(load(ref, layers=layers, dim=dim, rank=rank))
        app = make_app(submodels, Options(name=name or ref, api_key=key))
        address = f"http://{_bracketed(host)}:{listening.getsockname()[1]}"
        limits = submodels.limits
        print(
            f"{name or ref} at {address}/v1/embeddings, up to layers {limits.layers}, dimensions {limits.dim}, rank {limits.rank}; "
            f"{'with' if key else 'without'} a key ({KEY_VARIABLE}); Ctrl-C stops it",
            flush=True,
        )
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=10)
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        listening.close()


def check_address(host: str, key: str | None) -> None:
    """Raises ConfigError where others could reach a server without a key, or with one that can be guessed."""
    if key is not None and len(key) < MIN_KEY_LENGTH:
        raise ConfigError(f"{KEY_VARIABLE} has {len(key)} characters; use at least {MIN_KEY_LENGTH}, e.g. from `openssl rand -hex 24`")
    if key is None and not _is_loopback(host):
        raise ConfigError(
            f"--host {host} can be reached by others, and {KEY_VARIABLE} is not set. Set it (`openssl rand -hex 24` makes one), or listen "
            "on 127.0.0.1."
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise MachineError(f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --port, or 0 for any") from None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
