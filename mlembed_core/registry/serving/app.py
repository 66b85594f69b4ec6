"""The server's routes: OpenAI's ``/v1/embeddings`` and ``/v1/models``, ``/health``, and ``/metrics`` for Prometheus."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from mlembed_core.config.grid import Submodel
from mlembed_core.errors import SubmodelError
from mlembed_core.model.encoder import unit_vectors
from mlembed_core.prompts import format_query
from mlembed_core.registry.serving.batcher import Batcher, OverloadedError
from mlembed_core.registry.serving.requests import EmbeddingRequest, Limits, RefusedError, read_request
from mlembed_core.registry.serving.submodels import Submodels

log = logging.getLogger("mlembed.serving")
LATENCY_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class Options:
    """How one model is served.

    Attributes:
        name: what clients call the model.
        api_key: every route but ``/health`` asks for it; None: no key.
        batch_tokens: computed at a time.
        max_waiting_tokens: of all requests; more are told to come again.
    """

    name: str
    api_key: str | None = None
    limits: Limits = field(default_factory=Limits)
    batch_tokens: int = 8192
    max_waiting_tokens: int = 1_000_000


class Metrics:
    """What Prometheus reads; of each app its own."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("mlembed_requests", "Requests for embeddings, by status", ["status"], **options)
        self.texts = Counter("mlembed_texts", "Texts encoded", **options)
        self.tokens = Counter("mlembed_tokens", "Tokens encoded", **options)
        self.seconds = Histogram("mlembed_request_seconds", "From the request's head to its answer", buckets=LATENCY_BUCKETS_S, **options)
        self.batch_texts = Histogram("mlembed_batch_texts", "Texts of a batch", buckets=BATCH_BUCKETS, **options)
        self.batch_requests = Histogram("mlembed_batch_requests", "Requests that share a batch", buckets=BATCH_BUCKETS, **options)
        Gauge("mlembed_waiting_tokens", "Tokens in no batch yet", **options).set_function(waiting)

    def batch(self, texts: int, requests: int) -> None:
        self.batch_texts.observe(texts)
        self.batch_requests.observe(requests)


class Service:
    """What stands behind the routes: the model, its batcher and its metrics."""

    def __init__(self, submodels: Submodels, options: Options) -> None:
        self.submodels = submodels
        self.options = options
        self.batcher = Batcher(
            lambda ids, key: submodels.states(ids, layers=key[0], rank=key[1]),
            batch_tokens=options.batch_tokens,
            max_waiting_tokens=options.max_waiting_tokens,
            observe=lambda texts, requests: self.metrics.batch(texts, requests),
        )
        self.metrics = Metrics(lambda: self.batcher.waiting_tokens)

    async def check_key(self, request: Request) -> None:
        """Raises RefusedError without the key that the server was given."""
        key = self.options.api_key
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if key is not None and not (scheme.lower() == "bearer" and secrets.compare_digest(given.encode(), key.encode())):
            raise RefusedError(401, "the API key is missing or wrong; send `Authorization: Bearer KEY`", code="invalid_api_key")

    async def health(self) -> Response:
        """Whether requests are being computed."""
        alive = self.batcher.alive
        return JSONResponse({"status": "ok" if alive else "not computing"}, status_code=200 if alive else 503)

    async def prometheus(self) -> Response:
        """What was measured."""
        return Response(generate_latest(self.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> Response:
        """The model and the largest cut of it."""
        limits = self.submodels.limits
        axes = {"layers": limits.layers, "dimensions": limits.dim, "rank": limits.rank, "max_tokens": self.submodels.max_length}
        return JSONResponse({"object": "list", "data": [{"id": self.options.name, "object": "model", "owned_by": "mlembed", **axes}]})

    async def embeddings(self, request: Request) -> Response:
        """Unit vectors of texts."""
        started = time.perf_counter()
        status = 500
        try:
            answer = await self._embed(await read_request(request, self.options.limits))
            status = answer.status_code
        except RefusedError as refused:
            status = refused.status
            raise
        except Exception:
            # The log has the trace, the client a number to ask about.
            number = secrets.token_hex(4)
            log.exception("internal error %s", number)
            raise RefusedError(500, f"internal error {number}; the server's log has more", code="internal_error") from None
        finally:
            self.metrics.requests.labels(str(status)).inc()
            self.metrics.seconds.observe(time.perf_counter() - started)
        return answer

    async def _embed(self, wanted: EmbeddingRequest) -> Response:
        name = self.options.name
        if wanted.model not in {None, name}:
            message = f"there is no model {wanted.model!r} here; this server has {name!r}"
            raise RefusedError(404, message, param="model", code="model_not_found")
        submodel = self._submodel(wanted)
        texts = [format_query(text, wanted.instruction) for text in wanted.texts]
        ids = await asyncio.to_thread(self.submodels.token_ids, texts)
        try:
            states = await self.batcher.submit(ids, (submodel.layers, submodel.rank))
        except OverloadedError as error:
            raise RefusedError(503, f"the server is busy ({error}); try again in a second", code="overloaded") from None
        tokens = sum(map(len, ids))
        self.metrics.texts.inc(len(texts))
        self.metrics.tokens.inc(tokens)
        spell = _base64 if wanted.encoding_format == "base64" else _floats
        vectors = enumerate(unit_vectors(states, submodel.dim))
        data = [{"object": "embedding", "index": index, "embedding": spell(vector)} for index, vector in vectors]
        return JSONResponse({"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})

    def _submodel(self, wanted: EmbeddingRequest) -> Submodel:
        try:
            return self.submodels.resolve(layers=wanted.layers, dim=wanted.dimensions, rank=wanted.rank)
        except SubmodelError as error:
            message = str(error).replace("dim", "dimensions")  # the request's name for it
            raise RefusedError(400, message, param=message.partition("=")[0]) from None


def make_app(submodels: Submodels, options: Options) -> FastAPI:
    """The ASGI application; it starts to compute when it is started."""
    service = Service(submodels, options)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        await service.batcher.stop()

    # No pages of documentation: they would load scripts from elsewhere.
    app = FastAPI(title="mlembed", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    guarded: dict[str, Any] = {"dependencies": [Depends(service.check_key)], "response_model": None}
    app.add_api_route("/v1/embeddings", service.embeddings, methods=["POST"], **guarded)
    app.add_api_route("/v1/models", service.models, **guarded)
    app.add_api_route("/metrics", service.prometheus, **guarded)
    app.add_api_route("/health", service.health, response_model=None)
    app.add_exception_handler(RefusedError, _refuse)
    app.add_exception_handler(HTTPException, _no_such_route)
    return app


async def _refuse(_request: Request, error: Exception) -> Response:
    refused = cast("RefusedError", error)
    return JSONResponse(refused.body(), status_code=refused.status, headers={"Retry-After": "1"} if refused.status == 503 else {})


async def _no_such_route(request: Request, error: Exception) -> Response:
    found = cast("HTTPException", error)
    routes = "POST /v1/embeddings, GET /v1/models, GET /health, GET /metrics"
    return await _refuse(
        request, RefusedError(found.status_code, f"{request.method} {request.url.path}: {found.detail} (there are: {routes})")
    )


def _floats(vector: NDArray[Any]) -> list[float]:
    values: list[float] = vector.tolist()
    return values


def _base64(vector: NDArray[Any]) -> str:
    """Little-endian float32, as OpenAI's clients read it."""
    return base64.b64encode(vector.astype("<f4", copy=False).tobytes()).decode()
