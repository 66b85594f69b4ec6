"""The training cache: tokens of all sources in flat files, opened by memory map, so that a process of any size costs no memory.

Layout of the folder (little-endian, no padding)::

    header.json           format, version, tokenizer, sizes of the files, table of sources
    tokens.bin            uint32   the tokens of all texts, one after another
    offsets.bin           int64    where each text starts in tokens.bin, and the end      (texts + 1)
    queries.bin           int64    text of each row's query                               (rows)
    passages.bin          int64    text of each row's passage                             (rows)
    negatives.bin         int64    texts of all rows' negatives, one row after another
    negative_offsets.bin  int64    where each row's negatives start, and the end          (rows + 1)
    labels.bin            int32    class of each row, an index of its source's labels, −1 (rows)

A source's rows lie together, those for training before those for validation. A source's texts lie together too, and texts with
equal tokens are one text: equal id means same text, so that a loss can tell a false negative by its id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mlembed_core.artifacts import manifest_hash, read_json, write_json
from mlembed_core.config.data import Kind
from mlembed_core.data.key_table import KeyTable
from mlembed_core.data.texts import hash_key
from mlembed_core.errors import ArtifactError

FORMAT = "mlembed training cache"
VERSION = 1
HEADER = "header.json"
FILES = {
    "tokens.bin": "<u4",
    "offsets.bin": "<i8",
    "queries.bin": "<i8",
    "passages.bin": "<i8",
    "negatives.bin": "<i8",
    "negative_offsets.bin": "<i8",
    "labels.bin": "<i4",
}
REMEDY = "Make the cache again with `mlembed cache` (or `dvc repro cache`)."

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class OwnNegatives:
    """The hard negatives of all rows of a cache, each row's its own: a table with rows of different lengths.

    Attributes:
        offsets: where each row starts in ``texts``, and the end (rows + 1).
        texts: text ids.
    """

    offsets: Int64
    texts: Int64

    def of(self, row: int) -> Int64:
        return self.texts[self.offsets[row] : self.offsets[row + 1]]

    def counts(self, rows: Int64) -> Int64:
        return self.offsets[rows + 1] - self.offsets[rows]


@dataclass(frozen=True)
class CachedSource:
    """One source of a cache.

    Attributes:
        train: its rows for training, numbers within the whole cache.
        validation: its rows held out, right behind them.
        num_negatives: at most so many hard negatives has a row.
        labels: the names of its classes; a row's label is an index.
        own_negatives: the table of the cache that this source is of, for those who draw from it.
    """

    name: str
    kind: Kind
    train: range
    validation: range
    num_negatives: int
    labels: tuple[str, ...] = ()
    own_negatives: OwnNegatives | None = field(default=None, repr=False, compare=False)


class TrainingCache:
    """A cache opened for reading. Every array is a view into a file.

    Attributes:
        sources: its sources, by name in ascending order.
        num_texts: text ids run from 0 up to it.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]], sources: tuple[CachedSource, ...]) -> None:
        self.sources = sources
        self.num_texts = len(arrays["offsets.bin"]) - 1
        self._tokens: NDArray[np.uint32] = arrays["tokens.bin"]
        self._offsets = arrays["offsets.bin"]
        self._queries: Int64 = arrays["queries.bin"]
        self._passages: Int64 = arrays["passages.bin"]
        self._labels: NDArray[np.int32] = arrays["labels.bin"]
        self._negatives = OwnNegatives(arrays["negative_offsets.bin"], arrays["negatives.bin"])

    @classmethod
    def open(cls, folder: Path, *, tokenizer: Path | None = None) -> TrainingCache:
        """Map the cache in ``folder``, in milliseconds.

        Args:
            tokenizer: the folder of the tokenizer that it must have been made with; not checked when None.

        Raises:
            ArtifactError: no cache, or one of another version or tokenizer, or truncated; the message says which.
        """
        header = _read_header(folder)
        if tokenizer is not None and header["tokenizer"] != manifest_hash(tokenizer):
            raise ArtifactError(
                f"{folder} was made with another tokenizer than the one in {tokenizer} (manifest {header['tokenizer'][:12]}…, not "
                f"{manifest_hash(tokenizer)[:12]}…): its token ids mean other words. Run `dvc repro cache`, which tokenises anew."
            )
        arrays = {name: _map_file(folder / name, header["files"].get(name), dtype) for name, dtype in FILES.items()}
        _check_lengths(folder, header, arrays)
        negatives = OwnNegatives(arrays["negative_offsets.bin"], arrays["negatives.bin"])
        return cls(arrays, tuple(_source(entry, negatives) for entry in header["sources"]))

    def query_ids(self, rows: Int64) -> Int64:
        """Text ids of the queries of ``rows``: same shape."""
        return self._queries[rows]

    def passage_ids(self, rows: Int64) -> Int64:
        """Text ids of the passages (the positives) of ``rows``: same shape."""
        return self._passages[rows]

    def negative_ids(self, row: int) -> Int64:
        """Text ids of the hard negatives of one row, as many as it has."""
        return self._negatives.of(row)

    def labels(self, rows: Int64) -> NDArray[np.int32]:
        """Classes of ``rows``: indices of their source's ``labels``, −1 where a row has none."""
        return self._labels[rows]

    def tokens(self, text_id: int) -> NDArray[np.uint32]:
        """Token ids of a text, EOS last: a read-only view."""
        return self._tokens[self._offsets[text_id] : self._offsets[text_id + 1]]

    def lengths(self, text_ids: Int64) -> Int64:
        """Numbers of tokens of texts: same shape."""
        lengths: Int64 = self._offsets[text_ids + 1] - self._offsets[text_ids]
        return lengths


def _read_header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not path.is_file():
        raise ArtifactError(f"there is no training cache in {folder} (no {HEADER}). {REMEDY}")
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ArtifactError(f"{path} is no header of a training cache (its format is not {FORMAT!r}). {REMEDY}")
    if header.get("version") != VERSION:
        raise ArtifactError(f"{folder} is a training cache of version {header.get('version')!r}, this code reads {VERSION}. {REMEDY}")
    missing = {"tokenizer", "files", "sources"} - set(header)
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(sorted(missing))}: it was changed after it was written. {REMEDY}")
    return header


def _map_file(path: Path, expected_bytes: int | None, dtype: str) -> NDArray[Any]:
    if not path.is_file():
        raise ArtifactError(f"{path} is missing, so the training cache is not whole. {REMEDY}")
    size = path.stat().st_size
    if size != expected_bytes:
        raise ArtifactError(f"{path} has {size} bytes, its header says {expected_bytes}: it is truncated or of another cache. {REMEDY}")
    if size == 0:
        return np.empty(0, dtype=dtype)  # an empty file cannot be mapped
    # As a plain array: the memmap class costs a microsecond at every slice, and a batch takes thousands.
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)


def _check_lengths(folder: Path, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    """The files against each other: what a size in the header cannot show."""
    num_rows = sum(entry["rows_train"] + entry["rows_validation"] for entry in header["sources"])
    offsets, negative_offsets = arrays["offsets.bin"], arrays["negative_offsets.bin"]
    agree = (
        all(len(arrays[name]) == num_rows for name in ("queries.bin", "passages.bin", "labels.bin"))
        and len(negative_offsets) == num_rows + 1
        and negative_offsets[-1] == len(arrays["negatives.bin"])
        and len(offsets) > 0
        and offsets[-1] == len(arrays["tokens.bin"])
    )
    if not agree:
        raise ArtifactError(f"the files of {folder} do not belong together (numbers of rows, texts or tokens differ). {REMEDY}")


def _source(entry: Mapping[str, Any], negatives: OwnNegatives) -> CachedSource:
    first = entry["first_row"]
    middle = first + entry["rows_train"]
    return CachedSource(
        name=entry["name"],
        kind=Kind(entry["kind"]),
        train=range(first, middle),
        validation=range(middle, middle + entry["rows_validation"]),
        num_negatives=entry["num_negatives"],
        labels=tuple(entry["labels"]),
        own_negatives=negatives,
    )


class CacheWriter:
    """Writes a cache folder, source after source, in constant memory: the table of a source's texts lies in files that go with it.

    Use: for each source :meth:`begin_source`, then :meth:`add_texts` and :meth:`add_rows` in turn (all training rows before the
    first validation row); :meth:`finish` at the end. A context manager, so that files are closed on an error.

    Attributes:
        counts: ``rows_train``, ``rows_validation``, ``texts``, ``tokens``, ``negatives``.
    """

    def __init__(self, folder: Path) -> None:
        self.counts: Counter[str] = Counter(dict.fromkeys(("rows_train", "rows_validation", "texts", "tokens", "negatives"), 0))
        self._folder = folder
        self._sources: list[dict[str, Any]] = []
        self._texts = KeyTable(folder)  # those of the current source
        self._first_text = 0
        self._label_ids: dict[str, int] = {}
        self._stack = ExitStack()
        self._files: dict[str, BinaryIO] = {name: self._stack.enter_context((folder / name).open("wb")) for name in FILES}
        self._append("offsets.bin", [0])
        self._append("negative_offsets.bin", [0])

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def begin_source(self, name: str, *, kind: Kind, num_negatives: int) -> None:
        """The texts and rows that follow are of source ``name``."""
        self._texts, self._first_text, self._label_ids = KeyTable(self._folder), self.counts["texts"], {}
        self._sources.append(
            {
                "name": name,
                "kind": kind.value,
                "first_row": self.counts["rows_train"] + self.counts["rows_validation"],
                "rows_train": 0,
                "rows_validation": 0,
                "num_negatives": num_negatives,
                "labels": [],
            }
        )

    def add_texts(self, tokens: NDArray[np.uint32], offsets: Int64) -> Int64:
        """The text ids of token lists, within the current source; lists not met before are written.

        Args:
            tokens: of all lists, one after another.
            offsets: where each list starts in ``tokens``, and the end.
        """
        content = memoryview(np.ascontiguousarray(tokens, dtype="<u4").tobytes())
        keys = b"".join(hash_key(content[4 * start : 4 * stop]) for start, stop in pairwise(offsets.tolist()))
        known = len(self._texts)
        numbers = self._texts.numbers(keys)
        is_new = np.zeros(len(numbers), dtype=np.bool_)
        _, firsts = np.unique(numbers[numbers >= known], return_index=True)
        is_new[np.flatnonzero(numbers >= known)[firsts]] = True
        lengths = np.diff(offsets)
        if len(firsts):
            ends = self.counts["tokens"] + np.cumsum(lengths[is_new])
            self._append("tokens.bin", tokens[np.repeat(is_new, lengths)])
            self._append("offsets.bin", ends)
            self.counts["tokens"] = int(ends[-1])
            self.counts["texts"] += len(firsts)
        return self._first_text + numbers

    def add_rows(
        self, *, validation: bool, queries: Int64, passages: Int64, negatives: Int64, num_negatives: Int64, labels: list[str | None]
    ) -> None:
        """Append rows to the current source.

        Args:
            validation: held out, or for training.
            queries: text ids (rows).
            passages: text ids (rows).
            negatives: text ids of all rows' negatives, one row after another.
            num_negatives: how many of them are each row's (rows).
            labels: class names, None where there is none (rows).
        """
        source = self._sources[-1]
        part = "rows_validation" if validation else "rows_train"
        if not validation and source["rows_validation"]:
            raise ValueError(f"training rows of {source['name']} after its validation rows: they must come first")
        for label in labels:
            if label is not None and label not in self._label_ids:
                self._label_ids[label] = len(self._label_ids)
                source["labels"].append(label)
        self._append("queries.bin", queries)
        self._append("passages.bin", passages)
        self._append("negatives.bin", negatives)
        self._append("negative_offsets.bin", self.counts["negatives"] + np.cumsum(num_negatives))
        self._append("labels.bin", [-1 if label is None else self._label_ids[label] for label in labels])
        self.counts["negatives"] += len(negatives)
        self.counts[part] += len(queries)
        source[part] += len(queries)

    @property
    def num_train_rows(self) -> int:
        """Training rows of the current source so far."""
        return int(self._sources[-1]["rows_train"])

    def finish(self, *, tokenizer: str) -> None:
        """Close the files and write the header.

        Args:
            tokenizer: manifest hash of the tokenizer that the token ids are of.
        """
        self._stack.close()
        write_json(
            self._folder / HEADER,
            {
                "format": FORMAT,
                "version": VERSION,
                "tokenizer": tokenizer,
                "files": {name: (self._folder / name).stat().st_size for name in FILES},
                "sources": self._sources,
            },
        )

    def _append(self, name: str, values: ArrayLike) -> None:
        # Not by tofile, which reports a full disk without the errno that tells it from other failures.
        self._files[name].write(np.asarray(values).astype(FILES[name]).tobytes())
