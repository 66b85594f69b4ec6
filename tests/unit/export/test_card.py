"""Model cards: only what is known stands in them, and the hub gets what was exported, whole."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import HfApi, ModelCard

from mlembed_core.artifacts import Workspace, write_json, write_manifest
from mlembed_core.errors import ArtifactError, MachineError
from mlembed_core.export import card
from mlembed_core.export.kinds import Format, StoredType
from mlembed_core.export.slice import take_out
from mlembed_core.export.verify import Reader, VerificationError, changed_files
from tests.unit.export.conftest import SameProcess

REPO = "house/small"


@pytest.fixture
def exported(mel_model, tmp_path):
    options = {"layers": 1, "dim": 8, "rank": 4, "form": Format.FACTORISED, "dtype": StoredType.BF16, "instruction": "Find it."}
    take_out(mel_model, tmp_path / "small", SameProcess([Reader.MLEMBED]), **options)
    return tmp_path / "small"


@pytest.fixture
def workspace(mel_model, tmp_path):
    workspace = Workspace(tmp_path / "clone")
    shutil.copytree(mel_model, workspace.models / "3d")
    (workspace.scores / "3d").mkdir(parents=True)
    tasks = {"Bitext": 0.25, "Code": 0.5, "average": 0.375}
    write_json(workspace.scores / "3d" / "embedded.json", {"l1-d8-r4": tasks, "l3-d32-r8": {"Bitext": 0.7531}})
    for name, languages, licence in (("bitext", ["deu", "fra"], "Unicode-3.0"), ("code", [], None)):
        (workspace.sources / name).mkdir(parents=True)
        details = {"languages": languages, "licence": licence}
        write_manifest(workspace.sources / name, stage=f"source@{name}", params={}, counts={"rows_train": 1234}, details=details)
    return workspace


def test_the_card_tells_scores_data_and_lineage(exported, workspace):
    text = card.write_card(exported, repo=REPO, licence="apache-2.0", workspace=workspace)
    read = ModelCard(text)
    assert read.data.language == ["deu", "fra"]
    assert (read.data.license, read.data.library_name) == ("apache-2.0", "sentence-transformers")
    assert {(result.dataset_name, result.metric_value) for result in read.data.eval_results} >= {
        ("embedded Bitext", 0.25),
        ("embedded Code", 0.5),
    }
    assert "| embedded | Bitext | 0.250 |" in text
    assert "0.753" not in text  # another submodel's
    assert "| bitext | 1,234 | deu, fra | Unicode-3.0 |" in text
    assert "| code | 1,234 | not recorded | not recorded |" in text
    assert 'SentenceTransformer("house/small", trust_remote_code=True)' in text
    assert 'prompt_name="query"' in text
    assert "| vector | 8 dimensions, unit length |" in text


def test_what_is_not_known_is_not_told(exported, workspace):
    for where in (None, Workspace(workspace.root / "elsewhere")):
        text = card.write_card(exported, repo=REPO, workspace=where)
        assert "This submodel has not been scored." in text
        assert "Not known here" in text
        assert ModelCard(text).data.license is None
    # Scores of other weights under the same name are no scores of this model.
    weights = workspace.models / "3d" / "factors.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "This submodel has not been scored." in card.write_card(exported, repo=REPO, workspace=workspace)


def test_a_dry_run_names_every_file_and_sends_nothing(exported, monkeypatch):
    monkeypatch.setattr(card, "HfApi", None)
    upload = card.push(exported, repo=REPO, dry_run=True)
    assert upload.url is None
    assert set(upload.files) == {path.relative_to(exported).as_posix() for path in exported.rglob("*") if path.is_file()} | {"README.md"}
    assert upload.card.startswith("---\n")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a push asks for; what arrives is kept on the server."""

    def do_POST(self):
        body = self._body()
        self.server.tokens.add(self.headers.get("Authorization"))
        if self.path == "/api/repos/create":
            self.server.asked = json.loads(body)
            answer = {"url": f"{self.server.address}/{REPO}"}
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif self.path.endswith("/preupload/main"):
            answer = {"files": [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]}
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{self.server.address}/{REPO}/commit/{'0' * 40}", "commitOid": "0" * 40}
        else:
            return self.send_error(404)
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return None

    def _body(self):
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):  # in chunks
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.address = f"http://127.0.0.1:{server.server_port}"
        server.files, server.tokens = {}, set()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(card, "HfApi", partial(HfApi, endpoint=server.address))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        yield server
        server.shutdown()


def test_a_hub_gets_every_file_and_the_card(exported, hub, tmp_path):
    upload = card.push(exported, repo=REPO)
    assert upload.url.endswith("0" * 40)
    assert hub.asked["visibility"] == "private"
    assert hub.tokens == {"Bearer hf_of_nobody"}
    assert hub.files.pop("README.md").decode() == upload.card
    assert hub.files == {path.relative_to(exported).as_posix(): path.read_bytes() for path in exported.rglob("*") if path.is_file()}


def test_without_the_network_nothing_is_lost(exported, hub):
    hub.shutdown()
    hub.server_close()
    with pytest.raises(MachineError, match=f"cannot push to {REPO}: .*\n.*--dry-run shows"):
        card.push(exported, repo=REPO)
    assert list(changed_files(exported)) == []


def test_only_what_was_exported_is_sent(exported, mel_model):
    (exported / "README.md").write_text("a card")  # as it comes back from the hub
    card.push(exported, repo=REPO, dry_run=True)
    (exported / "notes.txt").write_text("private")
    with pytest.raises(VerificationError, match=r"notes.txt was added\); nothing was sent"):
        card.push(exported, repo=REPO, dry_run=True)
    with pytest.raises(ArtifactError, match="is no export"):
        card.write_card(mel_model, repo=REPO)
