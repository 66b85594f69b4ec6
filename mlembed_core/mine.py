"""``mlembed mine``: files of pairs in, one parquet file with hard negatives out, and what became of each row.

The file has the columns of a source, so that it can be named as one. It is written aside and renamed: a failure leaves what was there.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mlembed_core.config.checks import Policy, RowChecks
from mlembed_core.config.data import FileParams
from mlembed_core.data.checks import RowFilter
from mlembed_core.data.mining import LEXICAL, Pair, Retriever, Rules, VectorRetriever, mine
from mlembed_core.data.rows import ROWS_FILE, Row, RowWriter, to_table
from mlembed_core.data.sources.files import find_local
from mlembed_core.errors import ConfigError, DataError, MachineError
from mlembed_core.progress import Reporter

NAME = "mine"  # what messages call the input, which is no source of the parameters


@dataclass(frozen=True)
class Mined:
    """What was written.

    Attributes:
        rows: of the file; ``too_few`` of them, or of those left out, had fewer negatives than asked.
        left_out: rows with too few, where the policy is to drop them.
        dropped: rows that no training may see, by check.
        negatives: of a row, on average.
    """

    file: Path
    rows: int
    too_few: int
    left_out: int
    dropped: dict[str, int]
    negatives: float

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "file": str(self.file)}

    @property
    def summary(self) -> str:
        dropped = "".join(f", {count:,} {name}" for name, count in self.dropped.items())
        few = f"{self.too_few:,} had too few negatives" + (f" and {self.left_out:,} are left out" if self.left_out else "")
        return f"{self.file}: {self.rows:,} rows with {self.negatives:.1f} negatives each; {few}{dropped}"


def mine_files(
    patterns: Sequence[str],
    out: Path,
    *,
    rules: Rules,
    too_few: Policy,
    model: str | None = None,
    lexical: str | None = None,
    instruction: str | None = None,
) -> Mined:
    """Mine negatives for the pairs of some files.

    Args:
        patterns: paths or globs of parquet, jsonl or csv files with ``query`` and ``passage``.
        too_few: what becomes of rows with fewer than ``rules.keep`` negatives.
        model, lexical: one of both: a model's reference, or a method of :data:`LEXICAL`.
        instruction: put before queries, with a model.

    Raises:
        ConfigError: an output that is no parquet file, or limits that leave nothing.
        DataError: a file cannot be used; no row is left; or one has too few negatives and that is an error.
        MachineError: a package is missing.
        ArtifactError, RegistryError: there is no such model.
    """
    if out.suffix != ".parquet":
        raise ConfigError(f"{out}: the output is a parquet file; name it so")
    if not 0 <= rules.skip < rules.top:
        raise ConfigError(f"--skip {rules.skip} leaves none of the --top {rules.top} ranks; skip fewer, or look at more")
    rows = RowFilter(NAME, RowChecks(max_dropped=1), num_negatives=0)
    files = find_local(NAME, [FileParams(path=pattern) for pattern in patterns], root=Path.cwd(), num_negatives=0)
    table = pa.concat_tables(list(files.chosen_tables(None, lambda: rows)) or [to_table([], 0)], promote_options="permissive")
    dropped = {name: count for name, count in rows.counts.items() if count and name.startswith("dropped_")}
    if not table.num_rows:
        raise DataError(f"{', '.join(patterns)} hold no rows to mine negatives for ({dropped or 'no rows at all'})")
    pairs = [Pair(*row) for row in zip(*(table[name].to_pylist() for name in ("query", "passage", "label", "split")), strict=True)]
    found: list[list[str]] = [[] for _ in pairs]
    try:
        retriever = LEXICAL[lexical] if lexical is not None else _by_vectors(str(model), instruction)
        with Reporter("mining", len(pairs), "rows") as progress:
            for number, negatives in mine(pairs, retriever, rules):
                found[number] = negatives
                progress.advance()
    except ModuleNotFoundError as error:
        raise MachineError(
            f"mining needs the package {error.name!r}. Install it: pip install -c constraints.txt 'mlembed[mining]'"
        ) from None
    counts = np.array([len(negatives) for negatives in found])
    few = int((counts < rules.keep).sum())
    if few and too_few is Policy.ERROR:
        first = int(np.flatnonzero(counts < rules.keep)[0])
        raise DataError(
            f"{few:,} of {len(pairs):,} rows have fewer than {rules.keep} negatives, the first of them {counts[first]} (query "
            f"{pairs[first].query[:60]!r}). Ask for fewer, look at more ranks (--top), or keep or drop such rows (--too-few)."
        )
    kept = np.flatnonzero(counts >= (rules.keep if too_few is Policy.DROP else 0))
    if not len(kept):
        raise DataError(
            f"none of {len(pairs):,} rows has {rules.keep} negatives. Ask for fewer (--negatives), or look at more ranks (--top)."
        )
    langs = table["lang"].to_pylist()
    _write(
        out,
        [Row(pair.query, pair.passage, found[n], langs[n], pair.label, pair.split) for n in kept.tolist() for pair in (pairs[n],)],
        rules.keep,
    )
    return Mined(out, len(kept), few, len(pairs) - len(kept), dropped, float(counts[kept].mean()))


def _by_vectors(model: str, instruction: str | None) -> Callable[[Sequence[str]], Retriever]:
    from mlembed_core.registry.load import load
    from mlembed_core.registry.resolve import resolve

    encoder = load(resolve(model))

    def encode_queries(texts: Sequence[str]) -> Any:
        return encoder.encode_queries(texts, instruction=instruction)

    return lambda passages: VectorRetriever(passages, encode_queries, encoder.encode_documents)


def _write(out: Path, rows: Sequence[Row], num_negatives: int) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
        with RowWriter(Path(folder), num_negatives) as writer:
            writer.write(to_table(rows, num_negatives))
        (Path(folder) / ROWS_FILE).replace(out)
