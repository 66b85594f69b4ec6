"""Hard negatives for pairs that come without: of the passages that a retriever finds for a query, those that are near and yet wrong.

The recipe's rules (F2LLM, arXiv 2510.02294): of the 100 best passages leave out the first 5, which are likely right too, keep those that
score below 0.8 and below 0.95 times the positive's score, and take 24. What a row must not have as a negative is left out before ranks are
counted: every passage of an equal query, texts equal to one of those or to the query but for case and spacing, and passages of its class.

Passages of other splits are no candidates: a text that is held out would be seen in training.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mlembed_core.data.words import words

BLOCK_QUERIES = 1024
BLOCK_DOCUMENTS = 65_536
SPARE = 32  # candidates looked at beyond `top`, since some are excluded before ranks are counted

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Encode = Callable[[Sequence[str]], Floats]


@dataclass(frozen=True)
class Rules:
    """Which candidates become negatives.

    Attributes:
        top: ranks that are looked at, the first ``skip`` of them left out.
        max_score: a negative scores less; None: scores have no common scale (BM25).
        max_share: and less than this share of its row's positive.
        keep: negatives of a row, the best ones.
    """

    top: int = 100
    skip: int = 5
    max_score: float | None = 0.8
    max_share: float = 0.95
    keep: int = 24


@dataclass(frozen=True)
class Pair:
    """A row as mining sees it. ``label`` is its class, where it has one; ``split`` its side."""

    query: str
    passage: str
    label: str | None = None
    split: str | None = None


class Retriever(Protocol):
    """Scores passages for queries."""

    def search(self, queries: Sequence[str], positives: Ids, top: int) -> Iterator[tuple[Ids, Floats, Floats]]:
        """For blocks of queries: the best passages (queries, top; −1: none), their scores, and the scores of the positives (queries)."""
        ...


def mine(pairs: Sequence[Pair], retriever: Callable[[Sequence[str]], Retriever], rules: Rules) -> Iterator[tuple[int, list[str]]]:
    """Negatives of each pair, the nearest first, in the order of the splits.

    Args:
        retriever: made once per split, of its distinct passages.

    Yields:
        (number of a pair, at most ``rules.keep`` texts).
    """
    of_split: dict[str | None, list[int]] = defaultdict(list)
    for number, pair in enumerate(pairs):
        of_split[pair.split].append(number)
    for numbers in of_split.values():
        side = _Side([pairs[number] for number in numbers])
        search = retriever(side.passages).search([pair.query for pair in side.pairs], side.positives, rules.top + SPARE)
        place = 0
        for found, scores, of_positives in search:
            for ids, row_scores, of_positive in zip(found, scores, of_positives, strict=True):
                yield numbers[place], side.choose(place, ids, row_scores, float(of_positive), rules)
                place += 1


@dataclass
class _Side:
    """The pairs of one split: their distinct passages, and what no row may have as a negative."""

    pairs: Sequence[Pair]
    passages: list[str] = field(init=False)
    positives: Ids = field(init=False)

    def __post_init__(self) -> None:
        ids: dict[str, int] = {}
        self.positives = np.array([ids.setdefault(pair.passage, len(ids)) for pair in self.pairs], dtype=np.int64)
        self.passages = list(ids)
        self._plain = [plain(passage) for passage in self.passages]
        self._right: dict[str, set[str]] = defaultdict(set)  # by plain query: itself, and its passages
        self._labels: dict[int, set[str]] = defaultdict(set)  # by passage
        for pair, passage in zip(self.pairs, self.positives.tolist(), strict=True):
            query = plain(pair.query)
            self._right[query] |= {query, self._plain[passage]}
            if pair.label is not None:
                self._labels[passage].add(pair.label)

    def choose(self, place: int, ids: Ids, scores: Floats, of_positive: float, rules: Rules) -> list[str]:
        pair = self.pairs[place]
        taken = set(self._right[plain(pair.query)])
        chosen: list[str] = []
        rank = 0
        for passage, score in zip(ids.tolist(), scores.tolist(), strict=True):
            if passage < 0 or rank == rules.top or len(chosen) == rules.keep:
                break
            if self._plain[passage] in taken or (pair.label is not None and pair.label in self._labels[passage]):
                continue
            taken.add(self._plain[passage])
            rank += 1
            if rank > rules.skip and score < rules.max_share * of_positive and (rules.max_score is None or score < rules.max_score):
                chosen.append(self.passages[passage])
        return chosen


def plain(text: str) -> str:
    """A text without the differences that a reader would not call differences: case and spacing."""
    return " ".join(text.casefold().split())


class VectorRetriever:
    """Passages by the cosine of an encoder's vectors: exact, in blocks, on a GPU if there is one; with faiss where it is installed.

    Args:
        encode_queries, encode_documents: texts to unit vectors.
        use_faiss: None: if it is there and no GPU is.
    """

    def __init__(self, passages: Sequence[str], encode_queries: Encode, encode_documents: Encode, *, use_faiss: bool | None = None) -> None:
        import torch

        self._encode_queries = encode_queries
        self._vectors = np.ascontiguousarray(encode_documents(passages), dtype=np.float32)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._index = None if use_faiss is False or (use_faiss is None and self._device == "cuda") else _faiss_index(self._vectors)
        if use_faiss and self._index is None:
            raise ModuleNotFoundError("faiss")

    def search(self, queries: Sequence[str], positives: Ids, top: int) -> Iterator[tuple[Ids, Floats, Floats]]:
        top = min(top, len(self._vectors))
        for start in range(0, len(queries), BLOCK_QUERIES):
            vectors = np.ascontiguousarray(self._encode_queries(queries[start : start + BLOCK_QUERIES]), dtype=np.float32)
            scores, ids = self._index.search(vectors, top) if self._index is not None else self._best(vectors, top)
            of_positives = np.einsum("qd,qd->q", vectors, self._vectors[positives[start : start + BLOCK_QUERIES]])
            yield ids.astype(np.int64), scores, of_positives

    def _best(self, queries: Floats, top: int) -> tuple[Floats, Ids]:
        import torch

        asked = torch.from_numpy(queries).to(self._device)
        scores = torch.full((len(queries), 0), 0.0, device=self._device)
        ids = torch.zeros((len(queries), 0), dtype=torch.long, device=self._device)
        for start in range(0, len(self._vectors), BLOCK_DOCUMENTS):
            block = torch.from_numpy(self._vectors[start : start + BLOCK_DOCUMENTS]).to(self._device)
            found = asked @ block.T
            numbers = torch.arange(start, start + len(block), device=self._device).expand_as(found)
            scores, places = torch.cat([scores, found], dim=1).topk(min(top, scores.shape[1] + len(block)), dim=1)
            ids = torch.cat([ids, numbers], dim=1).gather(1, places)
        return scores.cpu().numpy(), ids.cpu().numpy()


def _faiss_index(vectors: Floats) -> Any:
    """An exact index by inner product, None without faiss."""
    try:
        import faiss
    except ImportError:
        return None
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


class TfidfRetriever:
    """Passages by the cosine of their words, weighted by TF-IDF."""

    def __init__(self, passages: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(analyzer=words, sublinear_tf=True, dtype=np.float32)
        self._vectors = self._vectorizer.fit_transform(passages)

    def search(self, queries: Sequence[str], positives: Ids, top: int) -> Iterator[tuple[Ids, Floats, Floats]]:
        across = self._vectors.T.tocsr()
        for start in range(0, len(queries), BLOCK_QUERIES):
            asked = self._vectorizer.transform(queries[start : start + BLOCK_QUERIES])
            of_positives = np.asarray(asked.multiply(self._vectors[positives[start : start + BLOCK_QUERIES]]).sum(axis=1)).ravel()
            found = (asked @ across).tocsr()
            found.sort_indices()
            ids = np.full((asked.shape[0], top), -1, dtype=np.int64)
            scores = np.zeros((asked.shape[0], top), dtype=np.float32)
            for row, (first, last) in enumerate(zip(found.indptr, found.indptr[1:], strict=False)):
                order = np.argsort(-found.data[first:last], kind="stable")[:top]
                ids[row, : len(order)], scores[row, : len(order)] = found.indices[first:last][order], found.data[first:last][order]
            yield ids, scores, of_positives.astype(np.float32)


class Bm25Retriever:
    """Passages by BM25 (bm25s). Its scores have no common scale: only shares of the positive's mean something."""

    def __init__(self, passages: Sequence[str]) -> None:
        import bm25s

        documents = [words(passage) for passage in passages]
        # Ids by sorted word, so that nothing depends on the order of a set.
        self._vocabulary = {word: number for number, word in enumerate(sorted(set().union(*documents)))}
        self._index = bm25s.BM25(auto_compile=False)
        self._index.index(
            ([[self._vocabulary[word] for word in document] for document in documents], self._vocabulary), show_progress=False
        )
        self._num_passages = len(passages)

    def search(self, queries: Sequence[str], positives: Ids, top: int) -> Iterator[tuple[Ids, Floats, Floats]]:
        top = min(top, self._num_passages)
        for query, positive in zip(queries, positives.tolist(), strict=True):
            known = [word for word in words(query) if word in self._vocabulary]
            scores = self._index.get_scores(known) if known else np.zeros(self._num_passages, dtype=np.float32)
            best = np.argpartition(-scores, top - 1)[:top]
            best = best[np.lexsort((best, -scores[best]))]
            ids = np.where(scores[best] > 0, best, -1)
            yield ids[None], scores[best][None].astype(np.float32), scores[[positive]].astype(np.float32)


LEXICAL: Mapping[str, Callable[[Sequence[str]], Retriever]] = {"tfidf": TfidfRetriever, "bm25": Bm25Retriever}
