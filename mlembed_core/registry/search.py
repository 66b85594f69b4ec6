"""Search over a person's texts or the demo's corpus with one submodel: exact, by cosine.

Vectors of a corpus are kept on disk, named by weights, submodel and texts, so that the second question is answered at once. Nothing here
is an index: every vector is compared, which is exact and fast enough up to some millions of texts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from mlembed_core.artifacts import Workspace, hash_of
from mlembed_core.config.grid import Submodel
from mlembed_core.errors import ArtifactError, DataError
from mlembed_core.export.kinds import VectorType
from mlembed_core.progress import Reporter
from mlembed_core.registry.load import load
from mlembed_core.registry.quantise import QuantisedVectors, quantise, ranges_of
from mlembed_core.registry.resolve import cache_folder, resolve
from mlembed_core.registry.texts import check_vector_file, read_texts, write_vectors

BLOCK_TEXTS = 2048  # encoded at a time: enough to sort by length, little enough to show progress
VECTORS_VERSION = 1  # raise when equal weights and texts give other vectors
KEPT_CORPORA = 20  # files
SEARCHED_SPLITS = ("train", "test", None)


class TextEncoder(Protocol):
    """What searching needs of an encoder (:class:`mlembed_core.model.encoder.Encoder` is one)."""

    @property
    def submodel(self) -> Submodel: ...

    def encode_documents(self, texts: Sequence[str]) -> NDArray[Any]:
        """Unit vectors, (len(texts), submodel.dim)."""
        ...

    def encode_queries(self, texts: Sequence[str], *, instruction: str | None = None) -> NDArray[Any]:
        """Unit vectors, (len(texts), submodel.dim)."""
        ...


@dataclass(frozen=True)
class Corpus:
    """Texts to search, and where each comes from (``cldr_bitext (deu)``, ``notes.txt:17``)."""

    texts: list[str]
    places: list[str]

    @property
    def digest(self) -> str:
        """SHA-256 over the texts in their order."""
        digest = hashlib.sha256()
        for text in self.texts:
            data = text.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


@dataclass(frozen=True)
class Hit:
    """A text found; ``score`` is the cosine."""

    rank: int
    score: float
    text: str
    place: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def corpus_of_file(path: Path, *, column: str | None = None) -> Corpus:
    """The texts of a file but for blank ones.

    Raises:
        DataError: see :func:`read_texts`; or every text is blank.
    """
    numbered = [(number, text) for number, text in enumerate(read_texts(path, column=column), start=1) if text.strip()]
    if not numbered:
        raise DataError(f"{path} holds only blank texts")
    return Corpus([text for _, text in numbered], [f"{path.name}:{number}" for number, _ in numbered])


def corpus_of_sources(workspace: Workspace) -> Corpus:
    """The passages of all sources on disk (train and test rows), each text once.

    Raises:
        ArtifactError: there is no source, or one is damaged.
    """
    places: dict[str, str] = {}
    for path in sorted(workspace.sources.glob("*/rows.parquet")):
        try:
            table = pq.read_table(path, columns=["passage", "lang", "split"])
        except (pa.ArrowException, OSError, KeyError) as error:
            raise ArtifactError(f"{path} is damaged ({error}). Make it again: `dvc repro source@{path.parent.name}`.") from error
        for passage, lang, split in zip(*(table.column(name).to_pylist() for name in ("passage", "lang", "split")), strict=True):
            if split in SEARCHED_SPLITS and passage.strip():
                places.setdefault(passage, f"{path.parent.name} ({lang})" if lang else path.parent.name)
    if not places:
        raise ArtifactError(f"{workspace.sources} holds no passages to search. `dvc repro source` makes them; or name a file with --file.")
    return Corpus(list(places), list(places.values()))


def run(
    query: str,
    corpus: Corpus,
    *,
    ref: str | Path,
    layers: int | None,
    dim: int | None,
    rank: int | None,
    top: int,
    instruction: str | None,
    precision: VectorType = VectorType.FLOAT32,
) -> tuple[TextEncoder, list[Hit]]:
    """Search ``corpus`` with the model ``ref`` at a submodel, keeping the corpus's vectors for the next question.

    Args:
        precision: of the corpus's vectors, on disk and in memory.

    Raises:
        ArtifactError, RegistryError, SubmodelError: see :func:`mlembed_core.registry.load.load`.
    """
    folder = resolve(ref)
    encoder = load(folder, layers=layers, dim=dim, rank=rank)
    known: dict[str, Any] = {"weights_hash": _weights_hash(folder), "folder": cache_folder() / "search"}
    if precision is not VectorType.FLOAT32:
        stored = quantised_vectors(encoder, corpus, precision, **known)
        rows, scores = stored.search(encoder.encode_queries([query], instruction=instruction)[0], top)
        return encoder, _hits(corpus, rows, scores)
    vectors = corpus_vectors(encoder, corpus, **known)
    return encoder, search(encoder, query, corpus, top=top, instruction=instruction, vectors=vectors)


@dataclass(frozen=True)
class Encoded:
    """What :func:`encode_file` wrote, and how fast."""

    file: str
    texts: int
    dim: int
    submodel: str
    seconds: float

    @property
    def texts_per_second(self) -> float:
        return self.texts / max(self.seconds, 1e-9)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "texts_per_second": self.texts_per_second}


def encode_file(
    source: Path,
    target: Path,
    *,
    ref: str | Path,
    layers: int | None = None,
    dim: int | None = None,
    rank: int | None = None,
    column: str | None = None,
    queries: bool = False,
    instruction: str | None = None,
    precision: VectorType = VectorType.FLOAT32,
) -> Encoded:
    """Write the vectors of a file's texts, row i of text i.

    Args:
        precision: int8 takes the ranges of the first block of texts and writes them beside the vectors (``OUTPUT.ranges.npy``).

    Raises:
        DataError: the texts cannot be read or the vectors not be written.
        ArtifactError, RegistryError, SubmodelError: see :func:`mlembed_core.registry.load.load`.
    """
    check_vector_file(target)
    texts = read_texts(source, column=column)
    encoder = load(ref, layers=layers, dim=dim, rank=rank)
    started = time.monotonic()
    blocks = encode_blocks(encoder, texts, queries=queries, instruction=instruction)
    if precision is VectorType.FLOAT32:
        write_vectors(target, texts, blocks, dim=encoder.submodel.dim)
    else:
        _write_quantised(target, texts, blocks, precision, dim=encoder.submodel.dim)
    return Encoded(str(target), len(texts), encoder.submodel.dim, encoder.submodel.name, time.monotonic() - started)


def _write_quantised(target: Path, texts: Sequence[str], blocks: Iterator[NDArray[Any]], precision: VectorType, *, dim: int) -> None:
    first = next(blocks)
    ranges = ranges_of(first) if precision is VectorType.INT8 else None
    if ranges is not None:
        np.save(target.with_name(f"{target.name}.ranges.npy"), ranges, allow_pickle=False)
    width, kind = (dim, np.int8) if precision is VectorType.INT8 else ((dim + 7) // 8, np.uint8)
    quantised = (quantise(block, precision, ranges=ranges).values for block in chain([first], blocks))
    write_vectors(target, texts, quantised, dim=width, kind=kind)


def _weights_hash(folder: Path) -> str:
    from mlembed_core.model.encoder import weights_hash

    return weights_hash(folder)


def search(
    encoder: TextEncoder, query: str, corpus: Corpus, *, top: int, instruction: str | None = None, vectors: NDArray[Any] | None = None
) -> list[Hit]:
    """The ``top`` texts nearest to ``query``, the nearest first; equal scores in the corpus's order.

    Args:
        vectors: of the corpus, where they are known already (:func:`corpus_vectors`).
    """
    known = encoder.encode_documents(corpus.texts) if vectors is None else vectors
    scores = known @ encoder.encode_queries([query], instruction=instruction)[0]
    best = np.argsort(-scores, kind="stable")[:top]
    return _hits(corpus, best, scores[best])


def _hits(corpus: Corpus, rows: NDArray[Any], scores: NDArray[Any]) -> list[Hit]:
    found = enumerate(zip(rows, scores, strict=True), start=1)
    return [Hit(rank, float(score), corpus.texts[row], corpus.places[row]) for rank, (row, score) in found]


def corpus_vectors(encoder: TextEncoder, corpus: Corpus, *, weights_hash: str, folder: Path) -> NDArray[Any]:
    """Vectors of a corpus, float32 (len(texts), dim): from ``folder`` where they were made before, else encoded and kept there."""
    shape = (len(corpus.texts), encoder.submodel.dim)
    path = folder / f"{hash_of([VECTORS_VERSION, weights_hash, encoder.submodel.name, corpus.digest])[:32]}.npy"
    known = _read_vectors(path, shape)
    if known is not None:
        path.touch()
        return known
    vectors = _encode(encoder, corpus)
    _keep(path, vectors)
    return vectors


def quantised_vectors(encoder: TextEncoder, corpus: Corpus, precision: VectorType, *, weights_hash: str, folder: Path) -> QuantisedVectors:
    """As :func:`corpus_vectors`, in fewer bits; nothing larger is kept on disk."""
    dim = encoder.submodel.dim
    name = hash_of([VECTORS_VERSION, weights_hash, encoder.submodel.name, corpus.digest, precision.value])[:32]
    values_file, ranges_file = folder / f"{name}.npy", folder / f"{name}.ranges.npy"
    width, kind = (dim, np.int8) if precision is VectorType.INT8 else ((dim + 7) // 8, np.uint8)
    values = _read_vectors(values_file, (len(corpus.texts), width), kind)
    ranges = _read_vectors(ranges_file, (2, dim)) if precision is VectorType.INT8 else None
    if values is None or (ranges is None and precision is VectorType.INT8):
        made = quantise(_encode(encoder, corpus), precision)
        if made.ranges is not None:
            _keep(ranges_file, made.ranges)
        _keep(values_file, made.values)
        return made
    return QuantisedVectors(precision, values, ranges, dim)


def _encode(encoder: TextEncoder, corpus: Corpus) -> NDArray[Any]:
    vectors = np.empty((len(corpus.texts), encoder.submodel.dim), dtype=np.float32)
    done = 0
    for block in encode_blocks(encoder, corpus.texts):
        vectors[done : done + len(block)] = block
        done += len(block)
    return vectors


def encode_blocks(
    encoder: TextEncoder, texts: Sequence[str], *, queries: bool = False, instruction: str | None = None
) -> Iterator[NDArray[Any]]:
    """Encode texts block by block, showing progress.

    Args:
        queries: encode them as queries (with ``instruction``, if any) instead of documents.
    """
    with Reporter(f"encoding at {encoder.submodel.name}", len(texts), "texts") as reporter:
        for start in range(0, len(texts), BLOCK_TEXTS):
            block = texts[start : start + BLOCK_TEXTS]
            yield encoder.encode_queries(block, instruction=instruction) if queries else encoder.encode_documents(block)
            reporter.advance(len(block))


def _read_vectors(path: Path, shape: tuple[int, int], kind: type[np.generic] = np.float32) -> NDArray[Any] | None:
    """Kept vectors, or None where there are none or they are not whole: they can always be made again."""
    try:
        vectors: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return vectors if vectors.shape == shape and vectors.dtype == kind else None


def _keep(path: Path, vectors: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".partial")
    with draft.open("wb") as handle:
        np.save(handle, vectors, allow_pickle=False)
    draft.replace(path)
    newest_first = sorted(path.parent.glob("*.npy"), key=lambda kept: kept.stat().st_mtime, reverse=True)
    for old in newest_first[KEPT_CORPORA:]:
        old.unlink(missing_ok=True)
