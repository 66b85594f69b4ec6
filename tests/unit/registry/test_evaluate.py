"""Scores of models from anywhere on tasks of mteb itself, whose data lie in a mirror that the test makes; and what is missing, named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from mlembed_core.artifacts import Workspace, write_json
from mlembed_core.config.evaluate import SubmodelParams
from mlembed_core.errors import ArtifactError, ConfigError, MachineError
from mlembed_core.registry.evaluate import evaluate_model, find_suite, prefetch
from tests.mini_hub import mini_hub
from tests.tiny import tiny_qwen3

REPOSITORY = Path(__file__).parents[3]
TASKS = "SciFact,Banking77Classification"


pytestmark = pytest.mark.usefixtures("environment_stays")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    root = tmp_path / "clone"
    (root / "configs").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "configs" / "suites", root / "configs" / "suites")
    (root / "configs" / "params.yaml").write_text(
        "evaluation: {num_threads: 1, batch_tokens: 256, submodels: [{}, {layers: 1, dim: 8}, {dim: 64}]}\n"
        "suites: {mine: {type: mteb_tasks, tasks: [SciFact], query_scores: true}}\n"
    )
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Workspace(root)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The hub's repositories of two tasks of mteb, in miniature, where a mirror has them."""
    import mteb

    place = tmp_path / "mirror"
    for name, write in (("SciFact", retrieval), ("Banking77Classification", classification)):
        dataset = mteb.get_task(name).metadata.dataset
        folder = place / dataset["path"] / dataset["revision"]
        folder.mkdir(parents=True)
        write(folder)
    monkeypatch.setenv("MLEMBED_DATASETS", str(place))
    return place


def lines(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def retrieval(folder):
    lines(folder / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": f"fact {n} is so"} for n in range(12)])
    lines(folder / "queries.jsonl", [{"_id": f"q{n}", "text": f"is fact {n} so?"} for n in range(12)])
    lines(folder / "qrels" / "test.jsonl", [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(12)])
    configs = (("default", "test", "qrels/test.jsonl"), ("corpus", "corpus", "corpus.jsonl"), ("queries", "queries", "queries.jsonl"))
    parts = "".join(f"- config_name: {c}\n  data_files: [{{split: {s}, path: {p}}}]\n" for c, s, p in configs)
    (folder / "README.md").write_text(f"---\nconfigs:\n{parts}---\n")


def classification(folder):
    for split, size in (("train", 40), ("test", 20)):
        lines(
            folder / f"{split}.jsonl",
            [{"text": f"{'card lost' if n % 2 else 'rate of exchange'} {n}", "label": n % 2} for n in range(size)],
        )


@pytest.fixture
def theirs(tmp_path):
    """A folder that sentence-transformers wrote; nothing of ours in it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import PreTrainedTokenizerFast

    from mlembed_core.data.tokenize import EOS, PAD, train_tokenizer

    tokenizer = train_tokenizer([[f"is fact {n} so? the card is lost" for n in range(100)]], vocab_size=300)
    plain = tmp_path / "plain"
    tiny_qwen3(seed=3, vocab_size=tokenizer.get_vocab_size()).save_pretrained(plain)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, model_max_length=24).save_pretrained(plain)
    transformer = Transformer(str(plain))
    model = SentenceTransformer(modules=[transformer, Pooling(16, pooling_mode="lasttoken"), Normalize()], device="cpu")
    model.save(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


def test_a_folder_of_sentence_transformers_gives_its_own_vectors(theirs):
    import numpy as np
    from sentence_transformers import SentenceTransformer

    from mlembed_core.model.stock import open_any

    texts = ["is fact 3 so?", "", "the card " * 40]
    expected = SentenceTransformer(str(theirs), device="cpu").encode(texts)
    assert np.allclose(open_any(theirs).encoder.encode_documents(texts), expected, atol=1e-5)
    modules = json.loads((theirs / "modules.json").read_text())
    write_json(theirs / "modules.json", [*modules, {"idx": 3, "name": "3", "path": "", "type": "sentence_transformers.models.Dense"}])
    with pytest.raises(ArtifactError, match="names the modules Transformer, Pooling, Normalize, Dense"):
        open_any(theirs)


def test_any_model_is_scored_on_tasks_of_mteb_from_a_mirror(workspace, mirror, theirs):
    import mteb

    done = evaluate_model(str(theirs), TASKS, cut=SubmodelParams(), grid=True)
    assert set(done.scores) == {"l1-d8-r16", "l2-d16-r16"}
    assert done.folder.is_relative_to(workspace.work)
    frame = pd.read_parquet(done.folder / "scores.parquet")
    assert set(frame["task"]) == set(TASKS.split(","))
    assert str(mirror).encode() not in (done.folder / "scores.parquet").read_bytes()

    # mteb reads the results back as its own, one revision per submodel, and they say the same.
    found = mteb.ResultCache(done.folder).load_results(tasks=TASKS.split(","), require_model_meta=False)
    by_revision = {
        model.model_revision: {result.task_name: result.get_score() for result in model.task_results} for model in found.model_results
    }
    assert set(by_revision) == {f"{done.weights}-{name}" for name in done.scores}
    for name, scores in done.scores.items():
        expected = {task: score for task, score in scores.items() if task != "average"}
        assert by_revision[f"{done.weights}-{name}"] == pytest.approx(expected, abs=1e-6)

    from huggingface_hub import ModelCard

    card = ModelCard(f"---\n{(done.folder / 'cards' / 'l2-d16-r16.yaml').read_text()}---\n")
    values = {result.dataset_name.split()[1]: result.metric_value for result in card.data.eval_results}
    assert values == pytest.approx({task: score for task, score in done.scores["l2-d16-r16"].items() if task != "average"}, abs=1e-6)
    assert {result.dataset_type for result in card.data.eval_results} == {
        mteb.get_task(name).metadata.dataset["path"] for name in TASKS.split(",")
    }


def test_other_weights_are_other_results(workspace, mirror, theirs, tmp_path):
    first = evaluate_model(str(theirs), "mine", cut=SubmodelParams())
    tiny_qwen3(seed=4, vocab_size=json.loads((theirs / "config.json").read_text())["vocab_size"]).save_pretrained(theirs)
    again = evaluate_model(str(theirs), "mine", cut=SubmodelParams())
    assert again.weights != first.weights
    assert again.folder != first.folder
    assert again.scores != first.scores
    questions = pd.read_parquet(again.folder / "scores.parquet").dropna(subset=["query"])
    assert sorted(questions["query"]) == sorted(f"q{n}" for n in range(12))
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    with pytest.raises(ArtifactError, match="precious exists and holds no results"):
        evaluate_model(str(theirs), "mine", cut=SubmodelParams(), out=tmp_path / "precious")


def test_missing_datasets_are_named_all_at_once_before_the_model_is_read(workspace, mirror, theirs):
    (theirs / "model.safetensors").write_bytes(b"damaged")
    shutil.rmtree(mirror / "mteb" / "banking77", ignore_errors=True)
    shutil.rmtree(mirror)
    with pytest.raises(MachineError, match="2 dataset") as error:
        evaluate_model(str(theirs), TASKS, cut=SubmodelParams())
    message = str(error.value)
    assert all(f"{item.dataset}\n" in message + "\n" for item in prefetch(TASKS, only_list=True))
    assert str(mirror) in message
    assert f"mlembed prefetch {TASKS}" in message


def test_suites_have_many_names_and_wrong_ones_get_a_hint(workspace):
    assert find_suite("german", workspace)[1].benchmark == "MTEB(deu, v1)"
    assert find_suite("MTEB(eng, v2)", None)[0] == "mteb_eng_v2"
    assert find_suite("STS12", None)[1].tasks == ["STS12"]
    for wrong, hint in (("MTEB(eng v2)", r"'MTEB\(eng, v2\)'"), ("germn", "'german'"), ("STS12,SciFat", "'SciFact'")):
        with pytest.raises(ConfigError, match=hint):
            find_suite(wrong, workspace)


def test_every_suite_of_the_catalogue_is_one_of_mteb(workspace):
    import mteb

    from mlembed_core.registry.evaluate import _named_suites

    suites = {name: suite for name, suite in _named_suites(workspace).items() if suite.type == "mteb"}
    assert len(suites) == 17
    assert {suite.benchmark for suite in suites.values()} <= {benchmark.name for benchmark in mteb.get_benchmarks()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dataset_is_fetched_whole_or_not_at_all(mirror, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from mlembed_core.evaluate.mirror import datasets_of
    from mlembed_core.evaluate.suites import mteb_tasks
    from mlembed_core.mirror import HubDataset, fetch

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with mini_hub(mirror) as endpoint:
        (dataset,) = datasets_of(mteb_tasks("x", find_suite("SciFact", None)[1]))
        target = fetch(dataset, tmp_path / "to", endpoint=endpoint)
        there, here = contents(dataset.folder(mirror)), contents(target)
        assert here == there
        assert dataset.find([tmp_path / "to"]) == target
        absent = HubDataset("no/such", "0" * 40)
        with pytest.raises(MachineError, match=f"no/such@{'0' * 40} cannot be fetched"):
            fetch(absent, tmp_path / "to", endpoint=endpoint)
        assert not list((tmp_path / "to" / "no").rglob("*.*"))


def test_without_network_a_prefetch_names_all_that_is_missing(workspace, mirror, monkeypatch):
    from mlembed_core.mirror import mirrors

    def offline(*_, **__):
        raise OSError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    wanted = f"{TASKS},SCIDOCS,NFCorpus"
    there = {item.dataset: item.found for item in prefetch(wanted, only_list=True)}
    assert sorted(there.values()) == [False, False, True, True]
    missing = [name for name, found in there.items() if not found]
    with pytest.raises(MachineError, match="2 of 4 datasets of .* are missing still") as error:
        prefetch(wanted)
    message = str(error.value)
    assert f"{missing[0]} cannot be fetched (OSError: [Errno -3] Temporary failure in name resolution)" in message
    assert f"{missing[1]}, not tried" in message  # the hub's client takes half a minute to give up
    assert mirrors()[0] == mirror
    assert not list(mirror.rglob(".fetch-*"))
