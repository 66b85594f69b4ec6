"""The server as clients meet it: a real one on loopback with a tiny model, asked in every wrong way as well."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import numpy as np
import pytest
import uvicorn

from mlembed_core.errors import ConfigError, MachineError
from mlembed_core.model.encoder import Encoder
from mlembed_core.registry.serving import run
from mlembed_core.registry.serving.app import Options, make_app
from mlembed_core.registry.serving.requests import Limits
from mlembed_core.registry.serving.submodels import Submodels
from tests.unit.export.conftest import mel_model  # noqa: F401  # a fixture

KEY = "a key of more than sixteen characters"
LIMITS = Limits(max_body_bytes=20_000, max_texts=50, max_text_chars=5_000, read_timeout_s=0.5)
TEXTS = ["a", "hello world", "", "ünïcödé 🦉", "a longer text " * 30]


class Served:
    def __init__(self, app):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        self.address = self.socket.getsockname()
        self.client = httpx.Client(
            base_url=f"http://127.0.0.1:{self.address[1]}", headers={"Authorization": f"Bearer {KEY}"}, timeout=20, trust_env=False
        )
        while not self.server.started:
            time.sleep(0.01)

    def embed(self, **body):
        return self.client.post("/v1/embeddings", json=body)

    def stop(self):
        self.client.close()
        self.server.should_exit = True
        self.thread.join(10)
        self.socket.close()


@pytest.fixture(scope="module")
def served(mel_model):  # noqa: F811
    served = Served(make_app(Submodels(Encoder.from_folder(mel_model)), Options(name="tiny", api_key=KEY, limits=LIMITS)))
    yield served
    served.stop()


def vectors(answer):
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]], dtype=np.float32)


@pytest.mark.parametrize(("layers", "dim", "rank"), [(None, None, None), (1, 8, 4), (2, 5, 1), (3, 32, 8)])
def test_vectors_are_those_of_the_encoder(served, mel_model, layers, dim, rank):  # noqa: F811
    body = {key: value for key, value in {"layers": layers, "dimensions": dim, "rank": rank}.items() if value is not None}
    expected = Encoder.from_folder(mel_model, layers=layers, dim=dim, rank=rank).encode_queries(TEXTS, instruction="Find it.")
    answer = served.embed(input=TEXTS, model="tiny", instruction="Find it.", **body)
    np.testing.assert_allclose(vectors(answer), expected, atol=1e-6)
    coded = served.embed(input=TEXTS, encoding_format="base64", instruction="Find it.", **body).json()["data"]
    as_bytes = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in coded]
    np.testing.assert_allclose(as_bytes, expected, atol=1e-6)


def test_one_text_is_a_list_of_one_and_tokens_are_counted(served):
    answer = served.embed(input="abc", user="someone").json()
    assert [item["index"] for item in answer["data"]] == [0]
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}


def test_many_clients_get_their_own_vectors(served, mel_model):  # noqa: F811
    encoder = Encoder.from_folder(mel_model)
    texts = [[f"client {client}, text {index} " * (index % 4 + 1) for index in range(7)] for client in range(24)]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda mine: served.embed(input=mine), texts))
    for mine, answer in zip(texts, answers, strict=True):
        np.testing.assert_allclose(vectors(answer), encoder.encode_documents(mine), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"\xff", 400, "the body is not JSON"),
        (b"[1]", 400, "the body must be a JSON object, found list"),
        (b"[" * 9000, 400, "the body is not JSON"),
        ({}, 400, "input is missing"),
        ({"input": []}, 400, "input is an empty list"),
        ({"input": [[1, 2]]}, 400, "token ids are not taken"),
        ({"input": ["a", 1]}, 400, "input: "),
        ({"input": None}, 400, "input: "),
        ({"input": "a", "dims": 3}, 400, "unknown key 'dims'; allowed are input, model, dimensions"),
        ({"input": "a", "model": "other"}, 404, "there is no model 'other' here; this server has 'tiny'"),
        ({"input": "a", "dimensions": 33}, 400, "dimensions=33 is out of range: this model has dimensions 1 … 32"),
        ({"input": "a", "layers": 0}, 400, "layers=0 is out of range"),
        ({"input": "a", "rank": "8"}, 400, "rank: Input should be a valid integer"),
        ({"input": "a", "encoding_format": "hex"}, 400, "encoding_format: Input should be 'float' or 'base64'"),
        ({"input": ["a"] * 51}, 400, "input has 51 texts; at most 50 are taken"),
        ({"input": ["a", "b" * 5001]}, 400, "input[1] has 5,001 characters"),
        (b'{"input": "\\ud800"}', 400, "input[0] holds half a character"),
        ({"input": "a" * 30_000}, 413, "larger than 20,000 bytes"),
    ],
)
def test_mistakes_are_explained(served, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = served.client.post("/v1/embeddings", content=content)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert "Traceback" not in answer.text


def test_a_body_without_a_length_is_cut_off_too(served):
    answer = served.client.post("/v1/embeddings", content=(b"x" * 1000 for _ in range(100)))
    assert answer.status_code == 413


def test_a_slow_client_is_sent_away_and_holds_up_nobody(served):
    with socket.create_connection(served.address) as slow:
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n"
        slow.sendall(head.encode() + b"{")
        started = time.monotonic()
        assert served.embed(input="others go on").status_code == 200
        assert time.monotonic() - started < LIMITS.read_timeout_s
        slow.settimeout(5)
        assert slow.recv(1000).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("header", [None, "Bearer wrong", f"Basic {KEY}", "Bearer é"])
def test_without_the_key_only_health_answers(served, header):
    encoded = {} if header is None else {"Authorization": header.encode()}
    with httpx.Client(base_url=served.client.base_url, headers=encoded, trust_env=False) as client:
        assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 401
        assert client.get("/metrics").status_code == 401
        assert client.get("/health").json() == {"status": "ok"}


def test_routes_that_do_not_exist_name_those_that_do(served):
    assert "POST /v1/embeddings" in served.client.get("/v2/embeddings").json()["error"]["message"]
    assert served.client.get("/v1/embeddings").status_code == 405


def test_what_is_served_can_be_asked(served):
    (model,) = served.client.get("/v1/models").json()["data"]
    assert (model["id"], model["layers"], model["dimensions"], model["rank"], model["max_tokens"]) == ("tiny", 3, 32, 8, 48)
    served.embed(input=["a", "b"])
    metrics = served.client.get("/metrics").text
    assert 'mlembed_requests_total{status="200"}' in metrics
    assert "mlembed_request_seconds_bucket" in metrics
    assert "mlembed_waiting_tokens 0.0" in metrics


def test_a_failure_inside_shows_a_number_and_no_trace(mel_model, caplog):  # noqa: F811
    class Broken(Submodels):
        def states(self, ids, *, layers, rank):
            if layers == 1:
                raise RuntimeError("secret of the inside")
            return super().states(ids, layers=layers, rank=rank)

    served = Served(make_app(Broken(Encoder.from_folder(mel_model)), Options(name="tiny")))
    try:
        answer = served.embed(input="a", layers=1)
        assert answer.status_code == 500
        assert "internal error" in answer.json()["error"]["message"]
        assert "secret" not in answer.text
        assert served.embed(input="a").status_code == 200  # the others' turn comes
        assert 'mlembed_requests_total{status="500"} 1.0' in served.client.get("/metrics").text
    finally:
        served.stop()


def test_upper_limits_are_the_cut_that_it_was_opened_at(mel_model):  # noqa: F811
    submodels = Submodels(Encoder.from_folder(mel_model, layers=2, dim=16, rank=4))
    assert (submodels.limits.layers, submodels.limits.dim, submodels.limits.rank) == (2, 16, 4)
    whole = submodels.encode(TEXTS, submodels.resolve())
    np.testing.assert_allclose(whole, Encoder.from_folder(mel_model, layers=2, dim=16, rank=4).encode_documents(TEXTS), atol=1e-6)


def test_views_share_their_weights(mel_model):  # noqa: F811
    encoder = Encoder.from_folder(mel_model)
    view = Submodels(encoder)._view(1)
    assert view.network.num_layers == 1
    assert encoder.network.num_layers == 3
    assert view.network.embedding.u is encoder.network.embedding.u


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.2", "::", "example.org"])
def test_others_are_let_in_with_a_key_only(host):
    with pytest.raises(ConfigError, match="MLEMBED_API_KEY is not set"):
        run.check_address(host, None)
    run.check_address(host, KEY)
    with pytest.raises(ConfigError, match="has 5 characters; use at least 16"):
        run.check_address(host, "short")


def test_loopback_needs_no_key_and_a_taken_port_is_told():
    for host in ("127.0.0.1", "::1", "localhost"):
        run.check_address(host, None)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MachineError, match="cannot listen on 127.0.0.1:"):
        run._listen("127.0.0.1", taken.getsockname()[1])
