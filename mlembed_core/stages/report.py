"""Stage ``report``: all scores compared, as ``report.json``, pictures and one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping

from mlembed_core.artifacts import CONTROLS, Workspace, manifest_hash, read_manifest, sha256_file, write_json, write_manifest, writing
from mlembed_core.config.base import Name, Section
from mlembed_core.config.data import Sources
from mlembed_core.config.evaluate import EvaluationParams, Suites
from mlembed_core.config.load import load
from mlembed_core.config.settings import Settings
from mlembed_core.evaluate.report import page, pictures, wording
from mlembed_core.evaluate.report.certainty import compare_settings
from mlembed_core.evaluate.report.languages import by_language, by_script, shown_systems
from mlembed_core.evaluate.report.origin import Made, Origin
from mlembed_core.evaluate.report.published import published_on
from mlembed_core.evaluate.report.read import (
    Curve,
    read_answers,
    read_language_scores,
    read_loss_curve,
    read_model_facts,
    read_scores,
    read_validation_curve,
)
from mlembed_core.evaluate.report.summarise import Report, SuiteSummary, summarise_suite, summarise_training
from mlembed_core.progress import track

REPORT_FILE = "report.json"


class Config(Section):
    """What this stage reads of the parameters."""

    evaluation: EvaluationParams
    name: Name
    settings: Settings
    sources: Sources
    suites: Suites


def run(workspace: Workspace) -> None:
    """Compare every setting on every suite and write ``reports/``.

    Raises:
        ArtifactError: a score table, model or curve is missing or damaged, or tables do not fit together.
    """
    config = load(workspace.params_file, Config)
    curves = read_curves(workspace, config)
    report = compare(workspace, config, curves)
    origin = origin_of(workspace, config)
    with writing(workspace, workspace.reports) as draft:
        write_json(draft / REPORT_FILE, report.to_json())
        files = {
            "frontier.png": pictures.frontier(report.suites),
            "retention.png": pictures.retention(report.suites),
            "loss.png": pictures.losses(curves),
        }
        for name, picture in track(files.items(), description="Pictures", total=len(files), unit="files"):
            (draft / name).write_bytes(pictures.png(picture))
        (draft / "index.html").write_text(page.render(report, curves, origin), encoding="utf-8")
        write_manifest(
            draft,
            stage="report",
            params={**config.model_dump(mode="json", exclude={"sources"}), "sources": list(config.sources)},
            inputs={f"models/{setting}": workspace.models / setting for setting in config.settings},
            counts={
                "settings": len(config.settings),
                "suites": len(report.suites),
                "submodels": len(report.suites[0].submodels),
                "tasks": sum(len(suite.tasks) for suite in report.suites),
            },
            details={"scores": origin.table_hashes},
        )


def origin_of(workspace: Workspace, config: Config) -> Origin:
    """What the report is made from."""
    folders = {setting: workspace.models / setting for setting in config.settings}
    return Origin(
        sources=tuple(config.sources),
        models={setting: Made(manifest_hash(folder), read_manifest(folder).get("inputs", {})) for setting, folder in folders.items()},
        tables={
            (owner, suite): sha256_file(workspace.scores / owner / f"{suite}.parquet")
            for suite in config.suites
            for owner in (*config.settings, CONTROLS)
        },
    )


def read_curves(workspace: Workspace, config: Config) -> dict[str, tuple[Curve, Curve]]:
    """(training, validation) loss per setting."""
    return {
        setting: (
            read_loss_curve(workspace.models / setting / "loss_curve.csv"),
            read_validation_curve(workspace.models / setting / "validation_curve.csv"),
        )
        for setting in config.settings
    }


def compare(workspace: Workspace, config: Config, curves: Mapping[str, tuple[Curve, Curve]]) -> Report:
    """All numbers of the report."""
    suites = [_suite(workspace, config, suite) for suite in config.suites]
    return Report(name=config.name, suites=suites, training=summarise_training(curves))


def _suite(workspace: Workspace, config: Config, suite: str) -> SuiteSummary:
    made_by = {setting: f"mlembed evaluate {setting} {suite}" for setting in config.settings} | {CONTROLS: f"mlembed control {suite}"}
    origin = {name: workspace.scores / name / f"{suite}.parquet" for name in made_by}
    found = summarise_suite(
        suite,
        config.suites,
        config.evaluation,
        models={setting: read_model_facts(workspace.models / setting) for setting in config.settings},
        scores={
            setting: read_scores(origin[setting], suite=suite, setting=setting, made_by=made_by[setting]) for setting in config.settings
        },
        controls=read_scores(origin[CONTROLS], suite=suite, made_by=made_by[CONTROLS]),
        origin=origin,
    )
    answers = {key: value for name, path in origin.items() for key, value in read_answers(path, made_by=made_by[name]).items()}
    spoken = {key: value for name, path in origin.items() for key, value in read_language_scores(path, made_by=made_by[name]).items()}
    systems = shown_systems(found, wording.KEPT_SHARE)
    return found.model_copy(
        update={
            "comparisons": compare_settings(found, answers),
            "languages": by_language(systems, spoken),
            "scripts": by_script(systems, spoken),
            "published": published_on(found),
        }
    )
