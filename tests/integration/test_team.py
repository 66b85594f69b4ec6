"""A team on one pipeline: two clones and one remote, commits checked out, experiments, and the champion that all of them share."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlembed_core.artifacts import Workspace
from mlembed_core.config.load import read_yaml
from mlembed_core.registry.lineage import Place
from tests.integration.conftest import ENVIRONMENT, run

COMMITTER = ("-c", "user.name=ada", "-c", "user.email=ada@example.org")


def commit(folder, message):
    run(folder, "git", "add", "--all")
    run(folder, "git", *COMMITTER, "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def first(workspace, tmp_path_factory):
    """The clone in which everything was computed, committed and pushed to a directory."""
    base = tmp_path_factory.mktemp("team")
    folder = base / "first"
    shutil.copytree(workspace, folder, symlinks=True, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts", ".dagster", ".work"))
    run(folder, "dvc", "remote", "add", "--default", "shared", str(base / "remote"))
    commit(folder, "everything computed")
    run(folder, "dvc", "push")
    return folder


@pytest.fixture(scope="module")
def second(first):
    """A colleague's clone, with nothing in it but what git has."""
    folder = first.parent / "second"
    run(first.parent, "git", "clone", "--quiet", str(first), str(folder))
    return folder


def scores_of(folder, setting="3d"):
    return json.loads((folder / "scores" / setting / "local.json").read_text())


@pytest.mark.slow  # the whole of it a minute: a registration, four promotions, an export proved
def test_a_colleague_computes_nothing_and_has_it_all(first, second):
    assert not (second / "models").exists()
    run(second, "dvc", "pull")
    assert run(second, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert "Running stage" not in run(second, "dvc", "repro").stdout
    assert read_yaml(second / "dvc.lock") == read_yaml(first / "dvc.lock")
    # … and can register, score, promote and trace from what came.
    run(second, "mlembed", "register", "--all")
    done = json.loads(run(second, "mlembed", "promote", "3d", "--why", "pulled", "--json").stdout)
    assert done["moved"]
    findings = {finding["name"]: finding for finding in done["findings"]}
    assert all(finding["passed"] for finding in findings.values())
    assert findings["export_is_verified"]["figures"]["difference"] < 1e-5
    assert findings["no_check_failed"]["figures"]["not_asked"] == []
    params = second / "configs" / "params.yaml"
    params.write_text((before := params.read_text()).replace("margin: 0.0", "margin: 0.5"))  # no stage reads it
    assert run(second, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    refused = run(second, "mlembed", "promote", "baseline", check=False)
    params.write_text(before)
    assert refused.returncode == 11
    assert "beats_the_champion: average" in refused.stderr
    assert "needed: at least +0.5" in refused.stderr
    found = json.loads(run(second, "mlembed", "lineage", "models:/mlembed_tiny@champion", "--check", "--json").stdout)
    assert found["problems"] == []
    assert {out["place"] for out in found["outs"]} == {Place.DISK.value}
    lock = (second / "dvc.lock").read_text()
    assert all(f"md5: {out['md5']}\n" in lock for out in found["outs"])
    assert found["git_commit"] == run(second, "git", "rev-parse", "HEAD").stdout.strip()
    assert sum(out["item"].startswith("source@") and bool(out["licences"]) for out in found["outs"]) == 3
    history = json.loads(run(second, "mlembed", "history", "--json").stdout)
    assert history["moves"][0]["why"] == "pulled"
    scored = json.loads(run(second, "mlembed", "rescore", "--json").stdout)
    full = next(iter(scored["scores"]["local"]))
    assert scored["scores"]["local"][full] == pytest.approx(scores_of(second)[full], abs=1e-6)  # the same data, the same scores


@pytest.mark.slow
def test_an_older_commit_is_checked_out_and_shown(first):
    """Another setting is committed on a branch; going back brings back the bytes, and Dagster is told."""
    folder = first.parent / "third"
    run(first.parent, "git", "clone", "--quiet", str(first), str(folder))
    run(folder, "dvc", "pull")
    home = {"DAGSTER_HOME": str(folder / ".dagster")}
    old = read_yaml(folder / "dvc.lock")
    run(folder, sys.executable, "-m", "workflows.sync", **home)
    params = folder / "configs" / "params.yaml"
    params.write_text(params.read_text().replace("rank: 16", "rank: 8"))
    before = run(folder, "dvc", "repro").stdout
    ran = [line.split("'")[1] for line in before.splitlines() if line.startswith("Running stage")]
    assert ran == ["train@3d", "evaluate@3d-local", "report"]  # one setting changed: one training
    commit(folder, "a smaller rank")
    assert "told 3 materialisations" in run(folder, sys.executable, "-m", "workflows.sync", **home).stdout
    assert scores_of(folder) != {}
    diff = json.loads(run(folder, "dvc", "metrics", "diff", "HEAD~1", "--json").stdout)
    assert "scores/3d/local.json" in diff.get("diff", diff)
    assert "train@3d" in run(folder, "dvc", "dag").stdout
    run(folder, "dvc", "plots", "diff", "HEAD~1", "--out", "plots")
    page = (folder / "plots" / "index.html").read_text()
    assert "Training loss" in page
    assert "retention.png" in page
    run(folder, "git", "checkout", "--quiet", "HEAD~1")
    run(folder, "dvc", "checkout")
    assert run(folder, "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert read_yaml(folder / "dvc.lock") == old
    told = run(folder, sys.executable, "-m", "workflows.sync", **home).stdout
    assert "told 3 materialisations" in told  # the model, its scores and the report, as they were


@pytest.mark.slow
def test_an_experiment_is_run_without_touching_the_branch(first):
    folder = first.parent / "fourth"
    run(first.parent, "git", "clone", "--quiet", str(first), str(folder))
    run(folder, "dvc", "pull")
    head = run(folder, "git", "rev-parse", "HEAD").stdout
    run(folder, "git", "config", "user.name", "ada")
    run(folder, "git", "config", "user.email", "ada@example.org")
    run(folder, "dvc", "exp", "run", "--name", "shorter", "-S", "configs/params.yaml:train.num_steps=6")
    assert run(folder, "git", "rev-parse", "HEAD").stdout == head
    shown = json.loads(run(folder, "dvc", "exp", "show", "--json").stdout)
    assert "shorter" in json.dumps(shown)
    assert len((folder / "models" / "3d" / "loss_curve.csv").read_text().splitlines()) < len(
        (first / "models" / "3d" / "loss_curve.csv").read_text().splitlines()
    )


@pytest.mark.slow
def test_one_changed_source_is_tokenised_alone_under_a_fixed_tokenizer(first):
    """With the hub's tokenizer, or one from a folder, no source stands behind it."""
    folder = first.parent / "fifth"
    run(first.parent, "git", "clone", "--quiet", str(first), str(folder))
    run(folder, "dvc", "pull")
    shutil.copytree(folder / "data" / "tokenizer", folder / "fixed")
    (folder / "fixed" / "manifest.json").unlink()
    params = folder / "configs" / "params.yaml"
    text = params.read_text().replace("  type: trained\n  vocab_size: 600", "  type: local\n  path: fixed")
    params.write_text(text)
    run(folder, "dvc", "repro", "cache")
    params.write_text(text.replace("max_rows: 600", "max_rows: 500", 1))
    out = run(folder, "dvc", "repro", "cache").stdout
    ran = [line.split("'")[1] for line in out.splitlines() if line.startswith("Running stage")]
    assert [item for item in ran if item.startswith("tokenize@")] == ["tokenize@cldr_bitext"]
    assert [item for item in ran if item.startswith("source@")] == ["source@cldr_bitext"]


@pytest.mark.slow
def test_the_champions_lineage_needs_no_registry_of_ones_own(second):
    """A clone without a registry says how to get one."""
    done = run(second, "mlembed", "lineage", "models:/nobody@champion", check=False)
    assert done.returncode == 9
    assert "no model 'nobody' is registered" in done.stderr
    assert Workspace(second).root == second


def interpreter_of_dvc():
    """DVC's own, by the first line of its executable."""
    line = Path(shutil.which("dvc", path=ENVIRONMENT["PATH"])).resolve().read_text(encoding="utf-8").splitlines()[0]
    return line.removeprefix("#!").strip()


KEYS = """
import asyncssh, sys
for name in ("host", "client"):
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(f"{sys.argv[1]}/{name}")
    key.write_public_key(f"{sys.argv[1]}/{name}.pub")
"""


@pytest.mark.slow
def test_outs_travel_over_ssh(first, tmp_path):
    python = interpreter_of_dvc()
    missing = subprocess.run([python, "-c", "import asyncssh, dvc_ssh"], capture_output=True, text=True, check=False).stderr
    if missing:
        pytest.skip(f"DVC's environment has no SSH ({missing.splitlines()[-1]}); make setup installs it")
    subprocess.run([python, "-c", KEYS, str(tmp_path)], check=True)
    (tmp_path / "remote").mkdir()
    command = [
        python,
        str(Path(__file__).parent / "ssh_server.py"),
        str(tmp_path / "remote"),
        str(tmp_path / "host"),
        str(tmp_path / "client.pub"),
    ]
    folders = [first.parent / f"ssh_{name}" for name in ("from", "to")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = server.stdout.readline().strip()
            for folder in folders:
                run(first.parent, "git", "clone", "--quiet", str(first), str(folder))
                run(folder, "dvc", "remote", "add", "--default", "--force", "over_ssh", f"ssh://ada@127.0.0.1:{port}/store")
                run(folder, "dvc", "remote", "modify", "--local", "over_ssh", "keyfile", str(tmp_path / "client"))
            run(folders[0], "dvc", "pull", "--remote", "shared")
            run(folders[0], "dvc", "push")
            assert any((tmp_path / "remote" / "store").rglob("*"))
            run(folders[1], "dvc", "pull")
        finally:
            server.kill()
    assert run(folders[1], "dvc", "status").stdout.strip() == "Data and pipelines are up to date."
    assert str(tmp_path / "client") not in run(folders[1], "git", "diff").stdout  # where a key lies is this machine's matter
