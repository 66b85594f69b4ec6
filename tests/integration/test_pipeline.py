"""The whole pipeline by `dvc repro` on the tiny preset, in a copy of the working tree: bytes, states, faces and faults."""

import json
import re
import shutil
import sys

import pandas as pd
import pytest

from mlembed_core.artifacts import read_manifest, verify_files
from tests.integration.conftest import run


def outs(folder):
    """Every directory with a manifest."""
    return sorted(path.parent for path in folder.rglob("manifest.json") if not {".work", ".dvc"} & set(path.relative_to(folder).parts))


def test_every_out_is_whole_and_says_where_it_came_from(workspace):
    names = {path.relative_to(workspace).as_posix() for path in outs(workspace)}
    assert {"data/sources/cldr_bitext", "data/corpus/cldr_bitext", "data/tokenizer", "data/cache", "data/backbone"} <= names
    assert {"models/baseline", "models/3d", "reports"} <= names
    for out in outs(workspace):
        verify_files(out)
        text = (out / "manifest.json").read_text()
        assert str(workspace) not in text, f"{out} holds an absolute path"


def test_every_setting_and_control_is_scored_on_every_task(workspace):
    for setting in ("baseline", "3d"):
        table = pd.read_parquet(workspace / "scores" / setting / "local.parquet")
        main = table[table["main"]]
        assert set(main["task"]) == {"Topics", "Bitext", "Language"}
        assert main["submodel"].nunique() == 2
        assert main["score"].between(0, 1).all()
    controls = json.loads((workspace / "scores" / "controls" / "local.json").read_text())
    assert {"bm25", "char_tfidf", "word_tfidf"} <= set(controls)


def test_a_second_repro_does_nothing(workspace):
    assert run(workspace, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    out = run(workspace, "dvc", "repro").stdout
    assert "Running stage" not in out


def test_training_again_gives_the_same_bytes(workspace):
    lock = (workspace / "dvc.lock").read_text()
    shutil.rmtree(workspace / ".work")
    run(workspace, "dvc", "repro", "--force", "--single-item", "train@3d")
    assert (workspace / "dvc.lock").read_text() == lock


def test_the_models_serve_vectors_at_a_submodel(workspace):
    code = (
        "import mlembed_core; e = mlembed_core.load('models/3d', layers=1, dim=8, rank=4); "
        "print(e.encode_documents(['one text', 'another']).shape, e.encode_queries(['q'], instruction='Find it').shape)"
    )
    assert run(workspace, sys.executable, "-c", code).stdout.split("\n")[0] == "(2, 8) (1, 8)"


def test_search_finds_a_text_by_itself(workspace):
    (workspace / "texts.txt").write_text("Zurich is a city\nthe import statement loads a module\nKroatisch\n")
    found = run(
        workspace, "mlembed", "search", "the import statement loads a module", "--file", "texts.txt", "--model", "models/3d", "--json"
    ).stdout
    assert "the import statement" in json.dumps(json.loads(found)).split("Zurich")[0]


def test_registration_is_idempotent_and_rebuilds_lost_runs(workspace):
    first = run(workspace, "mlembed", "register", "--all").stdout
    again = run(workspace, "mlembed", "register", "--all").stdout
    for setting in ("baseline", "3d"):
        assert f"candidate-{setting}" in first + again
    code = (
        "import mlflow; c = mlflow.MlflowClient(tracking_uri='sqlite:///mlflow.db'); "
        "print(len(c.search_model_versions(\"name='mlembed_tiny'\")), "
        "c.get_model_version_by_alias('mlembed_tiny', 'candidate-3d').version)"
    )
    assert run(workspace, sys.executable, "-c", code).stdout.split()[0] == "2"
    for file in workspace.glob("mlflow.db*"):
        file.unlink()
    run(workspace, "mlembed", "register", "3d")
    assert run(workspace, sys.executable, "-c", code).stdout.split() == ["1", "1"]


def test_the_summary_is_for_people_and_machines(workspace):
    assert "baseline" in run(workspace, "mlembed", "summary").stdout
    json.loads(run(workspace, "mlembed", "summary", "--json").stdout)


def test_one_changed_setting_retrains_one_model(workspace):
    params = workspace / "configs" / "params.yaml"
    before = params.read_text()
    params.write_text(before.replace("rank: 16", "rank: 8"))
    try:
        status = json.loads(run(workspace, "dvc", "status", "--json").stdout)
    finally:
        params.write_text(before)
    # Nothing but the model and what compares the settings; the scores follow once the model has changed.
    assert set(status) == {"train@3d", "report"}


# ── Faults: the message names what is wrong, and what was there before stays ──────────────────────────────────────────────


@pytest.fixture
def intact(workspace):
    """Fails the test if any out of the pipeline changed in it, and puts the parameters back."""
    params = (workspace / "configs" / "params.yaml").read_text()
    before = {out: (out / "manifest.json").read_bytes() for out in outs(workspace)}
    yield workspace
    (workspace / "configs" / "params.yaml").write_text(params)
    for out, manifest in before.items():
        assert (out / "manifest.json").read_bytes() == manifest
        verify_files(out)


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (("train", "4d"), ["settings has no '4d'", "3d", "baseline"]),
        (("source", "cldr_bitex"), ["sources has no 'cldr_bitex'", "did you mean 'cldr_bitext'"]),
        (("evaluate", "3d", "english"), ["suites has no 'english'", "local"]),
        (("search", "x", "--model", "models/3d", "--layers", "9"), ["layers=9 is out of range", "1 … 2"]),
        (("search", "x", "--model", "models/nothing"), ["models/nothing"]),
    ],
)
def test_a_wrong_name_is_told_with_those_there_are(intact, command, parts):
    done = run(intact, "mlembed", *command, check=False)
    assert done.returncode not in (0, 1)
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-50]), ["rows.parquet"]),
        (lambda path: pd.DataFrame({"query": ["a"], "text": ["b"]}).to_parquet(path), ["rows.parquet", "passage"]),
        (
            lambda path: pd.DataFrame({"query": pd.Series([], dtype=str), "passage": pd.Series([], dtype=str)}).to_parquet(path),
            ["rows.parquet"],
        ),
    ],
    ids=["truncated", "without a column", "empty"],
)
def test_a_bad_file_of_ones_own_is_named(intact, tmp_path, damage, parts):
    file = tmp_path / "rows.parquet"
    pd.DataFrame({"query": ["a", "b"] * 20, "passage": ["c", "d"] * 20}).to_parquet(file)
    damage(file)
    params = intact / "configs" / "params.yaml"
    params.write_text(
        params.read_text().replace("sources:\n", f"sources:\n  own: {{kind: retrieval, origin: {{type: local, files: ['{file}']}}}}\n", 1)
    )
    done = run(intact, "mlembed", "source", "own", check=False)
    assert done.returncode == 4
    for part in parts:
        assert part in done.stderr
    assert not (intact / "data" / "sources" / "own").exists()


def test_a_missing_backbone_is_told(intact):
    params = intact / "configs" / "params.yaml"
    text = params.read_text()
    start, stop = text.index("backbone:\n"), text.index("cache:")
    params.write_text(f"{text[:start]}backbone: {{type: local, path: no/such/folder}}\n{text[stop:]}")
    done = run(intact, "mlembed", "backbone", check=False)
    assert done.returncode == 5
    assert "no/such/folder" in done.stderr


def test_a_failed_stage_under_dvc_is_restored_by_checkout(workspace):
    """DVC clears a stage's out before it runs the stage; its cache still has the bytes."""
    params = workspace / "configs" / "params.yaml"
    before, manifest = params.read_text(), read_manifest(workspace / "models" / "3d")
    params.write_text(re.sub(r"\n  learning_rate: .*", "\n  learning_rate: 1.0e+18", before))
    try:
        done = run(workspace, "dvc", "repro", "--single-item", "train@3d", check=False)
    finally:
        params.write_text(before)
    assert done.returncode != 0
    assert "learning_rate" in done.stdout + done.stderr
    run(workspace, "dvc", "checkout", "models/3d")
    assert read_manifest(workspace / "models" / "3d") == manifest
    assert run(workspace, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
