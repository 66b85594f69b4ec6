"""Vectors in fewer bits: the numbers of sentence-transformers, and what a search over them still finds."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers.util import quantize_embeddings

from mlembed_core.export.kinds import VectorType
from mlembed_core.registry.quantise import quantise, ranges_of


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def corpus():
    return unit(np.random.default_rng(0).normal(size=(3000, 61)))  # no multiple of eight


@pytest.fixture
def queries(corpus):
    """Near one text of the corpus each."""
    return unit(corpus[:50] + np.random.default_rng(1).normal(size=(50, 61)) * 0.05)


def test_int8_is_that_of_sentence_transformers(corpus):
    ours = quantise(corpus, VectorType.INT8)
    np.testing.assert_array_equal(ours.values, quantize_embeddings(corpus, "int8", ranges=ranges_of(corpus)))
    assert ours.values.nbytes * 4 == corpus.nbytes
    outside = quantise(corpus * 2, VectorType.INT8, ranges=ranges_of(corpus)).values
    assert (outside.min(), outside.max()) == (-128, 127)  # clipped, not wrapped around


def test_binary_is_that_of_sentence_transformers(corpus):
    ours = quantise(corpus, VectorType.BINARY).values
    np.testing.assert_array_equal(ours, quantize_embeddings(corpus, "ubinary"))
    assert ours.shape == (3000, 8)


def test_int8_scores_are_cosines_within_the_steps(corpus, queries):
    stored = quantise(corpus, VectorType.INT8)
    for query in queries[:5]:
        rows, scores = stored.search(query, 20)
        np.testing.assert_allclose(scores, corpus[rows] @ query, atol=0.01)
        assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize(("kind", "kept"), [(VectorType.INT8, 0.97), (VectorType.BINARY, 0.35)])
def test_the_nearest_are_still_found(corpus, queries, kind, kept):
    stored = quantise(corpus, kind)
    overlaps = []
    for number, query in enumerate(queries):
        rows, _ = stored.search(query, 10)
        assert rows[0] == number
        overlaps.append(len(set(rows) & set(np.argsort(-(corpus @ query))[:10])) / 10)
    assert np.mean(overlaps) > kept


def test_rescoring_puts_the_candidates_in_better_order(corpus, queries):
    """Against the order of the Hamming distance alone, on which many texts are equal."""
    stored, rescored, plain = quantise(corpus, VectorType.BINARY), 0.0, 0.0
    for query in queries:
        best = set(np.argsort(-(corpus @ query))[:10])
        distances = np.bitwise_count(stored.values ^ np.packbits(query > 0)).sum(axis=1)
        plain += len(best & set(np.argsort(distances, kind="stable")[:10]))
        rescored += len(best & set(stored.search(query, 10)[0]))
    assert rescored > plain


def test_a_dimension_that_never_changes_is_no_division_by_zero(corpus):
    corpus[:, 3] = 0.25
    stored = quantise(corpus, VectorType.INT8)
    assert np.isfinite(stored.search(corpus[0], 3)[1]).all()


def test_fewer_texts_than_asked_for(corpus):
    for kind in (VectorType.INT8, VectorType.BINARY):
        rows, _ = quantise(corpus[:2], kind).search(corpus[1], 10)
        assert sorted(rows) == [0, 1]
        assert rows[0] == 1
