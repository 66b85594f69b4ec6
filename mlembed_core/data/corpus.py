"""A source as token ids: the format of ``data/corpus/NAME/`` and its making from text rows, piece by piece.

``documents.parquet`` holds every distinct passage and negative once, ``rows.parquet`` the queries' tokens and the ids of their
documents. Test rows never get in: what is trained on is made from here alone.

A piece is some row groups of the source. For each, first the hashes of its documents are looked up, in the order of the pieces, which
gives the documents their ids; then its queries and the documents that are new with it are tokenised, in whichever process, into files of
its own in a state folder. Those are joined at the end. So a killed run goes on with the pieces that it lacks, pieces may be made on many
machines (``mlembed_core/spread.py``), and the bytes are the same in every case. Memory is that of a row group and 24 bytes per document.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mlembed_core.artifacts import read_json, write_json
from mlembed_core.data.key_table import KeyTable
from mlembed_core.data.rows import negative_columns
from mlembed_core.data.texts import (
    distinct,
    hash_fraction,
    hash_key,
    num_row_groups,
    num_rows,
    read_batches,
    read_group,
    require_columns,
    rows_of_groups,
)
from mlembed_core.data.tokenize import cut, load_tokenizer, uncut_ids
from mlembed_core.errors import ArtifactError
from mlembed_core.progress import Reporter
from mlembed_core.prompts import format_query
from mlembed_core.spread import RAY, spread

DOCUMENTS_FILE = "documents.parquet"
ROWS_FILE = "rows.parquet"
TOKENS: Final = pa.list_(pa.uint32())
DOCUMENT_COLUMNS: Final = pa.schema([pa.field("doc_id", pa.int64(), nullable=False), pa.field("tokens", TOKENS, nullable=False)])
ROW_COLUMNS: Final = pa.schema(
    [
        pa.field("query", TOKENS, nullable=False),
        pa.field("passage", pa.int64(), nullable=False),
        pa.field("negatives", pa.list_(pa.int64()), nullable=False),
        pa.field("label", pa.string()),
        pa.field("lang", pa.string()),
        pa.field("split", pa.string()),
    ]
)

# Where queries and passages are texts of one sort, a passage may come as a query at inference. So this share of the documents
# carries the prompt as well (ML-Embed, arXiv 2605.15081, encoder section). Chosen by the hash of the text, not of the row: a document
# stands once, however many rows have it.
PROMPTED_SHARE = 0.3
PIECE_GROUPS = 2  # of the source's row groups: what a killed run does again, at most half a million texts or 256 MB


@dataclass(frozen=True)
class Job:
    """A source and how to tokenise it. Every process makes the same of it.

    Attributes:
        rows_file: of the source, ``rows.parquet``.
        tokenizer: the folder.
        state: a folder for finished pieces, that all processes see.
        alone: whether other processes of this machine tokenise too; if not, one call uses all cores.
    """

    rows_file: Path
    tokenizer: Path
    state: Path
    instruction: str | None
    symmetric: bool
    num_negatives: int
    max_length: int
    alone: bool = True

    @property
    def num_pieces(self) -> int:
        return -(-num_row_groups(self.rows_file) // PIECE_GROUPS)

    def rows_in(self, piece: int) -> int:
        """Rows of the source that a piece is made from."""
        return sum(rows_of_groups(self.rows_file)[piece * PIECE_GROUPS : (piece + 1) * PIECE_GROUPS])

    @property
    def document_columns(self) -> list[str]:
        return ["passage", *negative_columns(self.num_negatives)]

    @property
    def columns(self) -> list[str]:
        """Of the source, what is read."""
        return ["query", *self.document_columns, "label", "lang", "split"]

    @property
    def prompted_share(self) -> float:
        return PROMPTED_SHARE if self.symmetric and self.instruction else 0.0


class Piece(NamedTuple):
    """What it takes to make the files of a piece.

    Attributes:
        first: for each of its batches, the number of documents before it.
        ids: for each of its batches, the document ids of its distinct documents; those ≥ ``first`` are new.
    """

    number: int
    first: list[int]
    ids: list[NDArray[np.int64]]


def make_corpus(job: Job, folder: Path, *, scratch: Path, description: str) -> dict[str, int]:
    """Write ``documents.parquet`` and ``rows.parquet`` into ``folder``.

    Args:
        scratch: for the hashes of the documents, in files that go with this process.

    Returns:
        ``rows`` (and ``rows_train``, ``rows_dev``, ``rows_unsplit``), ``documents``, ``tokens`` of queries and documents,
        ``truncated`` queries and documents. A repeated query counts each time, a repeated document once.

    Raises:
        ArtifactError: the source cannot be read; the message names its file.
        MachineError: processes died again and again.
    """
    require_columns(job.rows_file, job.columns)
    job.state.mkdir(parents=True, exist_ok=True)
    counts_of = {number: counts for number in range(job.num_pieces) if (counts := _finished(job, number)) is not None}
    start = sum(map(job.rows_in, counts_of))
    with Reporter(description, num_rows(job.rows_file), "rows", start=start) as progress:
        for number, counts in _make_pieces(job, frozenset(counts_of), scratch):
            counts_of[number] = counts
            progress.advance(job.rows_in(number))
    _batches.cache_clear()
    _join(job, folder)
    totals = Counter(dict.fromkeys(("rows", "documents", "tokens", "truncated"), 0))
    for counts in counts_of.values():
        totals.update(counts)
    return dict(totals)


def _make_pieces(job: Job, done: Set[int], scratch: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """Make the pieces that are not done, wherever the environment says. Gives their counts as they come."""
    missing = [number for number in range(job.num_pieces) if number not in done]
    keys_of: dict[int, bytes] = {}
    quiet: dict[str, Any] = {"description": "", "total": len(missing), "unit": "pieces", "shown": False}
    # Hashing is a tenth of the work at most, so the processes of one machine leave it to this one; a cluster may have a hundred of them.
    hashed = spread(partial(HashPiece, job), missing, in_order=True, only_here=not os.environ.get(RAY), **quiet)

    def pieces() -> Iterator[Piece]:
        table = KeyTable(scratch)
        for number in range(job.num_pieces):
            if number in done:
                table.numbers(_file(job, number, "keys").read_bytes())
                continue
            before = len(table)
            first, ids = [], []
            for keys in next(hashed)[1]:
                first.append(len(table))
                ids.append(table.numbers(keys))
            keys_of[number] = table.keys(before)
            yield Piece(number, first, ids)

    for _, (number, counts) in spread(partial(TokenisePiece, job), pieces(), **quiet):
        _finish(job, number, counts, keys_of.pop(number))
        yield number, counts


def _file(job: Job, number: int, part: str) -> Path:
    return job.state / f"{number:06}.{part}"


def _finish(job: Job, number: int, counts: dict[str, int], keys: bytes) -> None:
    """Say that a piece is whole: its last file to be written."""
    _file(job, number, "keys").write_bytes(keys)
    sizes = {part: _file(job, number, part).stat().st_size for part in ("documents", "rows", "keys")}
    for part in sizes:
        with _file(job, number, part).open("rb") as handle:
            os.fsync(handle.fileno())
    draft = _file(job, number, "partial")
    write_json(draft, {"counts": counts, "sizes": sizes})
    draft.replace(_file(job, number, "json"))


def _finished(job: Job, number: int) -> dict[str, int] | None:
    """The counts of a piece that is whole, None where it has to be made."""
    note = _file(job, number, "json")
    if not note.is_file():
        return None
    try:
        state = read_json(note)
        whole = all(_file(job, number, part).stat().st_size == size for part, size in state["sizes"].items())
        counts: dict[str, int] = state["counts"]
    except (ArtifactError, OSError, KeyError, TypeError):
        return None
    return counts if whole else None


def _join(job: Job, folder: Path) -> None:
    for part, schema, name in (("documents", DOCUMENT_COLUMNS, DOCUMENTS_FILE), ("rows", ROW_COLUMNS, ROWS_FILE)):
        with pq.ParquetWriter(folder / name, schema, compression="zstd") as writer:
            for number in range(job.num_pieces):
                with pa.memory_map(str(_file(job, number, part))) as source, pa.ipc.open_file(source) as file:
                    for position in range(file.num_record_batches):
                        writer.write_batch(file.get_batch(position))


class _Batch(NamedTuple):
    """Rows for training, their distinct documents, which of them each cell holds (columns, rows; −1: none), and the hash of each."""

    rows: pa.RecordBatch
    texts: list[str]
    cells: NDArray[np.int64]
    keys: list[bytes]


@lru_cache(maxsize=1)  # where hashing and tokenising are done in one process, a piece is read once
def _batches(job: Job, number: int) -> list[_Batch]:
    """The rows of a piece that are not of the test split."""
    found = []
    for group in range(number * PIECE_GROUPS, min((number + 1) * PIECE_GROUPS, num_row_groups(job.rows_file))):
        for batch in read_group(job.rows_file, group, job.columns, distinct_texts=["query", *job.document_columns]):
            split = batch.column("split")
            rows = batch.filter(pc.or_(pc.is_null(split), pc.is_in(split, pa.array(["train", "dev"]))))
            if rows.num_rows:
                texts, index = distinct([rows.column(name) for name in job.document_columns])
                found.append(_Batch(rows, texts, index, [hash_key(text) for text in texts]))
    return found


class HashPiece:
    """Number of a piece → the hashes of the distinct documents of each of its batches."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def __call__(self, number: int) -> list[bytes]:
        return [b"".join(batch.keys) for batch in _batches(self._job, number)]


class TokenisePiece:
    """Piece → its number and counts; its rows and the documents that are new with it stand in the state folder then."""

    def __init__(self, job: Job) -> None:
        if not job.alone:
            os.environ["RAYON_NUM_THREADS"] = "1"  # the library looks when it starts its threads
        self._job = job
        self._tokenizer = load_tokenizer(job.tokenizer)

    def __call__(self, piece: Piece) -> tuple[int, dict[str, int]]:
        job = self._job
        counts: Counter[str] = Counter()
        # Under names of its own until they are whole: a process that was given up may still be at the same piece.
        drafts = {part: _file(job, piece.number, f"{part}.{uuid4().hex}") for part in ("documents", "rows")}
        with (
            pa.OSFile(str(drafts["documents"]), "wb") as documents_file,
            pa.OSFile(str(drafts["rows"]), "wb") as rows_file,
            pa.ipc.new_file(documents_file, DOCUMENT_COLUMNS) as documents,
            pa.ipc.new_file(rows_file, ROW_COLUMNS) as rows,
        ):
            for batch, first, ids in zip(_batches(job, piece.number), piece.first, piece.ids, strict=True):
                for value in pc.value_counts(batch.rows.column("split")).to_pylist():
                    counts[f"rows_{value['values'] or 'unsplit'}"] += value["counts"]
                counts["rows"] += batch.rows.num_rows
                fresh = np.flatnonzero(ids >= first)
                if len(fresh):
                    documents.write_batch(self._documents(batch, fresh, ids[fresh], counts))
                rows.write_batch(self._rows(batch, ids, counts))
        for part, draft in drafts.items():
            draft.replace(_file(job, piece.number, part))
        return piece.number, dict(counts)

    def _documents(self, batch: _Batch, fresh: NDArray[np.int64], ids: NDArray[np.int64], counts: Counter[str]) -> pa.RecordBatch:
        """The documents that no batch before this one has."""
        texts = []
        for position in fresh.tolist():
            text = batch.texts[position]
            prompted = hash_fraction(batch.keys[position]) < self._job.prompted_share
            texts.append(format_query(text, self._job.instruction) if prompted else text)
        tokens, truncated = token_lists(self._tokenizer, texts, self._job.max_length)
        counts["documents"] += len(texts)
        counts["tokens"] += len(tokens.flatten())
        counts["truncated"] += int(truncated.sum())
        return pa.record_batch([pa.array(ids), tokens], schema=DOCUMENT_COLUMNS)

    def _rows(self, batch: _Batch, ids: NDArray[np.int64], counts: Counter[str]) -> pa.RecordBatch:
        queries, index = distinct([batch.rows.column("query")])
        tokens, truncated = token_lists(
            self._tokenizer, [format_query(text, self._job.instruction) for text in queries], self._job.max_length
        )
        lists = tokens.take(pa.array(index[0]))
        counts["tokens"] += len(lists.flatten())
        counts["truncated"] += int(truncated[index[0]].sum())
        documents = np.append(ids, -1)[batch.cells]  # index −1, a null, picks the −1 at the end
        return pa.record_batch(
            [
                lists,
                pa.array(documents[0]),
                _lists_without_gaps(documents[1:].T),
                *(batch.rows.column(name) for name in ("label", "lang", "split")),
            ],
            schema=ROW_COLUMNS,
        )


def token_lists(tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> tuple[pa.ListArray, NDArray[np.bool_]]:
    """Token ids of each text, and whether some were cut off."""
    lengths = np.zeros(len(texts), dtype=np.int64)
    parts: list[NDArray[np.uint32]] = [np.empty(0, dtype=np.uint32)]
    position = 0
    for lists in uncut_ids(tokenizer, texts):
        here = [len(ids) for ids in lists]
        lengths[position : position + len(lists)] = here
        if max(here) > max_length:
            lists = [cut(ids, max_length) for ids in lists]
        num_tokens = sum(min(length, max_length) for length in here)
        parts.append(np.fromiter(chain.from_iterable(lists), dtype=np.uint32, count=num_tokens))
        position += len(lists)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, max_length))])
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(np.concatenate(parts)), type=TOKENS), lengths > max_length


def _lists_without_gaps(table: NDArray[np.int64]) -> pa.ListArray:
    """The entries ≥ 0 of each row: (rows, columns) → ``rows`` lists."""
    filled = table >= 0
    offsets = np.concatenate([[0], np.cumsum(filled.sum(axis=1))])
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(table[filled]))


def read_documents(folder: Path) -> Iterator[pa.RecordBatch]:
    """The documents of a corpus folder, ``doc_id`` ascending from 0, in pieces.

    Raises:
        ArtifactError: the file is missing or damaged; the message names it.
    """
    return read_batches(folder / DOCUMENTS_FILE, DOCUMENT_COLUMNS.names)


def read_corpus_rows(folder: Path) -> Iterator[pa.RecordBatch]:
    """The rows of a corpus folder, in pieces.

    Raises:
        ArtifactError: the file is missing or damaged; the message names it.
    """
    return read_batches(folder / ROWS_FILE, ROW_COLUMNS.names)
