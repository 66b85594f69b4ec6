"""A source as token ids: the format of ``data/corpus/NAME/`` and its making from text rows, batch by batch.

``documents.parquet`` holds every distinct passage and negative once, ``rows.parquet`` the queries' tokens and the ids of their
documents. Test rows never get in: what is trained on is made from here alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from mlembed_core.config.data import SourceParams
from mlembed_core.data.rows import negative_columns
from mlembed_core.data.texts import distinct, hash_fraction, hash_key, read_batches
from mlembed_core.data.tokenize import cut, uncut_ids
from mlembed_core.prompts import format_query

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
# carries the prompt as well (ML-Embed, arXiv 2605.15081, encoder section).
PROMPTED_SHARE = 0.3


class CorpusWriter:
    """Writes a corpus folder from batches of text rows. A context manager: leaving it completes the files.

    Attributes:
        counts: ``rows`` (and ``rows_train``, ``rows_dev``, ``rows_unsplit``), ``documents``, ``tokens`` of queries and documents,
            ``truncated`` queries and documents. A repeated query counts each time, a repeated document once.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, source: SourceParams, *, max_length: int) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(("rows", "documents", "tokens", "truncated"), 0))
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._instruction = source.instruction
        self._prompted_share = PROMPTED_SHARE if source.symmetric and source.instruction else 0.0
        self._document_columns = ["passage", *negative_columns(source.num_negatives)]
        self._document_ids: dict[bytes, int] = {}  # by hash of the text: constant size, whatever the documents' length
        self._documents = pq.ParquetWriter(folder / DOCUMENTS_FILE, DOCUMENT_COLUMNS, compression="zstd")
        self._rows = pq.ParquetWriter(folder / ROWS_FILE, ROW_COLUMNS, compression="zstd")

    def __enter__(self) -> CorpusWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._documents.close()
        self._rows.close()

    @property
    def columns(self) -> list[str]:
        """What :meth:`write` wants of the source's rows."""
        return [*self.text_columns, "label", "lang", "split"]

    @property
    def text_columns(self) -> list[str]:
        """Those of :attr:`columns` that hold text to be tokenised."""
        return ["query", *self._document_columns]

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows of ``batch`` (:attr:`columns`, text in dictionary form or plain) that are not of the test split."""
        split = batch.column("split")
        batch = batch.filter(pc.or_(pc.is_null(split), pc.is_in(split, pa.array(["train", "dev"]))))
        if not batch.num_rows:
            return
        for value in pc.value_counts(batch.column("split")).to_pylist():
            self.counts[f"rows_{value['values'] or 'unsplit'}"] += value["counts"]
        self.counts["rows"] += batch.num_rows

        texts, index = distinct([batch.column(name) for name in self._document_columns])
        documents = np.append(self._ids_of(texts), -1)[index]  # index −1, a null, picks the −1 at the end
        self._rows.write_batch(
            pa.record_batch(
                [
                    self._queries(batch.column("query")),
                    pa.array(documents[0]),
                    _lists_without_gaps(documents[1:].T),
                    *(batch.column(name) for name in ("label", "lang", "split")),
                ],
                schema=ROW_COLUMNS,
            )
        )

    def _ids_of(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """The document id of each distinct text; those not met before are tokenised and written."""
        first = len(self._document_ids)
        ids = np.empty(len(texts), dtype=np.int64)
        fresh: list[str] = []
        for position, text in enumerate(texts):
            key = hash_key(text)
            ids[position] = self._document_ids.setdefault(key, len(self._document_ids))
            if len(self._document_ids) > first + len(fresh):
                prompted = hash_fraction(key) < self._prompted_share
                fresh.append(format_query(text, self._instruction) if prompted else text)
        if fresh:
            tokens, truncated = self._tokens(fresh)
            self.counts["documents"] += len(fresh)
            self.counts["tokens"] += len(tokens.flatten())
            self.counts["truncated"] += int(truncated.sum())
            self._documents.write_batch(pa.record_batch([pa.array(np.arange(first, first + len(fresh))), tokens], schema=DOCUMENT_COLUMNS))
        return ids

    def _queries(self, column: pa.Array) -> pa.ListArray:
        texts, index = distinct([column])
        tokens, truncated = self._tokens([format_query(text, self._instruction) for text in texts])
        lists = tokens.take(pa.array(index[0]))
        self.counts["tokens"] += len(lists.flatten())
        self.counts["truncated"] += int(truncated[index[0]].sum())
        return lists

    def _tokens(self, texts: Sequence[str]) -> tuple[pa.ListArray, NDArray[np.bool_]]:
        """Token ids of each text, and whether some were cut off."""
        lists: list[list[int]] = []
        truncated = np.zeros(len(texts), dtype=np.bool_)
        for position, ids in enumerate(uncut_ids(self._tokenizer, texts)):
            truncated[position] = len(ids) > self._max_length
            lists.append(cut(ids, self._max_length))
        return pa.array(lists, type=TOKENS), truncated


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
