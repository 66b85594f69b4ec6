"""Stage ``evaluate@SETTING-SUITE``: every named submodel of one setting on one suite, scored by mteb."""

from __future__ import annotations

from mlembed_core.artifacts import Workspace, read_manifest, writing
from mlembed_core.config.base import Section, pick
from mlembed_core.config.evaluate import EvaluationParams, Suites
from mlembed_core.config.load import load
from mlembed_core.errors import ArtifactError
from mlembed_core.evaluate.process import prepare_process


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
    from mlembed_core.evaluate.run import Job, evaluate
    from mlembed_core.evaluate.scoring import resolve_submodels, summary, write_summary, write_table
    from mlembed_core.evaluate.state import State
    from mlembed_core.evaluate.suites import suite_tasks, uses_instructions
    from mlembed_core.model.encoder import Encoder, weights_hash

    tasks = suite_tasks(suite, params, sources=workspace.sources)
    encoder = Encoder.from_folder(folder, precision=config.evaluation.precision)
    submodels = resolve_submodels(config.evaluation.submodels, encoder.shape, model=str(folder), axes=encoder.axes)
    job = Job(
        name=setting,
        weights=weights_hash(folder),
        submodels=tuple(submodels),
        evaluation=config.evaluation,
        query_scores=params.query_scores,
        instructions=uses_instructions(workspace.sources),
    )
    state = State(workspace.evaluations, job.fingerprint)
    scores = evaluate(job, encoder, suite, tasks, state)
    table, digest = (workspace.scores / setting / f"{suite}{suffix}" for suffix in (".parquet", ".json"))
    with writing(workspace, table) as table_draft, writing(workspace, digest) as digest_draft:
        write_table(table_draft, scores, tasks, facts={"weights": job.weights})
        write_summary(digest_draft, summary(scores.rows, {submodel.name: (setting, submodel) for submodel in submodels}))
    state.forget(tasks)
