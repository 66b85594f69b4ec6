"""The recipe's rules on candidates that a test lays out, and each retriever against the plainest way to do the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from mlembed_core.data.mining import LEXICAL, Bm25Retriever, Pair, Rules, TfidfRetriever, VectorRetriever, mine
from mlembed_core.data.words import words


class Laid:
    """Finds passages by the number in their name: passage 7 scores 0.99 − 0.07 for every query."""

    def __init__(self, passages: Sequence[str]) -> None:
        self.scores = np.array([0.99 - int(passage.split()[-1]) / 100 for passage in passages], dtype=np.float32)

    def search(self, queries: Sequence[str], positives: Any, top: int) -> Any:
        best = np.argsort(-self.scores, kind="stable")[:top]
        for positive in positives:
            yield best[None], self.scores[best][None], self.scores[[positive]]


def mined(pairs: list[Pair], **rules: Any) -> list[list[str]]:
    found = dict(mine(pairs, Laid, Rules(**rules)))
    return [found[number] for number in range(len(pairs))]


def numbers(texts: list[str]) -> list[int]:
    return [int(text.split()[-1]) for text in texts]


PAIRS = [Pair(f"query {n}", f"text {n}") for n in range(150)]


def test_the_recipe_s_rules() -> None:
    # The positive scores 0.89: a negative less than 0.8 and than 0.95 · 0.89 = 0.8455. Ranks 1 to 5 are texts 0 to 4.
    assert numbers(mined(PAIRS)[10]) == list(range(20, 44))
    # Here 0.95 · 0.64 = 0.608 is what counts.
    assert numbers(mined(PAIRS)[35])[:3] == [39, 40, 41]
    # 100 ranks without the positive: texts 0 to 100.
    assert numbers(mined(PAIRS, keep=200)[10]) == list(range(20, 101))
    assert numbers(mined(PAIRS, skip=0, max_score=None, max_share=10, keep=3)[10]) == [0, 1, 2]
    assert numbers(mined(PAIRS, skip=5, max_score=None, max_share=10, keep=3)[2]) == [6, 7, 8]  # its own text has no rank


LOOSE: dict[str, Any] = {"skip": 0, "max_score": None, "max_share": 10.0}


def test_right_answers_to_the_same_question_are_no_negatives() -> None:
    pairs = [Pair("one", "text 0"), Pair(" ONE ", "text 1"), Pair("two", "Text  0"), Pair("text 3", "text 2"), Pair("x", "text 3")]
    assert numbers(mined(pairs, **LOOSE)[0]) == [2, 3]  # text 1 answers the same; "Text  0" is text 0 in another spelling
    assert numbers(mined(pairs, **LOOSE)[3]) == [0, 1]  # text 3 is the query itself; 0 stands once


def test_passages_of_the_row_s_class_are_no_negatives() -> None:
    pairs = [Pair(f"q{n}", f"text {n}", label="ab"[n % 2]) for n in range(6)]
    assert numbers(mined(pairs, **LOOSE)[0]) == [1, 3, 5]


def test_each_split_is_mined_by_itself() -> None:
    pairs = [Pair(f"q{n}", f"text {n}", split=("train", "test", None)[n % 3]) for n in range(9)]
    assert [numbers(found) for found in mined(pairs, **LOOSE)[:3]] == [[3, 6], [4, 7], [5, 8]]


def unit(count: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("use_faiss", [False, True])
def test_vectors_are_searched_exactly_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch, use_faiss: bool) -> None:
    monkeypatch.setattr("mlembed_core.data.mining.BLOCK_QUERIES", 7)
    monkeypatch.setattr("mlembed_core.data.mining.BLOCK_DOCUMENTS", 11)
    queries, passages = unit(30, 1), unit(50, 2)
    positives = np.arange(30)
    texts = [str(n) for n in range(50)]
    retriever = VectorRetriever(
        texts,
        lambda asked: queries[[int(text) for text in asked]],
        lambda asked: passages[[int(text) for text in asked]],
        use_faiss=use_faiss,
    )
    ids, scores, of_positives = (np.concatenate(part) for part in zip(*retriever.search(texts[:30], positives, 20), strict=True))
    every = queries @ passages.T
    assert np.array_equal(ids, np.argsort(-every, axis=1)[:, :20])
    assert np.allclose(scores, np.sort(every, axis=1)[:, ::-1][:, :20], atol=1e-6)
    assert np.allclose(of_positives, every[positives, positives], atol=1e-6)


TEXTS = ["the cat sat on the mat", "a cat and a dog", "dogs and mats", "parseHTTPHeader of a cat", "nothing alike", "cat cat cat dog"]


def test_tfidf_is_the_cosine_of_weighted_words() -> None:
    (ids, scores, of_positives), *_ = TfidfRetriever(TEXTS).search(["cat dog", "zebra"], np.array([5, 0]), 4)
    count = Counter(word for text in TEXTS for word in set(words(text)))

    def vector(text: str) -> dict[str, float]:
        known = {word: n for word, n in Counter(words(text)).items() if word in count}
        weights = {word: (1 + math.log(n)) * (1 + math.log((1 + len(TEXTS)) / (1 + count[word]))) for word, n in known.items()}
        length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {word: weight / length for word, weight in weights.items()}

    query = vector("cat dog")
    expected = np.array([sum(query.get(word, 0) * weight for word, weight in vector(text).items()) for text in TEXTS])
    order = np.argsort(-expected)[:4]
    assert ids[0].tolist() == order.tolist()
    assert np.allclose(scores[0], expected[order], atol=1e-5)
    assert of_positives[0] == pytest.approx(expected[5], abs=1e-5)
    assert ids[1].tolist() == [-1] * 4  # no word is known


def test_bm25_gives_the_scores_of_the_whole_list_in_order() -> None:
    retriever = Bm25Retriever(TEXTS)
    (ids, scores, of_positive), (none, *_) = retriever.search(["cat dog", "zebra"], np.array([5, 0]), 4)
    every = retriever._index.get_scores(["cat", "dog"])
    assert [number for number in ids[0].tolist() if number >= 0] == [
        n for n in np.lexsort((np.arange(6), -every)).tolist() if every[n] > 0
    ][:4]
    assert np.all(np.diff(scores[0]) <= 0)
    assert of_positive[0] == pytest.approx(every[5])
    assert set(none[0].tolist()) == {-1}


@pytest.mark.parametrize("method", LEXICAL)
def test_lexical_methods_find_what_shares_words_and_give_the_same_every_time(method: str) -> None:
    pairs = [Pair(f"number {n} of kind {n % 5}", f"passage {n} tells of kind{n % 5} and word{n % 7}") for n in range(60)]
    rules = Rules(top=30, skip=1, max_score=None, max_share=1.5, keep=4)
    first, second = (dict(mine(pairs, LEXICAL[method], rules)) for _ in range(2))
    assert first == second
    assert all(pairs[number].passage not in negatives for number, negatives in first.items())
