"""Hard negatives without a model: the texts that look most like a row's own passage, by words or by characters.

Each text is the set of its features, weighted by inverse document frequency; likeness is the cosine. Weights are whole numbers, so
the dot products are exact in float64 whatever order they are summed in, and every machine picks the same neighbours. Built on
scipy's sparse product rather than on scikit-learn's vectoriser, whose import alone takes longer than most sources take to build.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from scipy import sparse

from mlembed_core.data.rows import Row
from mlembed_core.data.sources.embedded.base import Built, Pair, Part, key, plain, settle

T = TypeVar("T")
Features = Callable[[str], set[str]]
IDF_STEPS = 16  # whole-number weights: 16 steps to a factor of e
TOO_COMMON = 0.1  # features in more than a tenth of the texts say little and cost most of the product
TWIN = 0.8  # a neighbour this alike is likely the same thing said twice: right for the query too, no negative
SPARE = 12  # neighbours looked at beyond those needed, since twins and repeats fall out
BLOCK = 512

WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def words(text: str) -> set[str]:
    """The words of prose or code, with camelCase and snake_case taken apart."""
    return {word.lower() for word in WORD.findall(text) if len(word) > 1}


def characters(text: str) -> set[str]:
    """Runs of two and three characters, with the text's edges marked."""
    padded = f" {text.casefold()} "
    return {padded[i : i + n] for n in (2, 3) for i in range(len(padded) - n + 1)}


def nearest(texts: Sequence[str], features: Features, top: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each text, the others most like it.

    Yields:
        for text ``i``: positions (int, at most ``top``, never ``i`` itself nor a text that shares no feature; best first, ties by
        position) and their cosines (float64).
    """
    matrix = _weigh([features(text) for text in texts])
    norms = np.sqrt(np.bincount(matrix.nonzero()[0], weights=matrix.data**2, minlength=len(texts)))
    across = matrix.T.tocsr()
    for start in range(0, len(texts), BLOCK):
        block = matrix[start : start + BLOCK] @ across
        block.sort_indices()
        for row, (first, last) in enumerate(itertools.pairwise(block.indptr), start):
            others = block.indices[first:last]
            scores = np.where(others == row, -1.0, block.data[first:last] / (norms[others] * norms[row]))
            order = np.argsort(-scores, kind="stable")[:top]
            order = order[scores[order] > 0]
            yield others[order], scores[order]


def _weigh(feature_sets: Sequence[set[str]]) -> sparse.csr_matrix:
    """One row per text, one column per feature, whole-number IDF weights. (texts, features), float64."""
    frequency = Counter(feature for found in feature_sets for feature in found)
    most = max(TOO_COMMON * len(feature_sets), 20)
    column = {feature: i for i, feature in enumerate(sorted(f for f, n in frequency.items() if 1 < n <= most))}
    weight = {f: float(1 + round(IDF_STEPS * math.log(len(feature_sets) / frequency[f]))) for f in column}
    rows: list[int] = []
    columns: list[int] = []
    data: list[float] = []
    for i, found in enumerate(feature_sets):
        known = [feature for feature in found if feature in column]
        rows += [i] * len(known)
        columns += [column[feature] for feature in known]
        data += [weight[feature] for feature in known]
    return sparse.csr_matrix((data, (rows, columns)), shape=(len(feature_sets), len(column)))


def with_negatives(pairs: Iterable[Pair], parts: list[Part], num_negatives: int, max_rows: int | None) -> Built:
    """Pairs of prose or code to a source: settled, cut, and each with hard negatives by the words of its passage.

    Takes no more pairs than ``max_rows`` needs, so that a builder that yields them as it reads stops reading; a few more than that,
    since some fall out.
    """
    enough = None if max_rows is None else max_rows + max_rows // 50 + 10
    kept, dropped = settle(list(itertools.islice(pairs, enough)), max_rows)
    negatives = negatives_by_passage(kept, words, num_negatives)
    rows = [Row(pair.query, pair.passage, texts, pair.lang, pair.label, pair.split) for pair, texts in zip(kept, negatives, strict=True)]
    return Built(rows, parts, dropped)


def negatives_by_passage(pairs: Sequence[Pair], features: Features, num_negatives: int) -> list[list[str]]:
    """For each pair, passages of its own split that look like its own: the nearest first, then any others.

    Never a text of the pair's group (its class, where it has one, else all rows with the same query), never a twin.
    """
    chosen: list[list[str]] = [[] for _ in pairs]
    for split in sorted({pair.split for pair in pairs}):
        places = [i for i, pair in enumerate(pairs) if pair.split == split]
        texts = [pairs[i].passage for i in places]
        groups: dict[str, set[str]] = defaultdict(set)
        for i in places:
            groups[_group(pairs[i])] |= {plain(pairs[i].query), plain(pairs[i].passage)}
        for i, (neighbours, scores) in zip(places, nearest(texts, features, 2 * num_negatives + SPARE), strict=True):
            likely = [texts[j] for j, score in zip(neighbours, scores, strict=True) if score < TWIN]
            fill = around(texts, key("fill", pairs[i].query))
            chosen[i] = first_unlike(itertools.chain(likely, fill), groups[_group(pairs[i])], num_negatives)
    return chosen


def around(items: Sequence[T], start: int) -> Iterator[T]:
    """All items once, from a place that ``start`` decides, round the end."""
    for step in range(len(items)):
        yield items[(start + step) % len(items)]


def _group(pair: Pair) -> str:
    return pair.label or plain(pair.query)


def first_unlike(candidates: Iterable[str], taken: set[str], count: int) -> list[str]:
    """The first ``count`` candidates that differ from each other and from ``taken`` (plain texts)."""
    chosen: dict[str, str] = {}
    for text in candidates:
        if len(chosen) == count:
            break
        if plain(text) not in taken:
            chosen.setdefault(plain(text), text)
    return list(chosen.values())
