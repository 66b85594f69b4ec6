"""The lexical controls: what they read, what they know, what they can be asked."""

import numpy as np
import pytest

from mlembed_core.config.evaluate import LocalSuite
from mlembed_core.data.tokenize import token_ids, train_tokenizer
from mlembed_core.errors import DataError
from mlembed_core.evaluate.controls import SparseVectors, TfidfEncoder, TokenBudget, lexical_contestants, train_texts, words
from mlembed_core.evaluate.scoring import Loaded, score_suite, summary
from mlembed_core.evaluate.suites import suite_tasks

TEXTS = ["parse the HTTPHeader", "two words", "ünïcödé 🦉 owl, and a very long tail of words that nobody reads", "Noé　ﬁnds", ""]
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


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXTS, ["what is this thing", "class text too"]], vocab_size=300)


@pytest.mark.parametrize("max_length", [2, 5, 12, 100])
def test_a_control_reads_what_the_model_reads(tokenizer, max_length):
    cut = TokenBudget(tokenizer, max_length).cut(TEXTS)
    for text, short in zip(TEXTS, cut, strict=True):
        assert text.startswith(short)
        seen, whole = token_ids(tokenizer, [text], max_length)[0], token_ids(tokenizer, [short], 1000)[0]
        # The cut falls behind the last token, which may be one byte of a letter: then the letter's other bytes come along.
        assert whole[: len(seen) - 1] == seen[:-1]
        assert len(whole) <= len(seen) + 3
        if len(seen) < max_length:
            assert short == text


def test_words_are_taken_apart_as_the_tokenizer_does():
    assert words("parseHTTPHeader(my_value2) = Ünï-x") == ["parse", "http", "header", "my", "value2", "ünï", "x"]
    assert words("हिन्दी ไทย") == ["हिन्दी", "ไทย"]
    assert words("…") == []


def test_document_frequencies_come_from_the_train_split(sources):
    texts = train_texts([sources / "answers"])
    assert len(texts) == len(set(texts)) == 120
    assert "what is 60?" in texts
    assert "what is 0?" not in texts


def test_sources_without_train_rows_are_refused(write_source):
    folder = write_source("mine", [("q", "p", None, None, "test")])
    with pytest.raises(DataError, match=r"mine have no row with split = train"):
        train_texts([folder / "mine"])


@pytest.fixture
def rows(sources, tokenizer):
    tasks = suite_tasks("tiny", SUITE, sources=sources)
    budget = TokenBudget(tokenizer, 40)
    contestants = lexical_contestants(budget, train_texts(sources / name for name in ("answers", "names", "classes")))
    return score_suite("tiny", Loaded(tasks, contestants), num_threads=1).rows


def test_numbers_in_common_are_found(rows):
    main = {(row.setting, row.task): row.score for row in rows if row.main}
    for control in ("word_tfidf", "bm25"):
        assert main[control, "Answers"] == pytest.approx(1.0)
    for control in ("word_tfidf", "char_tfidf"):
        assert main[control, "Names"] > 0.7  # one digit alone makes no pair of characters
        assert main[control, "Classes"] > 0.5
    assert {(row.submodel, row.layers, row.bytes_fp32) for row in rows} == {(None, None, None)}


def test_what_bm25_cannot_do_is_null_and_costs_it_the_average(rows):
    main = {row.task: row.score for row in rows if row.main and row.setting == "bm25"}
    assert main["Names"] is None
    assert main["Classes"] is None
    assert len([row for row in rows if row.setting == "bm25" and row.task == "Names"]) == 1
    found = summary(rows, {name: (name, None) for name in ("bm25", "word_tfidf")})
    assert set(found["bm25"]) == {"Answers"}
    assert "average" in found["word_tfidf"]


def test_the_rotated_vectors_keep_all_inner_products_with_train_texts(tokenizer):
    encoder = TfidfEncoder("word_tfidf", {"analyzer": words}, TokenBudget(tokenizer, 40), TEXTS)
    plain = encoder._weigh.transform(encoder._hash.transform(["two words", "owl words", "owl", "never seen before"]))
    train, test = plain[:3], plain[3:]
    rotated_train = encoder._rotate(SparseVectors(plain[:3]), "task", is_train=True)
    rotated_test = encoder._rotate(SparseVectors(plain[3:]), "task", is_train=False)
    assert np.allclose(rotated_train @ rotated_train.T, (train @ train.T).toarray(), atol=1e-5)
    assert np.allclose(rotated_train @ rotated_test.T, (train @ test.T).toarray(), atol=1e-5)
