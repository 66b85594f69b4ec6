"""Scores of any model on any suite, for people: a folder, a registered version or a hub repository, whoever wrote it.

No stage: what it writes lies where the person says, or under ``.work/scored`` in a folder named by model and weights. A suite is one
of the parameters, one of the catalogue (configs/suites), a benchmark of mteb by its name there, or tasks of mteb with commas between.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlembed_core.artifacts import Workspace
from mlembed_core.config.base import Section
from mlembed_core.config.evaluate import BenchmarkSuite, EvaluationParams, LocalSuite, SubmodelParams, Suite, Suites, TaskListSuite
from mlembed_core.config.load import load, load_all
from mlembed_core.errors import ArtifactError, ConfigError, MachineError
from mlembed_core.registry.resolve import cache_folder, resolve

if TYPE_CHECKING:
    from mlembed_core.evaluate.run import Job
    from mlembed_core.evaluate.scoring import Loaded

NUM_SUGGESTIONS = 3
CPUS = os.cpu_count() or 1


class Catalogue(Section):
    """A file of configs/suites."""

    suites: Suites


class Config(Section):
    """What is read of the parameters."""

    evaluation: EvaluationParams
    suites: Suites


@dataclass(frozen=True)
class Scored:
    """Where the results are, and the main scores by submodel."""

    folder: Path
    model: str
    weights: str
    suite: str
    scores: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "model": self.model, "weights": self.weights, "suite": self.suite, "scores": self.scores}


def find_suite(name: str, workspace: Workspace | None) -> tuple[str, Suite]:
    """The suite that a person means, with a name that can be a folder.

    Raises:
        ConfigError: nothing is called like that; the message names what is near it.
    """
    known = _named_suites(workspace)
    if name in known:
        return name, known[name]
    import mteb

    benchmarks = {found.name for found in mteb.get_benchmarks()}
    key = re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")[:80]
    if name in benchmarks:
        return key, BenchmarkSuite(type="mteb", benchmark=name)
    tasks = [part.strip() for part in name.split(",") if part.strip()]
    from mlembed_core.evaluate.suites import task_names

    registry = task_names()
    if tasks and all(task in registry for task in tasks):
        return key, TaskListSuite(type="mteb_tasks", tasks=tasks)
    plain = {item.casefold(): item for item in (*known, *benchmarks, *registry)}
    wrong = next((task for task in tasks if task not in registry), name) if len(tasks) > 1 else name
    close = [plain[item] for item in difflib.get_close_matches(wrong.casefold(), plain, n=NUM_SUGGESTIONS, cutoff=0.4)]
    hint = f"; near it are: {', '.join(map(repr, close))}" if close else ""
    raise ConfigError(
        f"there is no suite, benchmark or task {wrong!r}{hint}. Named suites are {', '.join(known) or 'none'} (configs/params.yaml and "
        "configs/suites); besides these, any benchmark of mteb by its name there, or tasks of mteb with commas between."
    )


def _named_suites(workspace: Workspace | None) -> dict[str, Suite]:
    if workspace is None:
        return {}
    found: dict[str, Suite] = {}
    for path in sorted((workspace.root / "configs" / "suites").glob("*.yaml")):
        found |= load_all(path, Catalogue).suites
    return found | load(workspace.params_file, Config).suites


def evaluate_model(
    ref: str,
    suite_name: str,
    *,
    cut: SubmodelParams,
    grid: bool = False,
    out: Path | None = None,
    instructions: bool | None = None,
) -> Scored:
    """Score a model and write table, summary, mteb's result files and model-card sections.

    Args:
        ref: see :func:`mlembed_core.registry.resolve.resolve`.
        cut: the submodel to score.
        grid: score all of ``evaluation.submodels`` that the model has, in place of ``cut``.
        out: the folder to write; None: one under ``.work/scored``.
        instructions: put mteb's instructions before queries; None: as the checkpoint's workspace trains, and not for models of others.

    Raises:
        ConfigError, ArtifactError, RegistryError, SubmodelError, MachineError, EvaluationError: as the stage ``evaluate``.
    """
    if out is not None:
        _check_out(out)
    workspace = _workspace()
    folder = resolve(ref).absolute()
    scratch = cache_folder()
    from mlembed_core.evaluate.process import prepare_process

    prepare_process(scratch, offline=True)
    key, suite = find_suite(suite_name, workspace)
    evaluation = (
        load(workspace.params_file, Config).evaluation
        if workspace
        else EvaluationParams(submodels=[SubmodelParams()], num_threads=os.cpu_count() or 1)
    )

    if isinstance(suite, LocalSuite) and workspace is None:
        raise ArtifactError(f"suite {suite_name} needs the sources of a workspace; run this inside a clone of the project")
    from mlembed_core.evaluate.results import write_results
    from mlembed_core.evaluate.scoring import score_suite, summary, write_summary, write_table
    from mlembed_core.evaluate.state import State

    asked = _Asked(
        folder=folder,
        suite=suite,
        suite_name=suite_name,
        key=key,
        sources=workspace.sources if workspace else None,
        evaluation=evaluation,
        cuts=tuple(evaluation.submodels) if grid else (cut,),
        grid=grid,
        instructions=instructions,
    )
    job, loaded = asked.load()
    state = State(scratch / "evaluate", job.fingerprint)
    scores = score_suite(
        key, loaded, num_threads=evaluation.num_threads, query_scores=suite.query_scores, state=state, elsewhere=asked.in_a_helper
    )
    target = out or scratch / "scored" / f"{job.name}-{job.weights[:12]}" / key
    found = summary(scores.rows, job.systems)
    with _written(target) as draft:
        write_table(draft / "scores.parquet", scores, loaded.tasks, facts={"weights": job.weights})
        write_summary(draft / "summary.json", found)
        write_results(draft / "scores.parquet", draft)
    return Scored(target, job.name, job.weights, key, found)


@dataclass(frozen=True)
class _Asked:
    """A model and a suite, resolved to what can be loaded in any process; picklable."""

    folder: Path
    suite: Suite
    suite_name: str
    key: str
    sources: Path | None
    evaluation: EvaluationParams
    cuts: tuple[SubmodelParams, ...]
    grid: bool
    instructions: bool | None

    def load(self) -> tuple[Job, Loaded]:
        """Tasks first: what they lack is told before a model is read."""
        from mlembed_core.evaluate.run import Job
        from mlembed_core.evaluate.scoring import resolve_submodels
        from mlembed_core.evaluate.suites import suite_tasks, uses_instructions
        from mlembed_core.model.checkpoint import CHECKPOINT_FACTS
        from mlembed_core.model.encoder import usual_device, weights_hash
        from mlembed_core.model.stock import open_any

        tasks = suite_tasks(self.key, self.suite, sources=self.sources or Path(), asked_as=self.suite_name)
        opened = open_any(self.folder, precision=self.evaluation.precision)
        encoder = opened.encoder.to(usual_device())
        ours = (self.folder / CHECKPOINT_FACTS).is_file()
        instructions = self.instructions
        if instructions is None:
            instructions = ours and self.sources is not None and uses_instructions(self.sources)
        cuts = [item for item in self.cuts if not self.grid or _fits(item, encoder.shape)]
        job = Job(
            name=re.sub(r"[^a-z0-9_.-]+", "_", self.folder.resolve().name.casefold()),
            weights=weights_hash(self.folder),
            submodels=tuple(resolve_submodels(cuts, encoder.shape, model=str(self.folder), axes=encoder.axes)),
            evaluation=self.evaluation,
            query_scores=self.suite.query_scores,
            instructions=instructions,
            prompts=opened.prompts or None,
        )
        return job, job.load(encoder, tasks)

    def in_a_helper(self) -> Loaded:
        """The same in another process, which has to be set up first."""
        from mlembed_core.evaluate.process import prepare_process

        prepare_process(cache_folder(), offline=True)
        return self.load()[1]


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """A fresh folder beside ``target``, moved there when the body succeeds; results that were there before give way only then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        draft.replace(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _check_out(out: Path) -> None:
    """Raises ArtifactError for a folder that holds something else than results: it would be lost."""
    if out.exists() and not (out / "scores.parquet").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} exists and holds no results of an earlier evaluation; name a new or an empty folder")


def _workspace() -> Workspace | None:
    try:
        return Workspace.find()
    except ArtifactError:
        return None


def _fits(cut: SubmodelParams, shape: Any) -> bool:
    """Whether a model of this shape has the cut; one that it lacks is told and left out."""
    fits = all(wanted is None or wanted <= getattr(shape, axis) for axis, wanted in cut.model_dump().items())
    if not fits:
        print(f"left out, for the model is smaller than that: {cut.model_dump(exclude_none=True)}", file=sys.stderr, flush=True)
    return fits


@dataclass(frozen=True)
class Fetched:
    """A dataset of a suite, and where it is now; ``found`` where nothing had to be fetched."""

    dataset: str
    place: str
    found: bool


def prefetch(suite_name: str, *, mirror: Path | None = None, only_list: bool = False) -> list[Fetched]:
    """Fetch what a suite reads from the hub and this machine lacks.

    Args:
        mirror: the folder to fetch into, and the only one to look into; None: the machine's (see ``mirror.py``).
        only_list: say what is where, fetch nothing.

    Raises:
        MachineError: some could not be fetched; one message names them all, the others are there.
    """
    from mlembed_core.evaluate.process import prepare_process

    prepare_process(cache_folder(), offline=False)
    key, suite = find_suite(suite_name, _workspace())
    if isinstance(suite, LocalSuite):
        return []
    from mlembed_core.evaluate.mirror import datasets_of
    from mlembed_core.evaluate.suites import mteb_tasks
    from mlembed_core.mirror import HubUnreachableError, fetch, mirrors
    from mlembed_core.progress import track

    places = mirrors() if mirror is None else [mirror.absolute()]
    wanted = datasets_of(mteb_tasks(key, suite))
    found, failed, unreachable = [], [], False
    for dataset in track(wanted, description=f"Datasets of {suite_name}", total=len(wanted), unit="datasets"):
        place = dataset.find(places)
        if place is not None or only_list:
            found.append(Fetched(str(dataset), str(place) if place else "missing", place is not None))
            continue
        if unreachable:
            failed.append(f"{dataset}, not tried")
            continue
        try:
            found.append(Fetched(str(dataset), str(fetch(dataset, places[0])), found=False))
        except MachineError as error:
            failed.append(str(error))
            unreachable = isinstance(error, HubUnreachableError)
    if failed:
        raise MachineError(f"{len(failed)} of {len(wanted)} datasets of {suite_name} are missing still:\n  " + "\n  ".join(failed))
    return found
