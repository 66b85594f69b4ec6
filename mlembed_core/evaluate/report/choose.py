"""Which submodel to ship: the answer of the report to limits on size and quality, with the command that takes it out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mlembed_core.errors import SubmodelError
from mlembed_core.evaluate.report.summarise import Report, SubmodelSummary, SuiteSummary, best_submodel, good_enough, smallest

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What may be asked of a submodel; None asks nothing.

    Attributes:
        max_mb: weights on disk in fp32, cut physically, in 10⁶ bytes.
        max_vector_bytes: of one vector in float32.
        min_score: share of the best average on the suite, from 0 to 1.
        setting: only submodels of this one.
    """

    max_mb: float | None = None
    max_vector_bytes: int | None = None
    min_score: float | None = None
    setting: str | None = None


@dataclass(frozen=True)
class Choice:
    """A submodel, its score as a share of the suite's best, and how to take it out."""

    suite: str
    submodel: SubmodelSummary
    share: float
    command: str

    def as_dict(self) -> dict[str, Any]:
        return {"suite": self.suite, "share_of_best": self.share, "command": self.command, **self.submodel.model_dump(mode="json")}

    @property
    def summary(self) -> str:
        found = self.submodel
        return (
            f"{found.setting} {found.name}: {found.average:.3f} on {self.suite} ({self.share:.0%} of the best), "
            f"{found.bytes / MEGABYTE:.3g} MB of weights in fp32, {found.bytes_per_vector} B per vector\n{self.command}"
        )


def choose(report: Report, limits: Limits, *, suite: str | None = None) -> Choice:
    """The smallest submodel that is good enough, or without ``min_score`` the best that is small enough.

    Args:
        suite: None where the report has only one.

    Raises:
        SubmodelError: no such suite or setting, or nothing scored is within the limits; the message says what comes nearest.
    """
    scored = _suite(report, suite)
    best = best_submodel(scored).average
    members = [item for item in scored.submodels if limits.setting in (None, item.setting)]
    if not members:
        known = ", ".join(setting.name for setting in scored.settings)
        raise SubmodelError(f"the report has no setting {limits.setting!r} on {scored.name}; it has {known}")
    good = members if limits.min_score is None else good_enough(scored, members, limits.min_score)
    small = [item for item in members if _small_enough(item, limits)]
    both = [item for item in small if item in good]
    if not both:
        raise SubmodelError(_nearest(small, good, members, best=best))
    found = _best(both) if limits.min_score is None else smallest(both)
    return Choice(scored.name, found, found.average / best if best else 1.0, _command(scored, found))


def _suite(report: Report, name: str | None) -> SuiteSummary:
    names = [suite.name for suite in report.suites]
    if name is None and len(names) == 1:
        return report.suites[0]
    for suite in report.suites:
        if suite.name == name:
            return suite
    asked = "the report has several suites" if name is None else f"the report has no suite {name!r}"
    raise SubmodelError(f"{asked}; give --suite with one of: {', '.join(names)}")


def _best(items: list[SubmodelSummary]) -> SubmodelSummary:
    return min(items, key=lambda item: (-item.average, item.bytes, item.bytes_per_vector))


def _small_enough(item: SubmodelSummary, limits: Limits) -> bool:
    return (limits.max_mb is None or item.bytes <= limits.max_mb * MEGABYTE) and (
        limits.max_vector_bytes is None or item.bytes_per_vector <= limits.max_vector_bytes
    )


def _nearest(small: list[SubmodelSummary], good: list[SubmodelSummary], members: list[SubmodelSummary], *, best: float) -> str:
    """Why nothing is within the limits, and which limit to move how far."""

    def told(item: SubmodelSummary) -> str:
        share = item.average / best if best else 1.0
        size = f"{item.bytes / MEGABYTE:.3g} MB, {item.bytes_per_vector} B per vector"
        return f"{item.setting} {item.name} ({size}, {share:.1%} of the best)"

    hints = []
    if small:
        hints.append(f"the best of this size is {told(max(small, key=lambda item: item.average))}")
    else:
        hints.append(f"the smallest scored is {told(smallest(members))}")
    if good:
        hints.append(f"the smallest that is good enough is {told(smallest(good))}")
    else:
        hints.append(f"the best scored is {told(max(members, key=lambda item: item.average))}")
    return f"no scored submodel is within these limits: {'; '.join(hints)}. Move a limit, or score more cuts (`evaluation.submodels`)."


def _command(suite: SuiteSummary, found: SubmodelSummary) -> str:
    hidden = next(setting.shape.dim for setting in suite.settings if setting.name == found.setting)
    # A table of lower rank is small only while it stays factorised; the sizes in the report count it so.
    form = " --format factorised" if found.rank < hidden else ""
    return f"mlembed export models/{found.setting} --layers {found.layers} --dim {found.dim} --rank {found.rank}{form}"
