"""Stage ``control@SUITE``: what the settings' scores stand beside: the untrained model, word and character TF-IDF, BM25."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mlembed_core.artifacts import CONTROLS, Workspace, manifest_hash, read_manifest
from mlembed_core.config.base import Section, pick
from mlembed_core.config.evaluate import EvaluationParams, LocalSuite, Suite, Suites
from mlembed_core.config.load import load
from mlembed_core.evaluate.process import prepare_process

if TYPE_CHECKING:
    from mlembed_core.evaluate.run import Item

UNTRAINED = "untrained"


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
    from mlembed_core.evaluate.run import score_item

    make = partial(load_controls, workspace, suite, params, config.evaluation)
    score_item(workspace, CONTROLS, suite, params, config.evaluation.num_threads, make)


def load_controls(workspace: Workspace, suite: str, params: Suite, evaluation: EvaluationParams) -> Item:
    """The controls and the suite's tasks, in this process or in another that helps."""
    prepare_process(workspace.work, offline=True)
    from mlembed_core.data.tokenize import load_tokenizer
    from mlembed_core.evaluate.controls import TokenBudget, lexical_contestants, train_texts
    from mlembed_core.evaluate.run import Item, Job, named
    from mlembed_core.evaluate.scoring import Loaded
    from mlembed_core.evaluate.state import fingerprint
    from mlembed_core.evaluate.suites import suite_tasks, uses_instructions
    from mlembed_core.model.encoder import Encoder, usual_device, weights_hash

    tasks = suite_tasks(suite, params, sources=workspace.sources)
    encoder = Encoder.from_folder(workspace.backbone, precision=evaluation.precision).to(usual_device())
    job = Job(
        name=UNTRAINED,
        weights=weights_hash(workspace.backbone),
        submodels=(encoder.shape.full,),  # the whole model: what training added to the cuts is the report's comparison of settings
        evaluation=evaluation,
        query_scores=params.query_scores,
        instructions=uses_instructions(workspace.sources),
    )
    untrained = job.load(encoder, tasks)
    contestants = list(untrained.contestants)
    read = {"tokenizer": manifest_hash(workspace.tokenizer)}  # what shapes the lexical controls' scores
    if isinstance(params, LocalSuite):
        budget = TokenBudget(load_tokenizer(workspace.tokenizer), encoder.max_length)
        sources = [workspace.sources / name for name in sorted({task.source for task in params.tasks.values()})]
        contestants += lexical_contestants(budget, train_texts(sources))
        read |= {source.name: manifest_hash(source) for source in sources}
    return Item(
        Loaded(tasks, contestants, untrained.after_task), named(contestants), job.weights, fingerprint(controls=job.fingerprint, read=read)
    )
