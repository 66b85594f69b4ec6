"""What must not happen whatever files, names and environments hold: code run from data, files outside the workspace, secrets on record."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mlembed_core.artifacts import Workspace, verify_files, write_json
from mlembed_core.config.presets import compose
from mlembed_core.errors import ArtifactError, ConfigError, MlembedError
from tests.integration.conftest import ROOT, run

SPRUNG = "pickle was opened"
SECRETS = {
    "HF_TOKEN": "hf_planted0secret0token0aaaa",
    "MLEMBED_API_KEY": "planted-api-key-bbbb",  # pragma: allowlist secret
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret/cccc",  # pragma: allowlist secret
    "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password-dddd",  # pragma: allowlist secret
    "WANDB_API_KEY": "planted-wandb-eeee",  # pragma: allowlist secret
}


class Trap:
    """A pickle that leaves a file where it is opened."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (Path.write_text, (Path(self.marker), SPRUNG))


@pytest.fixture
def trapped(workspace, tmp_path):
    """A copy of the pipeline with a trap in every place that something is loaded from; and the file that a sprung one would leave."""
    folder, marker = tmp_path / "copy", tmp_path / "sprung"
    shutil.copytree(workspace, folder, symlinks=True, ignore=shutil.ignore_patterns(".dvc", "mlflow.db*"))
    trap = pickle.dumps(Trap(marker))
    pickle.loads(trap)  # opened by hand, it springs
    assert marker.read_text() == SPRUNG
    marker.unlink()
    # Names that some library would look for, beside our files.
    for place in (folder / "models" / "3d", folder / "data" / "backbone"):
        for name in (
            "pytorch_model.bin",
            "model.pkl",
            "python_model.pkl",
            "U.pth",
            "V.pth",
            "training_args.bin",
            "optimizer.pt",
            "factors.pt",
        ):
            (place / name).write_bytes(trap)
    objects = np.array([Trap(marker)], dtype=object)
    for name in ("documents.npy", "query.npy"):
        np.save(folder / "data" / "cache" / name, objects, allow_pickle=True)
    return folder, trap, marker


LOAD_EVERYTHING = """
import json, sys
from pathlib import Path
import mlembed_core
from mlembed_core.errors import MlembedError
from mlembed_core.importing import import_folder
def attempt(action):
    try:
        action()
        return "ran"
    except MlembedError as error:
        return f"refused: {error}"
def open_model(place):
    return lambda: mlembed_core.load(place).encode_documents(["a text"])
said = {place: attempt(open_model(place)) for place in ("models/3d", "data/backbone", "hollow")}
said["import"] = attempt(lambda: import_folder(Path("stock"), Path("imported/x")))
print(json.dumps(said))
"""


@pytest.mark.slow
def test_no_pickle_is_opened_on_any_path(trapped):
    folder, _, marker = trapped
    # A model whose only weights are a pickle; and a stock model with factors that are traps.
    shutil.copytree(folder / "models" / "3d", folder / "hollow")
    for path in (folder / "hollow").glob("*.safetensors"):
        path.unlink()
    shutil.copytree(folder / "data" / "backbone", folder / "stock")
    (folder / "stock" / "mlembed.json").unlink(missing_ok=True)
    (folder / "stock" / "manifest.json").unlink()
    done = run(folder, sys.executable, "-c", LOAD_EVERYTHING)
    said = json.loads(done.stdout.splitlines()[-1])
    assert not marker.exists(), said
    assert said["models/3d"] == said["data/backbone"] == "ran"
    assert said["hollow"].startswith("refused")
    assert said["import"].startswith("refused")
    assert "pickle can run code" in said["import"]


@pytest.mark.slow
def test_no_pickle_is_opened_by_training_or_scoring(trapped):
    folder, trap, marker = trapped
    # State to resume from and finished tasks, under the very names that ours have.
    for name in ("train", "evaluate", "vectors"):
        (folder / ".work" / name / "step-00000005").mkdir(parents=True, exist_ok=True)
        for file in ("network.safetensors", "optimizer.safetensors", "progress.json", "checkpoint.json", "Topics.parquet", "texts.npy"):
            (folder / ".work" / name / "step-00000005" / file).write_bytes(trap)
    run(folder, "mlembed", "evaluate", "3d", "local")
    run(folder, "mlembed", "cache")
    assert not marker.exists()


@pytest.mark.slow
def test_tables_that_are_pickles_are_refused(trapped):
    folder, trap, marker = trapped
    (folder / "scores" / "3d" / "local.parquet").write_bytes(trap)
    done = run(folder, "mlembed", "report", check=False)
    assert done.returncode not in (0, 1), done.stderr
    (folder / "data" / "sources" / "python_topics" / "rows.parquet").write_bytes(trap)
    assert run(folder, "mlembed", "tokenize", "python_topics", check=False).returncode not in (0, 1)
    assert not marker.exists()


def calls_in(path):
    """(what is called, keyword → constant) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            constants = {item.arg: item.value.value for item in node.keywords if isinstance(item.value, ast.Constant)}
            yield ast.unparse(node.func), constants


def test_our_code_calls_no_loader_of_pickles():
    """`torch.load` only with weights_only, numpy without allow_pickle, and none of those that can only run code."""
    wrong = []
    for path in [file for room in ("mlembed_core", "assets", "workflows") for file in (ROOT / room).rglob("*.py")]:
        for name, constants in calls_in(path):
            refused = (
                name in {"pickle.load", "pickle.loads", "joblib.load", "dill.load", "pd.read_pickle", "eval", "exec"}
                or (name == "torch.load" and constants.get("weights_only") is not True)
                or (name == "np.load" and constants.get("allow_pickle") is not False)
                or constants.get("allow_pickle") is True
                or (constants.get("trust_remote_code") is True)
            )
            if refused:
                wrong.append(f"{path.relative_to(ROOT)}: {name}({constants})")
    assert wrong == []


# ── Names and manifests ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../b"])
def test_a_manifest_cannot_name_files_outside_of_its_folder(tmp_path, name):
    (tmp_path / "outside").write_text("x")
    out = tmp_path / "out"
    out.mkdir()
    files = {name: {"bytes": 1, "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}}
    write_json(out / "manifest.json", {"schema_version": 1, "stage": "x", "files": files})
    with pytest.raises(ArtifactError, match="lies outside of it"):
        verify_files(out)


@pytest.mark.parametrize("name", ["../presets/tiny", "/tmp/tiny", "../../configs/presets/tiny"])
def test_a_preset_is_a_name(name):
    with pytest.raises(ConfigError, match="there is no preset"):
        compose(ROOT / "configs" / "presets", name)


@pytest.mark.parametrize(
    "command",
    [
        ("source", "../../etc"),
        ("tokenize", "../x"),
        ("train", "../3d"),
        ("evaluate", "3d", "../local"),
        ("control", "../local"),
        ("register", "../3d"),
    ],
)
def test_no_command_takes_a_path_for_a_name(workspace, command):
    from mlembed_core.config.base import pick
    from mlembed_core.config.load import load_all
    from mlembed_core.config.params import Params

    params = load_all(Workspace(workspace).params_file, Params)
    section = {"source": "sources", "tokenize": "sources", "control": "suites", "evaluate": "suites"}.get(command[0], "settings")
    with pytest.raises(MlembedError, match=rf"{section} has no"):
        pick(getattr(params, section), command[-1], path=section)


@pytest.mark.parametrize("key", ["../x", "a/b", "a\\\\b", "..", "a b", "ä"])
def test_the_parameters_have_no_such_names(key):
    from mlembed_core.config.base import parse
    from mlembed_core.registry.register import Config

    with pytest.raises(ConfigError, match="is not allowed"):
        parse(Config, {"name": "house", "settings": {key: {}}}, origin="params.yaml")


# ── Secrets ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow  # a training, a registration and a promotion
def test_secrets_of_the_environment_are_written_nowhere(workspace, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(workspace, folder, symlinks=True)
    for path in folder.glob("mlflow.db*"):
        path.unlink()
    secrets = dict(SECRETS)
    said = []
    for command in (
        ("dvc", "repro", "--force", "--single-item", "train@3d"),
        ("mlembed", "register", "--all"),
        ("mlembed", "promote", "3d", "--why", "a reason"),
        ("mlembed", "history", "--json"),
        ("mlembed", "lineage", "models:/mlembed_tiny@champion", "--check", "--json"),
        ("mlembed", "doctor"),
        (sys.executable, "-m", "workflows.sync"),
    ):
        done = run(folder, *command, check=command[-1] != "doctor", DAGSTER_HOME=str(folder / ".dagster"), **secrets)
        said.append(done.stdout + done.stderr)
    # A password in an address, on a server that is not there.
    address = "http://ada:planted-in-the-address-ffff@127.0.0.1:9"  # pragma: allowlist secret
    done = run(folder, "mlembed", "register", "3d", check=False, MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    said.append(done.stdout + done.stderr)
    assert done.returncode == 9
    needles = [value.encode() for value in [*secrets.values(), "planted-in-the-address-ffff"]]
    found = [needle for needle in needles if needle in "\n".join(said).encode()]
    files = 0
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name != Path(__file__).name:
            files += 1
            content = path.read_bytes()
            found += [f"{path.relative_to(folder)}: {needle}" for needle in needles if needle in content]
    assert files > 100
    assert found == []


# ── Servers ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_local_servers_are_told_to_listen_on_loopback():
    """In the code of `make ui`; that the running ones do is looked at in tests/integration/test_dagster.py."""
    from workflows import ui

    assert ui.HOST == "127.0.0.1"
    text = Path(ui.__file__).read_text(encoding="utf-8")
    assert "0.0.0.0" not in text
    assert text.count("HOST") >= 6


def test_serving_others_needs_a_key():
    environment = {name: value for name, value in os.environ.items() if name != "MLEMBED_API_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", "mlembed_core", "serve", "--model", "nowhere", "--host", "0.0.0.0"],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode not in (0, 1)
    assert "MLEMBED_API_KEY" in done.stderr
