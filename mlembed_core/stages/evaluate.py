"""Stage ``evaluate@SETTING-SUITE``: every named submodel of one setting on one suite, scored by mteb."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mlembed_core.artifacts import Workspace, read_manifest
from mlembed_core.config.base import Section, pick
from mlembed_core.config.evaluate import EvaluationParams, Suite, Suites
from mlembed_core.config.load import load
from mlembed_core.errors import ArtifactError
from mlembed_core.evaluate.process import prepare_process

if TYPE_CHECKING:
    from mlembed_core.evaluate.run import Item


class Config(Section):
    """What this stage reads of the parameters."""

    evaluation: EvaluationParams
    suites: Suites


def run(workspace: Workspace, setting: str, suite: str) -> None:
    """Write ``scores/SETTING/SUITE.parquet`` and its summary ``.json``.

    Raises:
        ConfigError: an unknown suite or benchmark.
        ArtifactError: the model or a source is missing or damaged.
        DataError: a source has no rows to ask questions from.
        SubmodelError: ``evaluation.submodels`` names a cut that this model does not have.
        EvaluationError: the model gives vectors that cannot be right.
    """
    config = load(workspace.params_file, Config)
    params = pick(config.suites, suite, path="suites")
    folder = workspace.models / setting
    if not folder.is_dir():
        trained = ", ".join(sorted(path.name for path in workspace.models.glob("*") if path.is_dir())) or "none"
        raise ArtifactError(
            f"{folder} does not exist: setting {setting!r} is not trained (trained are: {trained}). "
            f"`mlembed train {setting}` makes it if `settings` in {workspace.params_file} has it; `dvc pull` fetches it."
        )
    read_manifest(folder, made_by=f"mlembed train {setting}")
    prepare_process(workspace.work, offline=True)

    # Loaded only now: these libraries read their environment on import, and wrong names are told at once rather than after seconds.
    from mlembed_core.evaluate.run import score_item

    make = partial(load_setting, workspace, setting, suite, params, config.evaluation)
    score_item(workspace, setting, suite, params, config.evaluation.num_threads, make)


def load_setting(workspace: Workspace, setting: str, suite: str, params: Suite, evaluation: EvaluationParams) -> Item:
    """The setting's submodels and the suite's tasks, in this process or in another that helps."""
    prepare_process(workspace.work, offline=True)
    from mlembed_core.evaluate.run import Item, Job
    from mlembed_core.evaluate.scoring import resolve_submodels
    from mlembed_core.evaluate.suites import suite_tasks, uses_instructions
    from mlembed_core.model.encoder import Encoder, usual_device, weights_hash

    folder = workspace.models / setting
    tasks = suite_tasks(suite, params, sources=workspace.sources)
    encoder = Encoder.from_folder(folder, precision=evaluation.precision).to(usual_device())
    submodels = resolve_submodels(evaluation.submodels, encoder.shape, model=str(folder), axes=encoder.axes)
    job = Job(
        name=setting,
        weights=weights_hash(folder),
        submodels=tuple(submodels),
        evaluation=evaluation,
        query_scores=params.query_scores,
        instructions=uses_instructions(workspace.sources),
    )
    return Item(job.load(encoder, tasks), job.systems, job.weights, job.fingerprint)
