"""Scores by mteb through stand-in encoders: perfect ones, random ones, broken ones."""

import dataclasses
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from mlembed_core.config.evaluate import LocalSuite, SubmodelParams
from mlembed_core.config.grid import Shape, Submodel
from mlembed_core.errors import EvaluationError, SubmodelError
from mlembed_core.evaluate.costs import submodel_costs
from mlembed_core.evaluate.encoder import StateStore, SubmodelEncoder
from mlembed_core.evaluate.scoring import Loaded, resolve_submodels, score_suite, submodel_contestants, summary, write_summary, write_table
from mlembed_core.evaluate.suites import suite_tasks

FULL, DEEP_CUT, NARROW, THIN = Submodel(3, 32, 16), Submodel(1, 32, 16), Submodel(3, 8, 16), Submodel(2, 16, 4)
SUBMODELS = [FULL, DEEP_CUT, NARROW, THIN]
SUITE = LocalSuite.model_validate(
    {
        "type": "local",
        "tasks": {
            "Answers": {"type": "retrieval", "source": "answers"},
            "Names": {"type": "bitext_mining", "source": "names"},
            "Classes": {"type": "classification", "source": "classes"},
        },
    }
)


@pytest.fixture
def tasks(sources):
    return suite_tasks("tiny", SUITE, sources=sources)


def score(tasks, encoder, submodels=SUBMODELS, **more):
    store = StateStore(encoder, submodels, batch_tokens=64)
    contestants = submodel_contestants(encoder, store, submodels, setting="mine", revision="abc", instructions=False)
    return score_suite("tiny", Loaded(tasks, contestants, store.clear), num_threads=1, **more)


def main_scores(scores):
    return {(row.task, row.submodel): row.score for row in scores.rows if row.main}


def test_an_encoder_that_understands_scores_one(tasks, understanding):
    found = main_scores(score(tasks, understanding))
    assert set(found) == {(task.metadata.name, submodel.name) for task in tasks for submodel in SUBMODELS}
    assert all(value == pytest.approx(1.0) for value in found.values()), found


def test_a_random_encoder_scores_near_chance(tasks, random):
    found = main_scores(score(tasks, random, [FULL]))
    # 60 documents: a rank up to 10 in one of six cases, at .45 on average; 60 names; 12 classes of texts that share words with nothing.
    assert found["Answers", FULL.name] < 0.25
    assert found["Names", FULL.name] < 0.1
    assert found["Classes", FULL.name] < 0.3


def test_each_text_is_encoded_once_per_rank_and_task(tasks, understanding):
    score(tasks, understanding)
    # 60 queries and documents, 3 names and their target for each of 60 concepts, 8 train texts for each of 12 labels, 120 test texts.
    for rank in (16, 4):
        encoded = [text for asked, _, texts in understanding.calls if asked == rank for text in texts]
        assert len(encoded) == len(set(encoded)) == 2 * 60 + 4 * 60 + 8 * 12 + 120
    assert {(rank, layers) for rank, layers, _ in understanding.calls} == {(16, (1, 3)), (4, (2,))}


def test_the_store_is_dropped_after_each_task(tasks, understanding):
    score([tasks[0], tasks[0]], understanding, [FULL])
    assert sum(len(texts) for _, _, texts in understanding.calls) == 2 * 120


def test_vectors_are_a_direct_cut(random):
    store = StateStore(random, SUBMODELS, batch_tokens=64)
    texts = ["one", "two", "one", "three"]
    for submodel in SUBMODELS:
        direct = random.exit_states(texts, rank=submodel.rank, layers=[submodel.layers])[0][:, : submodel.dim]
        assert np.array_equal(store.states(texts, submodel), direct)
        vectors = encode(SubmodelEncoder(store, submodel, setting="mine", revision="abc"), texts)
        assert np.allclose(vectors, direct / np.linalg.norm(direct, axis=1, keepdims=True), atol=1e-7)
        assert vectors.dtype == np.float32


def encode(encoder, texts, prompt_type=None, prompt=None, path="local/mine", name="Mine"):
    from mteb.abstasks.task_metadata import TaskMetadata

    metadata = TaskMetadata(
        name=name,
        description="",
        prompt=prompt,
        dataset={"path": path, "revision": "1"},
        type="Retrieval",
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )
    return encoder.encode([{"text": texts}], task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=prompt_type)


@pytest.mark.parametrize(
    ("instructions", "path", "prompt_type", "expected"),
    [
        (False, "local/mine", "query", "Instruct: Find it\nQuery: one"),
        (False, "local/mine", None, "Instruct: Find it\nQuery: one"),
        (True, "local/mine", "document", "one"),
        (False, "mteb/real", "query", "one"),
        (True, "mteb/real", "query", "Instruct: Find it\nQuery: one"),
        (True, "mteb/real", "document", "one"),
    ],
)
def test_the_prompt_stands_before_queries_only(random, instructions, path, prompt_type, expected):
    from mteb.types import PromptType

    store = StateStore(random, [FULL], batch_tokens=64)
    encoder = SubmodelEncoder(store, FULL, setting="mine", revision="abc", instructions=instructions)
    encode(encoder, ["one"], prompt_type=prompt_type and PromptType(prompt_type), prompt="Find it", path=path)
    assert random.calls == [(16, (3,), [expected])]


def test_no_identity_is_shared_by_two_cuts_or_two_trainings(random):
    store = StateStore(random, SUBMODELS, batch_tokens=64)
    metas = [SubmodelEncoder(store, s, setting="mine", revision=r).mteb_model_meta for s in SUBMODELS for r in ("abc", "def")]
    assert {meta.name for meta in metas} == {"mlembed/mine"}
    assert len({meta.revision for meta in metas}) == len(metas)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda text: np.full(32, np.nan if text == "what is 7?" else 1.0), "1 of 60 vectors have a value that is not finite.*what is 7"),
        (lambda text: np.full(32, np.inf), "not finite"),
        (lambda text: np.zeros(32), "length zero"),
        (lambda text: np.linspace(1, 2, 32), "all 60 vectors are the same, though 60 texts differ"),
    ],
)
def test_a_wrong_vector_is_an_error_never_a_score(tasks, stand_in, broken, message):
    with pytest.raises(EvaluationError, match=message) as error:
        score(tasks[:1], stand_in(lambda text, rank, layers: broken(text).astype(np.float32)), [FULL])
    assert f"mine {FULL.name} on task Answers" in str(error.value)


def test_too_few_states_are_an_error(tasks, understanding, monkeypatch):
    whole = understanding.exit_states
    monkeypatch.setattr(understanding, "exit_states", lambda texts, **rest: whole(texts, **rest)[:, 1:])
    with pytest.raises(EvaluationError, match=r"states of shape \(1, 59, 32\) for 60 texts"):
        score(tasks[:1], understanding, [FULL])


def test_the_table_is_a_function_of_the_scores(tasks, random, tmp_path):
    for name in ("first", "again"):
        rows = score(tasks, random)
        write_table(tmp_path / f"{name}.parquet", rows, tasks, facts={"weights": "abc"})
        write_summary(tmp_path / f"{name}.json", summary(rows.rows, {s.name: ("mine", s) for s in SUBMODELS}))
    for suffix in ("parquet", "json"):
        assert (tmp_path / f"first.{suffix}").read_bytes() == (tmp_path / f"again.{suffix}").read_bytes()


def test_the_table_holds_every_metric_and_marks_the_main_one(tasks, random, tmp_path):
    rows = score(tasks, random)
    write_table(tmp_path / "scores.parquet", rows, tasks, facts={"weights": "abc"})
    table = pq.read_table(tmp_path / "scores.parquet")
    frame = table.to_pandas()
    assert b"2.26" in table.schema.metadata[b"mlembed"]
    assert not {"date", "evaluation_time"} & set(frame.columns)
    assert {"ndcg_at_10", "recall_at_100", "f1", "accuracy"} <= set(frame["metric"])
    assert "main_score" not in set(frame["metric"])
    assert set(frame[frame["main"]]["metric"]) == {"ndcg_at_10", "accuracy"}
    assert frame.groupby(["task", "submodel"])["main"].sum().eq(1).all()
    assert set(frame["task_type"]) == {"Retrieval", "BitextMining", "Classification"}
    assert set(frame[frame["task"] == "Names"]["language"]) == {"mul"}
    narrow = frame[frame["submodel"] == NARROW.name]
    assert set(narrow["bytes_per_vector"]) == {4 * 8}


def test_the_summary_averages_main_scores_and_skips_what_is_incomplete(tasks, random):
    rows = score(tasks, random, [FULL]).rows
    of_full = summary(rows, {"full": ("mine", FULL)})["full"]
    assert of_full["average"] == pytest.approx(np.mean([value for key, value in of_full.items() if key != "average"]), abs=1e-6)
    missing = [dataclasses.replace(row, score=None) if row.main and row.task == "Names" else row for row in rows]
    assert set(summary(missing, {"full": ("mine", FULL)})["full"]) == {"Answers", "Classes"}


def test_a_main_score_that_is_not_a_number_is_an_error(tasks, understanding, monkeypatch):
    monkeypatch.setattr(type(tasks[1]), "_compute_metrics", lambda *_: {"accuracy": math.nan})
    with pytest.raises(EvaluationError, match="main score accuracy of task Names is nan"):
        score(tasks[1:2], understanding, [FULL])


def test_submodels_are_resolved_once_each_or_refused():
    shape = Shape(layers=3, dim=32, rank=16, vocab=100)
    cuts = [SubmodelParams(), SubmodelParams(dim=32), SubmodelParams(dim=8)]
    assert resolve_submodels(cuts, shape, model="models/mine") == [FULL, NARROW]
    with pytest.raises(SubmodelError, match=r"evaluation.submodels\[1\] and models/mine: rank=17 is out of range"):
        resolve_submodels([SubmodelParams(), SubmodelParams(rank=17)], shape, model="models/mine")


def test_cuts_outside_the_trained_grid_are_scored_with_a_warning(capsys):
    from mlembed_core.model.encoder import TrainedAxes

    shape = Shape(layers=3, dim=32, rank=16, vocab=100)
    axes = TrainedAxes(mrl_dims=(8, 16, 32), mll_layers=(1, 3), mel_ranks=None)
    cuts = [SubmodelParams(dim=8, layers=1), SubmodelParams(layers=2), SubmodelParams(dim=12), SubmodelParams(rank=4)]
    assert len(resolve_submodels(cuts, shape, model="models/mine", axes=axes)) == 4
    said = capsys.readouterr().err
    assert said == "models/mine was not trained at the cuts l2-d32-r16, l3-d12-r16, l3-d32-r4; they are scored all the same\n"


def test_costs_follow_the_shape(random):
    costs = submodel_costs(random, THIN)
    assert costs.bytes_fp32 == 4 * (4 * 132 + 2000 + 32)
    assert costs.flops_per_token == 2 * (2000 + 4 * 32)  # the layers, and V
    assert costs.bytes_per_vector == 64


def test_the_mean_of_the_questions_is_the_main_score(tasks, random):
    scores = score(tasks, random, [FULL, NARROW], query_scores=True)
    frame = scores.table.to_pandas()
    single = frame[frame["query"].notna()]
    assert not single["main"].any()
    means = single.groupby(["task", "submodel"])["score"].mean().to_dict()
    assert means == pytest.approx(main_scores(scores), abs=1e-5)  # mteb rounds the measures of rankings to five digits
    assert len(means) == 6
    # Both models answer the same questions, whose languages are those of their texts.
    asked = {name: list(part["query"]) for name, part in single[single["task"] == "Names"].groupby("submodel")}
    assert asked[FULL.name] == asked[NARROW.name]
    assert set(single[single["task"] == "Names"]["language"]) == {"deu", "fra", "zul"}
    assert {code for codes in single[single["task"] == "Names"]["languages"] for code in codes} == {"deu-Latn", "fra-Latn", "zul-Latn"}
    assert set(single[single["task"] == "Answers"]["language"]) == {"eng"}


def test_a_stopped_evaluation_goes_on_with_the_next_task(tasks, random, stand_in, tmp_path, capsys):
    from mlembed_core.evaluate.state import State

    whole = score(tasks, random, query_scores=True)
    kept = State(tmp_path, "abc")

    def stops(text, rank, layers):
        if text.startswith("class"):
            raise KeyboardInterrupt
        return random.exit_states([text], rank=rank, layers=[layers])[0][0]

    with pytest.raises(KeyboardInterrupt):
        score(tasks, stand_in(stops), query_scores=True, state=kept)
    assert len(list(kept.folder.iterdir())) == 2
    random.calls.clear()
    again = score(tasks, random, query_scores=True, state=kept)
    assert again.table.equals(whole.table)
    assert all(text.startswith("class") for _, _, texts in random.calls for text in texts)

    # A file that was damaged since is named, and its task alone scored again.
    (damaged,) = kept.folder.glob("Names-*")
    content = bytearray(damaged.read_bytes())
    content[200] ^= 0xFF
    damaged.write_bytes(content)
    random.calls.clear()
    assert score(tasks, random, query_scores=True, state=kept).table.equals(whole.table)
    assert f"{damaged} is damaged" in capsys.readouterr().err
    assert not any(text.startswith(("class", "what")) for _, _, texts in random.calls for text in texts)
    kept.forget(tasks)
    assert not kept.folder.exists()


def test_nothing_but_the_same_evaluation_has_its_name(monkeypatch):
    from mlembed_core.config.evaluate import EvaluationParams
    from mlembed_core.evaluate import state
    from mlembed_core.evaluate.run import Job

    evaluation = EvaluationParams(submodels=[SubmodelParams()], num_threads=1)
    job = Job(name="mine", weights="abc", submodels=(FULL,), evaluation=evaluation, query_scores=True)
    others = [
        dataclasses.replace(job, weights="def"),
        dataclasses.replace(job, submodels=(FULL, THIN)),
        dataclasses.replace(job, query_scores=False),
        dataclasses.replace(job, evaluation=evaluation.model_copy(update={"num_threads": 2})),
    ]
    names = {item.fingerprint for item in [job, *others]}
    monkeypatch.setattr(state, "versions", lambda: {"mteb": "0"})
    assert len({*names, job.fingerprint}) == 6
    monkeypatch.undo()
    assert dataclasses.replace(job).fingerprint == job.fingerprint
