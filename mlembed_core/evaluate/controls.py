"""Controls: what the scores of a trained model stand beside. Word and character TF-IDF, BM25, and the model before training.

Same questions, same budget: the lexical controls read no more of a text than the model does (its first tokens up to the model's
limit), know document frequencies from the train split alone, and get the words that the model's tokenizer gets for nothing (NFKC,
lower case, identifiers taken apart). They are meant to be strong: a control that is easy to beat says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import scipy.linalg
import scipy.sparse
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.abstask import AbsTask
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from tokenizers import Tokenizer

from mlembed_core.data.rows import read_rows
from mlembed_core.data.words import words
from mlembed_core.errors import DataError
from mlembed_core.evaluate.encoder import model_meta
from mlembed_core.evaluate.scoring import Contestant

WORD_TFIDF = "word_tfidf"
CHAR_TFIDF = "char_tfidf"
BM25 = "bm25"
REVISION = "1"  # of the lexical controls: what they are is code, so there are no weights to hash
NUM_BUCKETS = 2**21  # of the hashed vocabulary; the embedded preset has some 400,000 distinct n-grams
RIDGE = 1e-6  # keeps the Gram matrix of unit vectors positive definite when texts repeat or hold no known word

CHARACTERS = {"analyzer": "char_wb", "ngram_range": (2, 4)}


class TokenBudget:
    """Cuts texts to what a model of ``max_length`` tokens sees of them."""

    def __init__(self, tokenizer: Tokenizer, max_length: int) -> None:
        self._tokenizer = tokenizer
        self._max_length = max_length

    def cut(self, texts: Sequence[str]) -> list[str]:
        """Each text up to its last token within the limit; the EOS, which stands for no text, counts as in the model."""
        encodings = self._tokenizer.encode_batch(list(texts))
        return [self._cut(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def _cut(self, text: str, encoding: Any) -> str:
        if len(encoding.ids) <= self._max_length:
            return text
        return text[: max(end for _, end in encoding.offsets[: self._max_length - 1])]


def train_texts(sources: Iterable[Path]) -> list[str]:
    """The distinct queries and passages of the train split, in order of appearance.

    Raises:
        ArtifactError: a source is missing or damaged.
        DataError: none of them has a train row.
    """
    folders = list(sources)
    texts: dict[str, None] = {}
    for folder in folders:
        table = read_rows(folder, ("query", "passage", "split"))
        for query, passage, split in zip(*(table[name].to_pylist() for name in ("query", "passage", "split")), strict=True):
            if split == "train":
                texts[query] = texts[passage] = None
    if not texts:
        raise DataError(
            f"the sources {', '.join(folder.name for folder in folders)} have no row with split = train, and TF-IDF takes its document "
            "frequencies from there. Give their files a `split` column."
        )
    return list(texts)


class SparseVectors(scipy.sparse.csr_array):  # type: ignore[misc]  # scipy is not type-checked here
    """Rows of sparse vectors, with the length that mteb asks arrays for."""

    def __len__(self) -> int:
        return int(self.shape[0])


class TfidfEncoder(AbsEncoder):  # type: ignore[misc]
    """TF-IDF vectors as an mteb encoder.

    Features are hashed, so that a word which training never held still counts (with the highest weight) when query and document
    share it; a fixed vocabulary would throw away just the rare names that lexical matching is good at.

    Args:
        features: what scikit-learn's ``HashingVectorizer`` shall count.
        train: texts that give the document frequencies, already cut to the budget.
    """

    def __init__(self, name: str, features: dict[str, Any], budget: TokenBudget, train: Sequence[str]) -> None:
        self.mteb_model_meta = model_meta(f"mlembed/{name}", REVISION)
        self._budget = budget
        self._hash = HashingVectorizer(**features, n_features=NUM_BUCKETS, norm=None, alternate_sign=False)
        self._weigh = TfidfTransformer(sublinear_tf=True)
        self._weigh.fit(self._hash.transform(train))
        self._train: dict[str, tuple[SparseVectors, NDArray[np.float64]]] = {}

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        **_: Any,
    ) -> SparseVectors | NDArray[np.float32]:
        """Sparse unit vectors; for classification the same vectors in a dense basis (:meth:`_rotate`).

        A text without features has the zero vector, which is like no other.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        vectors = SparseVectors(self._weigh.transform(self._hash.transform(self._budget.cut(texts))))
        if task_metadata.type == "Classification":
            return self._rotate(vectors, f"{task_metadata.name}/{hf_subset}", is_train=hf_split == "train")
        return vectors

    def similarity(self, embeddings1: SparseVectors, embeddings2: SparseVectors) -> NDArray[np.float32]:
        """Cosine: the vectors have length one."""
        return (embeddings1 @ embeddings2.T).toarray().astype(np.float32)  # type: ignore[no-any-return]

    def _rotate(self, vectors: SparseVectors, task: str, *, is_train: bool) -> NDArray[np.float32]:
        """Coordinates in a basis of the space that the train texts span.

        All inner products with train texts stay what they are. What lies outside that space changes neither which centroid is nearest
        nor a linear classifier with an L2 penalty, so the labels are the same ones, from a few thousand coordinates in place of two
        million. mteb encodes the train split of a classification task first.
        """
        if is_train:
            gram = (vectors @ vectors.T).toarray().astype(np.float64)
            factor = np.linalg.cholesky(gram + RIDGE * np.eye(len(gram)))
            self._train = {task: (vectors, factor)}
            return factor.astype(np.float32)
        train, factor = self._train[task]
        return scipy.linalg.solve_triangular(factor, (train @ vectors.T).toarray(), lower=True).T.astype(np.float32)  # type: ignore[no-any-return]


class Bm25Search:
    """BM25 by bm25s, as mteb's ``SearchProtocol``. It ranks documents and has no vectors, so only retrieval can be scored."""

    def __init__(self, budget: TokenBudget) -> None:
        self.mteb_model_meta = model_meta(f"mlembed/{BM25}", REVISION, model_type=["sparse"])
        self._budget = budget

    def index(self, corpus: Any, **_: Any) -> None:
        """Count the words of the documents (columns ``id`` and ``text``, maybe ``title``)."""
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(corpus)
        texts = [f"{title or ''} {text}".strip() for title, text in zip(titles, corpus["text"], strict=True)]
        documents = [words(text) for text in self._budget.cut(texts)]
        # Ids by sorted word, so that nothing depends on the order of a set.
        vocabulary = {word: index for index, word in enumerate(sorted(set().union(*documents)))}
        self._ids = list(corpus["id"])
        self._index = bm25s.BM25(auto_compile=False)
        self._index.index(([[vocabulary[word] for word in document] for document in documents], vocabulary), show_progress=False)

    def search(self, queries: Any, *, top_k: int, top_ranked: Any = None, **_: Any) -> dict[str, dict[str, float]]:
        """Scores of the best ``top_k`` documents of each query (of those in ``top_ranked`` where mteb reranks)."""
        position = {document: index for index, document in enumerate(self._ids)}
        found = {}
        for query, text in zip(queries["id"], self._budget.cut(queries["text"]), strict=True):
            known = [word for word in words(text) if word in self._index.vocab_dict]
            scores = self._index.get_scores(known) if known else np.zeros(len(self._ids), dtype=np.float32)
            candidates = np.array([position[document] for document in top_ranked[query]]) if top_ranked else np.arange(len(self._ids))
            best = candidates[np.argsort(-scores[candidates], kind="stable")[:top_k]]
            found[query] = {self._ids[index]: float(scores[index]) for index in best}
        return found

    @staticmethod
    def can_do(task: AbsTask) -> bool:
        """Whether the task ranks documents."""
        return isinstance(task, AbsTaskRetrieval)


def lexical_contestants(budget: TokenBudget, train: Sequence[str]) -> list[Contestant]:
    """The three of them, document frequencies from ``train``."""
    seen = budget.cut(train)
    return [
        Contestant(TfidfEncoder(WORD_TFIDF, {"analyzer": words}, budget, seen), WORD_TFIDF),
        Contestant(TfidfEncoder(CHAR_TFIDF, CHARACTERS, budget, seen), CHAR_TFIDF),
        Contestant(Bm25Search(budget), BM25, can_do=Bm25Search.can_do),
    ]
