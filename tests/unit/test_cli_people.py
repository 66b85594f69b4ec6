"""The commands for people, called as the console script calls them, on a real tiny model and a real MLflow database."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from mlembed_core.artifacts import Workspace, write_manifest
from mlembed_core.cli import main
from mlembed_core.config.load import read_yaml
from mlembed_core.errors import SubmodelError
from mlembed_core.export.verify import Reader

REPOSITORY = Path(__file__).parents[2]
TEXTS = ["a red house", "the blue sea", "la maison rouge", "das Haus am See"]


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def mlembed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["mlembed", *arguments])
        with pytest.raises(SystemExit) as leave:
            main()
        captured = capsys.readouterr()
        return Result(int(leave.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights: 2 layers, dim 16, rank 8, tokens are bytes."""
    from mlembed_core.model.checkpoint import write_checkpoint
    from mlembed_core.model.network import Network
    from tests.tiny import tiny_qwen3, tokenizer_folder

    root = tmp_path_factory.mktemp("tiny")
    tokenizer = tokenizer_folder(root / "tokenizer", max_length=32)
    out = root / "3d"
    out.mkdir()
    axes = {"mrl_dims": [8, 16], "mll_layers": [1, 2], "mel_ranks": [4, 8]}
    network = Network(tiny_qwen3(seed=1, vocab_size=258), rank=8)
    write_checkpoint(out, network, tokenizer_folder=tokenizer, details={"setting": "3d", **axes})
    write_manifest(out, stage="train@3d", params={"seed": 1}, inputs={"tokenizer": tokenizer})
    return out


@pytest.fixture
def workspace(tmp_path: Path, tiny_model: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    root = tmp_path / "clone"
    (root / "configs").mkdir(parents=True)
    shutil.copyfile(REPOSITORY / "configs" / "params.yaml", root / "configs" / "params.yaml")
    shutil.copytree(tiny_model, root / "models" / "3d")
    shutil.copyfile(mlflow_database, root / "mlflow.db")
    (root / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    monkeypatch.chdir(root)
    return Workspace(root)


def test_encode_writes_one_unit_vector_per_text(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    result = mlembed("encode", "texts.txt", "v.npy", "--model", "models/3d", "--layers", "1", "--dim", "8", "--rank", "4")
    assert result.code == 0
    assert "shape (4, 8), l1-d8-r4" in result.out
    assert "texts/s" in result.out
    vectors = np.load("v.npy", allow_pickle=False)
    assert vectors.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_encode_equals_the_python_face(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    import mlembed_core

    (workspace.root / "t.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS))
    result = mlembed("encode", "t.jsonl", "v.parquet", "--model", "models/3d", "--column", "body", "--json")
    summary = json.loads(result.out)
    assert (summary["texts"], summary["dim"], summary["submodel"]) == (4, 16, "l2-d16-r8")
    table = pq.read_table("v.parquet")
    assert table["text"].to_pylist() == TEXTS
    expected = mlembed_core.load("models/3d").encode_documents(TEXTS)
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, atol=1e-6)


def test_queries_take_the_instruction(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    assert mlembed("encode", "texts.txt", "d.npy", "--model", "models/3d").code == 0
    assert mlembed("encode", "texts.txt", "q.npy", "--model", "models/3d", "--queries", "--instruction", "find").code == 0
    assert not np.allclose(np.load("d.npy"), np.load("q.npy"))
    assert "add --queries" in mlembed("encode", "texts.txt", "q.npy", "--model", "models/3d", "--instruction", "find").err


def test_search_finds_a_text_by_itself(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    cut = ["--layers", "2", "--dim", "8", "--rank", "8"]
    result = mlembed("search", "la maison rouge", "--model", "models/3d", *cut, "--file", "texts.txt", "--top", "2", "--json")
    assert result.code == 0
    found = json.loads(result.out)
    assert (found["submodel"], found["texts"], len(found["hits"])) == ("l2-d8-r8", 4, 2)
    assert found["hits"][0] == {"rank": 1, "score": pytest.approx(1, abs=1e-5), "text": "la maison rouge", "place": "texts.txt:3"}
    (kept,) = (workspace.work / "search").glob("*.npy")
    written = kept.read_bytes()
    again = mlembed("search", "la maison rouge", "--model", "models/3d", *cut, "--file", "texts.txt", "--top", "2", "--json")
    assert json.loads(again.out) == found
    assert kept.read_bytes() == written


@pytest.mark.parametrize(("kind", "shape", "dtype"), [("int8", (4, 16), np.int8), ("binary", (4, 2), np.uint8)])
def test_vectors_in_fewer_bits(
    workspace: Workspace, mlembed: Callable[..., Result], kind: str, shape: tuple[int, int], dtype: type[np.generic]
) -> None:
    assert mlembed("encode", "texts.txt", "v.npy", "--model", "models/3d", "--vectors", kind).code == 0
    vectors = np.load("v.npy", allow_pickle=False)
    assert (vectors.shape, vectors.dtype) == (shape, dtype)
    assert (workspace.root / "v.npy.ranges.npy").exists() == (kind == "int8")
    assert mlembed("encode", "texts.txt", "v.parquet", "--model", "models/3d", "--vectors", kind).code == 0
    np.testing.assert_array_equal(np.array(pq.read_table("v.parquet")["vector"].to_pylist()), vectors)
    search = ["search", "das Haus am See", "--model", "models/3d", "--file", "texts.txt", "--vectors", kind, "--json"]
    first = json.loads(mlembed(*search).out)
    assert first["hits"][0]["text"] == "das Haus am See"
    assert json.loads(mlembed(*search).out) == first  # from what was kept
    kept = list((workspace.work / "search").glob("*.npy"))
    assert len(kept) == (2 if kind == "int8" else 1)
    assert {np.load(path).dtype for path in kept} <= {np.dtype(dtype), np.dtype(np.float32)}


def test_search_goes_over_the_sources_by_default(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    (workspace.sources / "own").mkdir(parents=True)
    rows = {"query": TEXTS, "passage": TEXTS, "lang": ["eng", "eng", "fra", "deu"], "split": ["train", "dev", "test", "train"]}
    pq.write_table(pa.table(rows), workspace.sources / "own" / "rows.parquet")
    result = mlembed("search", "das Haus am See", "--model", "models/3d")
    assert result.code == 0
    assert len(result.out.splitlines()) == 3
    assert result.out.splitlines()[0] == "  1  +1.000  das Haus am See  [own (deu)]"


def test_register_then_search_by_alias(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    first = mlembed("register", "3d")
    assert first.code == 0
    assert "registered mlembed_embedded version 1 (candidate-3d)" in first.out
    second = mlembed("register", "3d", "--json")
    assert [item["created"] for item in json.loads(second.out)] == [False]
    result = mlembed("search", "sea", "--model", "models:/mlembed_embedded@candidate-3d", "--file", "texts.txt")
    assert result.code == 0
    assert len(result.out.splitlines()) == 4


def test_a_registered_version_is_the_backbone_of_the_next_stage(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    assert mlembed("register", "3d").code == 0
    shutil.copytree(workspace.models / "3d", workspace.tokenizer)
    values = read_yaml(workspace.params_file) | {"backbone": {"type": "registry", "name": "mlembed_embedded", "version": 1}}
    workspace.params_file.write_text(json.dumps(values))
    assert mlembed("backbone").code == 0
    mine, registered = (load_file(folder / "model.safetensors") for folder in (workspace.backbone, workspace.models / "3d"))
    assert all(np.array_equal(mine[name], registered[name]) for name in registered)
    workspace.params_file.write_text(json.dumps(values | {"backbone": {**values["backbone"], "version": 2}}))
    result = mlembed("backbone")
    assert result.code == 9
    assert "has no version 2" in result.err


def test_a_registered_version_is_a_teacher(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    from mlembed_core.config.settings import SettingParams
    from mlembed_core.stages.train import _teacher
    from mlembed_core.train.teacher import folder_hash

    assert mlembed("register", "3d").code == 0
    shutil.copytree(workspace.models / "3d", workspace.tokenizer)
    named = {"type": "registry", "name": "mlembed_embedded", "version": 1}
    setting = SettingParams.model_validate({"distillation": {"weight": 1, "teacher": named}})
    teacher = _teacher(workspace, "small", setting, hidden=8)
    assert teacher is not None
    assert teacher.sha256 == folder_hash(workspace.models / "3d")


@pytest.mark.filterwarnings("ignore:.*Any type hint")  # MLflow's own, of its own code
def test_a_version_is_an_mlflow_model_with_the_cuts_as_parameters(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    import mlflow
    import pandas as pd

    import mlembed_core

    assert mlembed("register", "3d").code == 0
    mlflow.set_tracking_uri(f"sqlite:///{workspace.root}/mlflow.db")
    model = mlflow.pyfunc.load_model("models:/mlembed_embedded@candidate-3d")
    table = pd.DataFrame({"text": TEXTS})
    np.testing.assert_allclose(model.predict(table), mlembed_core.load("models/3d").encode_documents(TEXTS), atol=1e-6)
    cut = model.predict(table, params={"layers": 1, "dim": 8, "rank": 4, "instruction": "Find it."})
    expected = mlembed_core.load("models/3d", layers=1, dim=8, rank=4).encode_queries(TEXTS, instruction="Find it.")
    np.testing.assert_allclose(cut, expected, atol=1e-6)
    with pytest.raises(SubmodelError, match="dim=17 is out of range"):
        model.predict(table, params={"dim": 17})


@pytest.mark.slow
def test_mlflow_serves_a_version_over_http(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    """`mlflow models serve`, as a person starts it: the cuts are parameters of each request."""
    import mlembed_core

    assert mlembed("register", "3d").code == 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/mlembed_embedded/1", "--env-manager", "local"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{workspace.root}/mlflow.db", "PYTHONPATH": str(REPOSITORY)}
    with (workspace.root / "serve.log").open("wb") as log:
        address = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        process = subprocess.Popen([*command, *address], stdout=log, stderr=log, env=environment, start_new_session=True)
    try:

        def ask(**body: Any) -> Any:
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                return np.array(json.load(answer)["predictions"])

        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
                    break
            except OSError:
                log_text = (workspace.root / "serve.log").read_text()
                assert process.poll() is None, log_text
                assert time.monotonic() < end, log_text
                time.sleep(0.3)
        table = {"columns": ["text"], "data": [[text] for text in TEXTS]}
        whole = mlembed_core.load("models/3d")
        np.testing.assert_allclose(ask(dataframe_split=table), whole.encode_documents(TEXTS), atol=1e-6)
        cut = ask(dataframe_split=table, params={"layers": 1, "dim": 8, "rank": 4, "instruction": "Find it."})
        expected = mlembed_core.load("models/3d", layers=1, dim=8, rank=4).encode_queries(TEXTS, instruction="Find it.")
        np.testing.assert_allclose(cut, expected, atol=1e-6)
        with pytest.raises(urllib.error.HTTPError) as refused:
            ask(dataframe_split=table, params={"dim": 17})
        assert refused.value.code >= 400
        assert ask(dataframe_split=table, params={"dim": 8}).shape == (4, 8)  # nobody else is harmed
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # the server's workers are of its session
        process.wait()


def test_an_export_is_checked_searched_and_held_to_its_hashes(
    workspace: Workspace, mlembed: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Loading sentence-transformers takes seconds; that it reads exports is tested where it is loaded already.
    monkeypatch.setattr(Reader, "installed", property(lambda reader: reader is Reader.MLEMBED))
    exported = mlembed("export", "models/3d", "--layers", "1", "--dim", "8", "--rank", "4", "--json")
    assert exported.code == 0, exported.err
    done = json.loads(exported.out)
    assert done["folder"] == "exports/3d-l1-d8-r4-compat-fp32"
    fingerprint = done["verification"]["fingerprint"]
    other = mlembed("verify", done["folder"], "--fingerprint", "0" * 64)
    assert f"has the fingerprint {fingerprint}, not 000" in other.err
    found = json.loads(mlembed("search", "sea", "--model", done["folder"], "--file", "texts.txt", "--json").out)
    assert (found["submodel"], len(found["hits"])) == ("l1-d8-r16", 4)  # its table has been multiplied out
    (workspace.root / done["folder"] / "config.json").write_text("{}")
    refused = mlembed("verify", done["folder"])
    assert refused.code == 5
    assert "config.json has 2 bytes" in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "x", "--model", "models/4d", "--file", "texts.txt"], 5, "there are: models/3d"),
        (
            ["search", "x", "--model", "models/3d", "--file", "texts.txt", "--dim", "17"],
            7,
            "dim=17 is out of range: this model has dim 1 … 16",
        ),
        (["search", "x", "--model", "models/3d"], 5, "dvc repro source"),
        (["search", " ", "--model", "models/3d"], 2, "the query is empty"),
        (["search", "x", "--model", "models:/mlembed_embedded@champion", "--file", "texts.txt"], 9, "no model 'mlembed_embedded'"),
        (["encode", "nothing.txt", "v.npy", "--model", "models/3d"], 4, "nothing.txt cannot be read"),
        (["encode", "texts.txt", "v.csv", "--model", "models/3d"], 4, "written as .npy or .parquet"),
        (["encode", "texts.txt", "v.npy", "--model", "models/3d", "--layers", "3"], 7, "layers=3 is out of range"),
        (["export", "models/3d", "--rank", "9"], 7, "rank=9 is out of range: this model has rank 1 … 8"),
        (["verify", "models/3d"], 5, "models/3d is no export (no export.json)"),
        (["register"], 2, "name one setting, or give --all"),
        (["register", "3d", "--all"], 2, "name one setting, or give --all"),
        (["register", "4d"], 3, "settings has no '4d' (there are: 3d, baseline)"),
        (["register", "baseline"], 5, "dvc repro train@baseline"),
    ],
)
def test_mistakes_are_explained(
    workspace: Workspace, mlembed: Callable[..., Result], arguments: list[str], code: int, message: str
) -> None:
    result = mlembed(*arguments)
    assert message in " ".join(result.err.replace("│", " ").split())
    assert result.code == code
    assert "Traceback" not in result.err


@pytest.mark.slow
def test_verify_in_a_fresh_process_with_every_stack(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    assert mlembed("export", "models/3d", "--format", "factorised", "--dtype", "bf16", "--out", "small").code == 0
    result = mlembed("verify", "small")
    assert result.code == 0
    assert "mlembed within" in result.out
    assert "sentence-transformers within" in result.out


def test_a_configuration_of_the_reference_becomes_a_preset(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    presets = workspace.root / "configs" / "presets"
    shutil.copytree(REPOSITORY / "configs" / "presets", presets)
    (workspace.root / "config.json").write_text(json.dumps({"experiment_id": "Mine 1", "train_batch_size": 4, "lr": 1e-4, "tb_dir": "tb"}))
    call = ["migrate", "config.json", "--on", "tiny", "--processes", "2", "--key", "lr=learning_rate"]
    shown = mlembed(*call, "--dry-run")
    assert shown.code == 0
    assert not (presets / "mine_1.yaml").exists()
    assert "taken    train_batch_size → train.batch_size: 8" in shown.err
    assert "left out tb_dir: curves are in" in shown.err
    assert mlembed(*call).code == 0
    assert (presets / "mine_1.yaml").read_text().strip() == shown.out.strip()
    assert mlembed("preset", "mine_1").code == 0
    assert read_yaml(workspace.params_file)["train"]["learning_rate"] == 1e-4
    assert "is not of the form THEIRS=KNOWN" in mlembed("migrate", "config.json", "--key", "lr").err
    assert json.loads(mlembed(*call, "--json").out)["file"].endswith("mine_1.yaml")


def test_doctor_says_what_a_preset_takes(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    shutil.copytree(REPOSITORY / "configs" / "presets", workspace.root / "configs" / "presets")
    result = mlembed("doctor", "--preset", "ml-embed-80m", "--rows", "1000000")
    assert result.code == 0
    assert "ml-embed-80m: 80.1 M parameters" in result.out
    assert "memory per GPU, setting 3d" in result.out
    assert "disk, for 1,000,000 rows" in result.out
    assert json.loads(mlembed("doctor", "--preset", "ml-embed-80m", "--json").out)["disk"]["cache"] > 0
    said = mlembed("doctor", "--preset", "ml-embed-80m", "--machines", "16", "--tflops", "100").out
    assert "time on 16 × 8 GPUs at 100 TFLOP/s a GPU and 3200 Gbit/s a machine; assumed, not measured: Gbit/s" in said
    assert "whole weights" in said
    assert "it belongs to --preset" in mlembed("doctor", "--machines", "16").err


def test_doctor_speaks_to_people_and_machines(workspace: Workspace, mlembed: Callable[..., Result]) -> None:
    shutil.copyfile(REPOSITORY / "constraints.txt", workspace.root / "constraints.txt")
    findings = {finding["name"]: finding for finding in json.loads(mlembed("doctor", "--json").out)}
    assert findings["params"]["status"] == "ok"
    assert findings["mlflow"]["status"] == "ok"
    (workspace.params_file).write_text("name: Not-allowed\n")
    result = mlembed("doctor")
    assert result.code == 6
    assert "fail  params:" in result.out
    assert "checks failed" in result.err
