"""Local tasks: what becomes a question, what is left out, and what cannot be a task."""

import itertools
import random

import pytest

from mlembed_core.artifacts import manifest_hash
from mlembed_core.config.evaluate import BenchmarkSuite, LocalSuite, LocalTask
from mlembed_core.errors import ArtifactError, ConfigError, DataError
from mlembed_core.evaluate.suites import mteb_tasks, suite_tasks, uses_instructions
from mlembed_core.evaluate.tasks import Example, bitext, labelled_texts, local_task, retrieval


def rows(*pairs):
    return [Example(query, passage, None, None) for query, passage in pairs]


def labelled(*texts):
    return [Example(text, text, None, label) for text, label in texts]


def task(type_, source, **rest):
    return LocalTask.model_validate({"type": type_, "source": source, **rest})


def test_a_text_stands_in_a_pool_once():
    made = retrieval(rows(("q1", "same"), ("q2", "same"), ("q3", "other")))
    assert sorted(made.documents) == ["other", "same"]
    assert {query: [made.documents[index] for index in found] for query, found in zip(made.queries, made.answers, strict=True)} == {
        "q1": ["same"],
        "q2": ["same"],
        "q3": ["other"],
    }


def test_a_query_of_several_rows_has_several_answers():
    made = retrieval(rows(("q", "a"), ("q", "b"), ("r", "c")))
    assert sorted(made.documents[index] for index in made.answers[made.queries.index("q")]) == ["a", "b"]


def test_the_kept_queries_depend_on_their_texts_alone():
    pairs = [(f"q{n}", f"p{n}") for n in range(100)]
    first, again = retrieval(rows(*pairs), 10), retrieval(rows(*reversed(pairs)), 10)
    assert first == again
    assert len(first.queries) == 10
    assert first.queries != [f"q{n}" for n in range(10)]
    assert set(first.queries) < set(retrieval(rows(*pairs), 20).queries)


def test_all_translations_of_a_name_ask_for_it():
    made = bitext(rows(("one", "eins"), ("un", "one"), ("two", "zwei"), ("deux", "two")))
    assert sorted(made.targets) == ["one", "two"]
    assert {source: made.targets[gold] for source, gold in zip(made.sources, made.gold, strict=True)} == {
        "eins": "one",
        "un": "one",
        "zwei": "two",
        "deux": "two",
    }


def test_a_text_that_fits_two_members_of_the_pool_asks_nothing():
    made = bitext(
        rows(("franc", "f1"), ("franc", "f2"), ("french franc", "g1"), ("french franc", "g2"), ("franc", "x"), ("x", "french franc"))
    )
    assert sorted(made.targets) == ["franc", "french franc"]
    assert sorted(made.sources) == ["f1", "f2", "g1", "g2"]


def test_pairs_that_share_no_text_keep_their_passage_in_the_pool():
    made = bitext(rows(("q1", "p1"), ("q2", "p2"), ("same", "same")))
    assert sorted(made.targets) == ["p1", "p2"]
    assert sorted(made.sources) == ["q1", "q2"]


@pytest.mark.parametrize("seed", range(20))
def test_every_question_has_exactly_one_right_answer(seed):
    draw = random.Random(seed)
    pairs = [(f"t{draw.randrange(25)}", f"t{draw.randrange(25)}") for _ in range(30)]
    made = bitext(rows(*pairs))
    partners = {frozenset(pair) for pair in pairs}
    assert len(set(made.sources + made.targets)) == len(made.sources) + len(made.targets)
    for source, gold in zip(made.sources, made.gold, strict=True):
        assert [target for target in made.targets if frozenset((source, target)) in partners] == [made.targets[gold]]
    assert made == bitext(rows(*draw.sample(pairs, len(pairs))))


def test_texts_that_no_classifier_could_name_are_left_out():
    made = labelled_texts(
        labelled(("a", "x"), ("b", "y"), ("twice", "x"), ("twice", "y")),
        labelled(("c", "x"), ("a", "x"), ("d", "unknown"), ("e", "x"), ("e", "y")),
    )
    assert sorted(made.train) == [("a", "x"), ("b", "y")]
    assert made.test == [("c", "x")]


def test_metadata_name_language_source_and_instruction(sources, write_source):
    write_source("asked", [("q", "p", "deu", None, "test"), ("r", "s", "deu", None, "test")], instruction="Find it")
    asked = local_task("Asked", task("retrieval", "asked"), sources).metadata
    assert (asked.prompt, asked.eval_langs, asked.main_score) == ("Find it", ["deu-Zyyy"], "ndcg_at_10")
    assert asked.dataset == {"path": "local/asked", "revision": manifest_hash(sources / "asked")}
    assert local_task("Answers", task("retrieval", "answers"), sources).metadata.eval_langs == ["eng-Latn"]
    names = local_task("Names", task("bitext_mining", "names"), sources).metadata
    assert (names.prompt, names.eval_langs, names.main_score) == (None, ["mul-Zyyy"], "accuracy")
    for made in (asked, names):
        made._validate_metadata()
    assert uses_instructions(sources)


def test_a_source_without_test_rows_says_what_it_has(write_source):
    folder = write_source("mine", [("q", "p", None, None, "train"), ("r", "s", None, None, None)])
    suite = LocalSuite.model_validate({"type": "local", "tasks": {"Mine": {"type": "retrieval", "source": "mine"}}})
    with pytest.raises(DataError) as error:
        suite_tasks("own", suite, sources=folder)
    for part in ("suites.own.tasks.Mine", "mine/rows.parquet", "train 1", "unsplit 1", "`split` column"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("type_", "made_of", "message"),
    [
        ("classification", [("q", "p", None, None, "test"), ("r", "s", None, None, "train")], "Fill the `label` column"),
        ("bitext_mining", [("q", "p", None, None, "test")], "bitext mining needs ≥ 2"),
    ],
)
def test_rows_that_make_no_task(write_source, type_, made_of, message):
    with pytest.raises(DataError, match=message):
        local_task("Mine", task(type_, "mine"), write_source("mine", made_of))


def test_a_missing_source_names_its_command(tmp_path):
    with pytest.raises(ArtifactError, match="mlembed source absent"):
        local_task("Gone", task("retrieval", "absent"), tmp_path)


def test_data_survives_loading_twice(sources):
    made = local_task("Answers", task("retrieval", "answers", max_queries=5), sources)
    for _ in range(2):
        made.load_data()
        assert len(made.dataset["default"]["test"]["queries"]) == 5
        made.unload_data()
        assert not made.data_loaded


def test_an_unknown_benchmark_is_answered_with_the_nearest(tmp_path):
    with pytest.raises(ConfigError) as error:
        suite_tasks("english", BenchmarkSuite(type="mteb", benchmark="mteb(eng,v2)"), sources=tmp_path)
    assert "suites.english.benchmark='mteb(eng,v2)'" in str(error.value)
    assert "'MTEB(eng, v2)'" in str(error.value)


def test_a_benchmark_of_mteb_by_its_name():
    tasks = mteb_tasks("english", BenchmarkSuite(type="mteb", benchmark="MTEB(eng, v2)"))
    assert len(tasks) == 41
    assert not any(left.metadata.name == right.metadata.name for left, right in itertools.combinations(tasks, 2))


@pytest.mark.parametrize(
    ("text", "script"), [("Straße 7", "Latn"), ("привет, ab", "Cyrl"), ("東京", "Hani"), ("12 : 30", "Zyyy"), ("", "Zyyy")]
)
def test_the_script_of_a_text_is_that_of_most_of_its_letters(text, script):
    from mlembed_core.evaluate.tasks import script_of

    assert script_of(text) == script
