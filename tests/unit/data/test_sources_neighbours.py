"""Hard negatives: the sparse search against a naive one, and which texts may never be chosen."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from mlembed_core.data.sources.embedded.base import Pair
from mlembed_core.data.sources.embedded.neighbours import IDF_STEPS, characters, nearest, negatives_by_passage, words

TEXTS = [
    "open a file and read its lines",
    "open a file for writing bytes",
    "read the lines of a stream",
    "multiply two sparse matrices",
    "multiply two dense matrices quickly",
    "a word alone: xylophone",
]


def naive(texts: list[str], i: int) -> list[tuple[int, float]]:
    """Cosines of IDF-weighted feature sets, one pair at a time."""
    features = [words(text) for text in texts]
    frequency = Counter(feature for found in features for feature in found)
    weight = {f: 1 + round(IDF_STEPS * math.log(len(texts) / n)) for f, n in frequency.items() if n > 1}

    def dot(a: set[str], b: set[str]) -> float:
        return float(sum(weight.get(feature, 0) ** 2 for feature in a & b))

    def cosine(a: set[str], b: set[str]) -> float:
        norm = math.sqrt(dot(a, a) * dot(b, b))
        return dot(a, b) / norm if norm else 0.0

    scored = [(j, cosine(features[i], features[j])) for j in range(len(texts)) if j != i]
    return sorted((pair for pair in scored if pair[1] > 0), key=lambda pair: -pair[1])


def test_nearest_is_the_naive_search() -> None:
    for i, (order, scores) in enumerate(nearest(TEXTS, words, 4)):
        expected = naive(TEXTS, i)[:4]
        assert list(order) == [j for j, _ in expected]
        assert list(scores) == pytest.approx([score for _, score in expected])


@pytest.mark.parametrize("texts", [[], ["one text"], ["all", "of", "them", "unlike"]])
def test_nothing_alike_is_no_error(texts: list[str]) -> None:
    assert [list(order) for order, _ in nearest(texts, words, 3)] == [[] for _ in texts]


def test_features() -> None:
    assert words("def parseHTTPHeader(snake_case, x2): # Über") == {"def", "parse", "http", "header", "snake", "case", "ber"}
    assert characters("Ab") == {" a", "ab", "b ", " ab", "ab "}


def pairs_of(*texts: tuple[str, str, str]) -> list[Pair]:
    return [Pair(query, passage, split) for query, passage, split in texts]


def test_negatives_come_from_the_own_split_and_never_answer_the_query() -> None:
    pairs = pairs_of(
        ("how to open", "open a file and read its lines", "train"),
        ("How  to open", "open a file for writing bytes", "train"),  # the same query again: right for the first as well
        ("stream", "read the lines of a stream", "train"),
        ("matrices", "multiply two sparse matrices", "train"),
        ("unseen", "open a file and read its lines now", "test"),
    )
    negatives = negatives_by_passage(pairs, words, 10)
    assert negatives[0][0] == "read the lines of a stream"  # the likeliest that is allowed comes first
    assert set(negatives[0]) == {"read the lines of a stream", "multiply two sparse matrices"}
    assert negatives[4] == []


def test_negatives_of_a_class_are_of_other_classes() -> None:
    pairs = [
        Pair("a1", "alpha beta gamma", "train", label="one"),
        Pair("a2", "alpha beta delta", "train", label="one"),
        Pair("b1", "alpha beta epsilon", "train", label="two"),
    ]
    assert negatives_by_passage(pairs, words, 5)[0] == ["alpha beta epsilon"]


def test_a_twin_is_no_hard_negative() -> None:
    pairs = pairs_of(
        ("q1", "return the sorted list of all open files here", "train"),
        ("q2", "return the sorted list of all open files there", "train"),
        ("q3", "return the first of all open sockets", "train"),
        ("q4", "sorted list", "train"),
    )
    negatives = negatives_by_passage(pairs, words, 1)
    assert negatives[0] != ["return the sorted list of all open files there"]
