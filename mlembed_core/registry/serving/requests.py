"""What a client may ask for, checked before anything is computed, and what it is told where it may not.

The form is OpenAI's ``/v1/embeddings``, with three more keys: ``layers``, ``rank`` and ``instruction``. Errors have OpenAI's form too.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, StrictInt, StrictStr, ValidationError
from starlette.requests import ClientDisconnect, Request


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    max_body_bytes: int = 8 * 2**20
    max_texts: int = 2048  # as OpenAI's
    max_text_chars: int = 100_000
    read_timeout_s: float = 10.0


class RefusedError(Exception):
    """A request that is answered with an error of ``status``."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """In OpenAI's form."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class EmbeddingRequest(BaseModel):
    """The body of a request; unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: StrictStr | list[StrictStr]
    model: StrictStr | None = None
    dimensions: StrictInt | None = None
    encoding_format: Literal["float", "base64"] = "float"
    user: StrictStr | None = None
    layers: StrictInt | None = None
    rank: StrictInt | None = None
    instruction: StrictStr | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


async def read_request(request: Request, limits: Limits) -> EmbeddingRequest:
    """The checked body of a request.

    Raises:
        RefusedError: too large, too slow, not JSON, or not what the form asks for.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdigit() and int(declared) > limits.max_body_bytes:
        raise _too_large(limits)
    try:
        body = await asyncio.wait_for(_read_body(request, limits), limits.read_timeout_s)
    except TimeoutError:
        raise RefusedError(408, f"the body did not arrive within {limits.read_timeout_s:g} s") from None
    except ClientDisconnect:
        raise RefusedError(499, "the client left") from None
    try:
        values = json.loads(body)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, f"the body is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise RefusedError(400, f"the body must be a JSON object, found {type(values).__name__}")
    return _parse(values, limits)


def _parse(values: dict[str, Any], limits: Limits) -> EmbeddingRequest:
    texts = values.get("input")
    if isinstance(texts, list) and texts and not isinstance(texts[0], str):
        raise RefusedError(400, "input must be a text or a list of texts; token ids are not taken", param="input")
    try:
        parsed = EmbeddingRequest.model_validate(values)
    except ValidationError as error:
        raise _explained(error.errors()[0]) from None
    if not parsed.texts:
        raise RefusedError(400, "input is an empty list; send at least one text", param="input")
    if len(parsed.texts) > limits.max_texts:
        message = f"input has {len(parsed.texts):,} texts; at most {limits.max_texts:,} are taken at a time"
        raise RefusedError(400, message, param="input", code="too_many_texts")
    for index, text in enumerate(parsed.texts):
        if len(text) > limits.max_text_chars:
            message = f"input[{index}] has {len(text):,} characters; at most {limits.max_text_chars:,} are taken"
            raise RefusedError(400, message, param="input", code="text_too_long")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise RefusedError(400, f"input[{index}] holds half a character (a lone surrogate); send valid Unicode", param="input")
    return parsed


def _explained(error: Any) -> RefusedError:
    where = str(error["loc"][0]) if error["loc"] else "body"
    if error["type"] == "extra_forbidden":
        known = ", ".join(EmbeddingRequest.model_fields)
        return RefusedError(400, f"unknown key {where!r}; allowed are {known}", param=where)
    if error["type"] == "missing":
        return RefusedError(400, f"{where} is missing", param=where)
    return RefusedError(400, f"{where}: {error['msg']}", param=where)


async def _read_body(request: Request, limits: Limits) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limits.max_body_bytes:
            raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(413, f"the body is larger than {limits.max_body_bytes:,} bytes; send fewer texts at a time", code="body_too_large")
