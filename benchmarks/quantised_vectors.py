"""What int8 and binary vectors cost in quality: nDCG@10 over the test rows of a workspace's retrieval sources.

    python -m benchmarks.quantised_vectors --model models/3d --dims 256 128 64

Each query has one right passage among those of its source's test rows. It prints and never asserts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from mlembed_core.artifacts import Workspace
from mlembed_core.export.kinds import VectorType
from mlembed_core.registry.load import load
from mlembed_core.registry.quantise import QuantisedVectors, quantise

SOURCES = ("python_docstring_to_code", "python_summary_to_body", "cpp_comment_to_declaration", "cldr_bitext")
MAX_QUERIES = 500
BITS = {VectorType.FLOAT32: 32, VectorType.INT8: 8, VectorType.BINARY: 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/3d")
    parser.add_argument("--workspace", type=Path, default=Path())
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 64])
    options = parser.parse_args()
    encoder = load(options.model)
    full = {}
    for name in SOURCES:
        queries, passages, answers = _test_rows(Workspace.find(options.workspace), name)
        full[name] = (encoder.encode_queries(queries), encoder.encode_documents(passages), answers)
    print(f"| dim | vectors | bytes | {' | '.join(SOURCES)} | average |")
    print("|---|---|---|" + "---|" * (len(SOURCES) + 1))
    for dim in options.dims:
        for kind in VectorType:
            scores = [_ndcg(_cut(queries, dim), _cut(passages, dim), answers, kind) for queries, passages, answers in full.values()]
            cells = " | ".join(f"{score:.3f}" for score in [*scores, float(np.mean(scores))])
            print(f"| {dim} | {kind} | {dim * BITS[kind] // 8} | {cells} |")


def _test_rows(workspace: Workspace, name: str) -> tuple[list[str], list[str], list[int]]:
    """Queries, the distinct passages, and which of them answers each query."""
    table = pq.read_table(workspace.sources / name / "rows.parquet", columns=["query", "passage", "split"])
    rows = [row for row in table.to_pylist() if row["split"] == "test"]
    passages = list(dict.fromkeys(row["passage"] for row in rows))
    place = {passage: index for index, passage in enumerate(passages)}
    kept = rows[:: max(1, len(rows) // MAX_QUERIES)]
    return [row["query"] for row in kept], passages, [place[row["passage"]] for row in kept]


def _cut(vectors: np.ndarray, dim: int) -> np.ndarray:
    cut = vectors[:, :dim]
    return cut / np.linalg.norm(cut, axis=1, keepdims=True)


def _ndcg(queries: np.ndarray, passages: np.ndarray, answers: list[int], kind: VectorType) -> float:
    stored: QuantisedVectors | None = None if kind is VectorType.FLOAT32 else quantise(passages, kind)
    gains = []
    for query, answer in zip(queries, answers, strict=True):
        rows = np.argsort(-(passages @ query), kind="stable")[:10] if stored is None else stored.search(query, 10)[0]
        found = np.flatnonzero(rows == answer)
        gains.append(1 / np.log2(found[0] + 2) if len(found) else 0.0)
    return float(np.mean(gains))


if __name__ == "__main__":
    main()
