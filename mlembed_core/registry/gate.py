"""The gate before the alias ``champion``: a version passes it, or is told every reason why not.

``mlembed promote`` and Dagster's job ask the same: is the version whole, has no check failed of it or of the data behind it, is it
better than the champion, is it nowhere worse by more than is allowed, and does it come out of an export as the same model? What the gate
stands on is registered with the version, so it judges alike in every clone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mlembed_core.artifacts import CONTROLS, Workspace, manifest_hash, verify_files
from mlembed_core.config.base import Name, Section
from mlembed_core.config.evaluate import SubmodelParams, Suites
from mlembed_core.config.gate import GateParams
from mlembed_core.config.grid import Shape
from mlembed_core.errors import ArtifactError, EvaluationError, MlembedError, RegistryError, SubmodelError
from mlembed_core.predicates import PREDICATES
from mlembed_core.registry.client import AXES_TAG, WEIGHTS_HASH_TAG, Registry
from mlembed_core.registry.compare import Finding, compare
from mlembed_core.registry.lineage import Place, walk
from mlembed_core.registry.prove import Prover
from mlembed_core.registry.resolve import resolve
from mlembed_core.registry.tables import FOLDER, Scored, fetch_tables, read_scored
from mlembed_core.train.tracking import GIT_COMMIT_TAG, OUTPUT_HASH_TAG, SETTING_TAG

EXPORT_TAG = "mlembed.export_verified"  # on a version: the fingerprint of an export that gave its vectors
T = TypeVar("T")
REFUSALS = (ArtifactError, RegistryError, SubmodelError, EvaluationError)


class Config(Section):
    """The sections of the parameters that the gate reads."""

    name: Name
    suites: Suites
    gate: GateParams = GateParams()

    @property
    def gate_suites(self) -> list[str]:
        return list(self.gate.suites or [name for name, suite in self.suites.items() if suite.query_scores])


class PromotionRefusedError(MlembedError):
    """A version that did not pass the gate."""

    exit_code = 11


@dataclass(frozen=True)
class Judgement:
    """What the gate found of a version.

    Attributes:
        champion: that it was compared with; None where there is none, and the controls stood in.
    """

    name: str
    version: str
    setting: str
    champion: str | None
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        findings = [finding.as_dict() for finding in self.findings]
        head = {"name": self.name, "version": self.version, "setting": self.setting, "champion": self.champion}
        return {**head, "passed": self.passed, "findings": findings}

    @property
    def figures(self) -> dict[str, Any]:
        """What the record of a move keeps; the lists in it are of the few that matter."""
        return {finding.name: finding.figures for finding in self.findings if finding.figures}

    @property
    def summary(self) -> str:
        lines = [f"{'passed ' if finding.passed else 'REFUSED'}  {finding.name}: {finding.says}" for finding in self.findings]
        return "\n".join(lines)

    def require(self) -> None:
        """Raises PromotionRefusedError, with each reason."""
        reasons = [f"  {finding.name}: {finding.says}" for finding in self.findings if not finding.passed]
        if reasons:
            against = f"the champion, version {self.champion}" if self.champion else "the controls (there is no champion yet)"
            raise PromotionRefusedError(
                f"{self.name} version {self.version} ({self.setting}) was not promoted. Against {against}, "
                f"{len(reasons)} of {len(self.findings)} conditions do not hold:\n" + "\n".join(reasons)
            )


def judge(registry: Registry, workspace: Workspace, config: Config, version: Any, champion: Any | None, prover: Prover) -> Judgement:
    """Put one version through the gate.

    Args:
        version, champion: as MLflow has them; no champion: the controls of the parameters stand in.
        prover: started by the caller, so that it loads its libraries while the registry is opened.

    Raises:
        RegistryError: MLflow failed, or the version is not one of `mlembed register`; whatever else is wrong with it is a finding.
    """
    missing = [tag for tag in (SETTING_TAG, OUTPUT_HASH_TAG, WEIGHTS_HASH_TAG, AXES_TAG) if tag not in version.tags]
    if missing:
        raise RegistryError(
            f"{version.name} version {version.version} has no tag {', '.join(missing)}: it was not made by `mlembed register`, so nothing "
            "tells what it is. Register the setting."
        )
    setting = version.tags[SETTING_TAG]
    findings: list[Finding] = []
    proved = EXPORT_TAG in version.tags
    if proved:
        prover.dismiss()
    folder, not_whole = _asked("files_are_whole", lambda: _whole(version))
    if folder is not None and not proved:
        prover.take(folder)
    tables, found = _asked("scores_are_registered", lambda: _tables(registry, config, version, prover.scratch / "candidate"))
    findings += found
    if tables is not None:
        findings += _checks_of_tables(tables, config)
        findings += _compared(registry, config, version, champion, tables, prover.scratch)
    findings += not_whole
    if folder is not None:
        findings += _checks(workspace, version, folder)
        findings.append(_exported(registry, version, None if proved else prover))
    return Judgement(version.name, str(version.version), setting, None if champion is None else str(champion.version), tuple(findings))


def _asked(name: str, question: Callable[[], T]) -> tuple[T | None, list[Finding]]:
    """The answer, or the refusal that there is none."""
    try:
        return question(), []
    except REFUSALS as error:
        return None, [Finding(name, passed=False, says=str(error))]


def _tables(registry: Registry, config: Config, version: Any, target: Path) -> dict[str, Path]:
    target.mkdir()
    return fetch_tables(registry, version, config.gate_suites, target)


def _scored(config: Config, version: Any, files: dict[str, Path], cuts: Sequence[SubmodelParams]) -> Scored:
    axes = json.loads(version.tags[AXES_TAG])
    own = {suite: files[f"{FOLDER}/{suite}.parquet"] for suite in config.gate_suites}
    scored = read_scored(str(version.version), own, cuts=[cut.model_dump() for cut in cuts], shape=Shape(**axes["shape"]))
    other = [suite for suite, weights in scored.weights.items() if weights != version.tags.get(WEIGHTS_HASH_TAG)]
    if other:
        raise ArtifactError(
            f"version {version.version}: the scores of {', '.join(other)} are of other weights than the registered ones. "
            f"`dvc repro` and `mlembed register`, or `mlembed rescore {version.version}`."
        )
    return scored


def _compared(
    registry: Registry, config: Config, version: Any, champion: Any | None, files: dict[str, Path], scratch: Path
) -> list[Finding]:
    """The findings about scores: against the champion, or where there is none against each control."""

    def against_champion() -> list[Finding]:
        theirs = _scored(config, champion, _tables(registry, config, champion, scratch / "champion"), config.gate.submodels)
        return compare(_scored(config, version, files, config.gate.submodels), theirs, config.gate, name="beats_the_champion")

    def against_controls() -> list[Finding]:
        ours = _scored(config, version, files, [SubmodelParams()])  # controls have no cuts
        found: list[Finding] = []
        for control in config.gate.controls:
            of_control = {suite: _control_table(files, suite, control) for suite in config.gate_suites}
            scored = read_scored(control, of_control, cuts=[{}], setting=control)
            found += compare(ours, scored, config.gate, name=f"beats_the_control_{control}", drops=False)
        return found

    answer, refused = _asked("scores_can_be_compared", against_controls if champion is None else against_champion)
    return refused if answer is None else answer


def _control_table(files: dict[str, Path], suite: str, control: str) -> Path:
    place = f"{FOLDER}/{CONTROLS}/{suite}.parquet"
    if place not in files:
        raise RegistryError(
            f"there is no champion yet, and no scores of the control {control!r} on {suite} were registered with the version. "
            f"`dvc repro control@{suite}`, then `mlembed register` again."
        )
    return files[place]


def _whole(version: Any) -> Path:
    """The version's folder here, every file as its manifest says, and that manifest the registered one."""
    folder = resolve(f"models:/{version.name}/{version.version}")
    verify_files(folder)  # it was downloaded some time ago
    if manifest_hash(folder) != version.tags.get(OUTPUT_HASH_TAG):
        raise RegistryError(
            f"version {version.version} holds another model than its tag {OUTPUT_HASH_TAG} names; somebody wrote to its artifacts. "
            "`mlembed register SETTING` makes a version of what is on disk."
        )
    return folder


def _checks(workspace: Workspace, version: Any, folder: Path) -> list[Finding]:
    """The predicates that Dagster shows as checks: of the model, and of the data it was made from where these lie here."""
    failed, asked, elsewhere = [], 0, []
    for out in walk(
        workspace, f"train@{version.tags[SETTING_TAG]}", version.tags[OUTPUT_HASH_TAG], commit=version.tags.get(GIT_COMMIT_TAG)
    ):
        stage = out.item.split("@")[0]
        place = folder if stage == "train" else workspace.root / out.path
        if stage != "train" and out.place is not Place.DISK:
            elsewhere += [out.item] if stage in PREDICATES else []
            continue
        for predicate in PREDICATES.get(stage, ()):
            asked += 1
            verdict = predicate.ask(place)
            if not verdict.passed:
                failed.append(f"{out.item}: {predicate.name} ({json.dumps(dict(verdict.figures), default=str)})")
    says = f"{asked} asked" + (f"; of other data than those on this disk, not asked: {', '.join(elsewhere)}" if elsewhere else "")
    if failed:
        says = f"{len(failed)} of {asked} failed: {'; '.join(failed)}"
    return [Finding("no_check_failed", not failed, says, {"asked": asked, "failed": failed, "not_asked": elsewhere})]


def _checks_of_tables(files: dict[str, Path], config: Config) -> list[Finding]:
    failed = []
    for suite in config.gate_suites:
        for predicate in PREDICATES["evaluate"]:
            answer, refused = _asked(predicate.name, lambda: predicate.ask(files[f"{FOLDER}/{suite}.parquet"]))  # noqa: B023  # asked at once
            failed += [finding.says for finding in refused]
            if answer is not None and not answer.passed:
                failed.append(f"{suite}: {predicate.name} ({dict(answer.figures)})")
    return [Finding("scores_are_finite", not failed, "; ".join(failed) or f"of {len(config.gate_suites)} suites")]


def _exported(registry: Registry, version: Any, prover: Prover | None) -> Finding:
    """Whether the version comes out of an export as the same model; once proved, the version carries the proof."""
    name = "export_is_verified"
    if prover is None:
        fingerprint = version.tags[EXPORT_TAG]
        return Finding(name, passed=True, says=f"proved before, fingerprint {fingerprint[:12]}", figures={"fingerprint": fingerprint})
    proof, refused = _asked(name, prover.answer)
    if proof is None:
        return refused[0]
    registry.client.set_model_version_tag(version.name, version.version, EXPORT_TAG, proof["fingerprint"])
    return Finding(
        name, passed=True, says=f"a fresh process reads its vectors from the exported files to {proof['difference']:.1e}", figures=proof
    )
