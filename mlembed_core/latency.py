"""How fast submodels are on this machine, and the report's page with these figures in it.

A time is no function of the inputs, so it stands in no out (``measured.py``). Submodels are measured in turns, so that whatever else the
machine does hits them alike.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from mlembed_core.artifacts import Workspace
from mlembed_core.evaluate.report.summarise import SubmodelSummary
from mlembed_core.measured import chosen_submodels, keep, page_file, read_report
from mlembed_core.progress import Reporter

NUM_TEXTS = 256  # in a batch
NUM_SINGLE = 32  # of them one at a time, as a query comes
ROUNDS = 3


@dataclass(frozen=True)
class Latency:
    """Of one submodel, tokenising included.

    Attributes:
        one_ms: milliseconds for one text, the median; ``slow_ms`` what 95 % of them stay within.
        texts_per_second: in a batch, the best of the rounds: what disturbs only makes slower.
    """

    setting: str
    submodel: str
    one_ms: float
    slow_ms: float
    texts_per_second: float


@dataclass(frozen=True)
class Measured:
    """What was measured, of which report, on what, and where it is told."""

    report: str
    machine: dict[str, Any]
    rows: list[Latency]
    page: Path

    def as_dict(self) -> dict[str, Any]:
        return {"report": self.report, "machine": self.machine, "rows": [asdict(row) for row in self.rows], "page": str(self.page)}

    @property
    def summary(self) -> str:
        lines = [
            f"{row.setting} {row.submodel}: {row.one_ms:.1f} ms for one text (95 % within {row.slow_ms:.1f}), "
            f"{row.texts_per_second:,.0f} texts/s in a batch"
            for row in self.rows
        ]
        told = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        return "\n".join([*lines, told, f"the report with these figures: {self.page}"])


def measure(workspace: Workspace, *, every: bool = False, num_threads: int = 1) -> Measured:
    """Time the report's submodels on passages of the sources.

    Args:
        every: all of them; else those that are uncut or on a Pareto line.

    Raises:
        ArtifactError: there is no report, a model of it, or no source.
    """
    import torch

    from mlembed_core.registry.search import corpus_of_sources

    report, digest = read_report(workspace)
    chosen = chosen_submodels(report, every=every)
    texts = corpus_of_sources(workspace).texts
    texts = texts[:: max(1, len(texts) // NUM_TEXTS)][:NUM_TEXTS]
    torch.set_num_threads(num_threads)
    rows = _time(workspace, chosen, texts)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": num_threads,
        "texts": len(texts),
        "torch": torch.__version__,
    }
    done = Measured(digest, machine, rows, page_file(workspace))
    keep(workspace, "latency", done.as_dict())
    return done


def _time(workspace: Workspace, chosen: Sequence[SubmodelSummary], texts: Sequence[str]) -> list[Latency]:
    from mlembed_core.model.encoder import Encoder, usual_device

    encoders = [
        Encoder.from_folder(workspace.models / item.setting, layers=item.layers, dim=item.dim, rank=item.rank).to(usual_device())
        for item in chosen
    ]
    single: list[list[float]] = [[] for _ in chosen]
    batch: list[list[float]] = [[] for _ in chosen]
    with Reporter("Latency", len(chosen) * ROUNDS, "submodels") as progress:
        for encoder in encoders:
            encoder.encode_documents(texts[:NUM_SINGLE])  # factors of a dense table, caches
        for _ in range(ROUNDS):
            for index, encoder in enumerate(encoders):
                single[index] += [_seconds(encoder, [text]) for text in texts[:NUM_SINGLE]]
                batch[index].append(_seconds(encoder, texts))
                progress.advance(note=f"{chosen[index].setting} {chosen[index].name}")
    return [
        Latency(item.setting, item.name, 1e3 * median(ones), 1e3 * float(np.quantile(ones, 0.95)), len(texts) / min(all_at_once))
        for item, ones, all_at_once in zip(chosen, single, batch, strict=True)
    ]


def _seconds(encoder: Any, texts: Sequence[str]) -> float:
    started = time.perf_counter()
    encoder.encode_documents(texts)  # its vectors are numpy's: a GPU is through when they are here
    return time.perf_counter() - started
