"""Stage ``control@SUITE``: what the settings' scores stand beside: the untrained model, word and character TF-IDF, BM25."""

from __future__ import annotations

from mlembed_core.artifacts import Workspace, read_manifest, writing
from mlembed_core.config.base import Section, pick
from mlembed_core.config.evaluate import EvaluationParams, LocalSuite, Suites
from mlembed_core.config.load import load
from mlembed_core.evaluate.process import prepare_process

UNTRAINED = "untrained"
CONTROLS = "controls"  # the folder beside those of the settings


class Config(Section):
    """What this stage reads of the parameters."""

    evaluation: EvaluationParams
    suites: Suites


def run(workspace: Workspace, suite: str) -> None:
    """Write ``scores/controls/SUITE.parquet`` and its summary ``.json``.

    The lexical controls belong to local suites: their document frequencies come from the train split of the suite's sources, which
    a benchmark of mteb does not have.

    Raises:
        ConfigError: an unknown suite or benchmark.
        ArtifactError: the backbone, the tokenizer or a source is missing or damaged.
        DataError: a source has no rows to ask questions from.
        EvaluationError: the backbone gives vectors that cannot be right.
    """
    config = load(workspace.params_file, Config)
    params = pick(config.suites, suite, path="suites")
    read_manifest(workspace.backbone, made_by="mlembed backbone")
    read_manifest(workspace.tokenizer, made_by="mlembed tokenizer")
    prepare_process(workspace.work, offline=True)

    # Loaded only now, as in stage `evaluate`.
    from mlembed_core.data.tokenize import load_tokenizer
    from mlembed_core.evaluate.controls import TokenBudget, lexical_contestants, train_texts
    from mlembed_core.evaluate.encoder import StateStore
    from mlembed_core.evaluate.scoring import score_suite, submodel_contestants, summary, write_summary, write_table
    from mlembed_core.evaluate.suites import suite_tasks, uses_instructions
    from mlembed_core.model.encoder import Encoder, weights_hash

    tasks = suite_tasks(suite, params, sources=workspace.sources)
    encoder = Encoder.from_folder(workspace.backbone, precision=config.evaluation.precision)
    submodels = [encoder.shape.full]  # the whole model: what training added to the cuts is the report's comparison of settings
    store = StateStore(encoder, submodels, batch_tokens=config.evaluation.batch_tokens)
    revision = weights_hash(workspace.backbone)
    contestants = submodel_contestants(
        encoder, store, submodels, setting=UNTRAINED, revision=revision, instructions=uses_instructions(workspace.sources)
    )
    if isinstance(params, LocalSuite):
        budget = TokenBudget(load_tokenizer(workspace.tokenizer), encoder.max_length)
        sources = [workspace.sources / name for name in sorted({task.source for task in params.tasks.values()})]
        contestants += lexical_contestants(budget, train_texts(sources))
    scores = score_suite(
        suite,
        tasks,
        contestants,
        num_threads=config.evaluation.num_threads,
        after_task=store.clear,
        query_scores=params.query_scores,
    )
    table, digest = (workspace.scores / CONTROLS / f"{suite}{suffix}" for suffix in (".parquet", ".json"))
    names = {
        item.setting if item.submodel is None else f"{UNTRAINED} {item.submodel.name}": (item.setting, item.submodel)
        for item in contestants
    }
    with writing(workspace, table) as table_draft, writing(workspace, digest) as digest_draft:
        write_table(table_draft, scores, tasks, facts={"weights": revision})
        write_summary(digest_draft, summary(scores.rows, names))
