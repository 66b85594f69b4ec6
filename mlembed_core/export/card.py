"""The model card of an export, from what is known and nothing else, and the way to the hub.

Scores stand in it only where they are of this very submodel of these very weights; data and licences come from the manifests of the
sources, and what is not recorded is said to be not recorded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from mlembed_core.artifacts import MANIFEST, Workspace, manifest_hash, read_json, read_manifest
from mlembed_core.config.grid import Submodel
from mlembed_core.errors import ArtifactError, MachineError
from mlembed_core.export.golden import read_golden
from mlembed_core.export.kinds import Format
from mlembed_core.export.verify import VerificationError, changed_files
from mlembed_core.model.checkpoint import read_facts
from mlembed_core.model.encoder import weights_hash
from mlembed_core.predicates import training_rows

TEMPLATE = Path(__file__).with_name("card.md.jinja")
AXES = {"dims": "mrl_dims", "layers": "mll_layers", "ranks": "mel_ranks"}


@dataclass(frozen=True)
class Upload:
    """What goes to the hub, or would."""

    repo: str
    files: dict[str, int]
    card: str
    url: str | None


def write_card(folder: Path, *, repo: str, licence: str | None = None, workspace: Workspace | None = None) -> str:
    """The card of the export in ``folder``, as Markdown with the hub's metadata in front.

    Args:
        repo: what the model is called on the hub (``owner/name``).
        licence: an identifier of the hub's list; None leaves it out, since the data and the backbone decide it.
        workspace: where the model was trained, for its scores and its data.

    Raises:
        ArtifactError: the folder is no export.
    """
    _, facts = read_golden(folder)
    checkpoint = read_facts(folder)
    submodel = Submodel(**facts["submodel"])
    trained = _trained_here(workspace, checkpoint.get("setting"), facts["source"]["weights"])
    scores = list(_scores(trained, submodel)) if trained else []
    sources = list(_sources(trained)) if trained else []
    data = ModelCardData(
        model_name=repo.rpartition("/")[2],
        language=sorted({language for source in sources for language in source.pop("codes")}) or None,
        license=licence,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "matryoshka", "mlembed"],
        eval_results=[
            EvalResult(
                task_type="feature-extraction",
                dataset_type=task,
                dataset_name=f"{suite} {task}",
                metric_type="main_score",
                metric_value=score,
            )
            for suite, task, score in scores
        ],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **{key: facts[key] for key in ("format", "dtype", "instruction", "lowest_cosine", "source")},
        title=repo.rpartition("/")[2],
        repo=repo,
        setting=checkpoint.get("setting"),
        submodel=submodel,
        table=f"rank {submodel.rank}, " + ("as two factors" if facts["format"] == Format.FACTORISED else "multiplied out"),
        weight_mib=f"{sum(path.stat().st_size for path in folder.glob('*.safetensors')) / 2**20:.2f}",
        max_length=checkpoint["max_length"],
        pooling=checkpoint["pooling"],
        axes=[(name, ", ".join(map(str, checkpoint[key]))) for name, key in AXES.items() if checkpoint.get(key)],
        scores=scores,
        sources=sources,
        fingerprint=manifest_hash(folder),
    )
    return str(card)


def push(
    folder: Path, *, repo: str, licence: str | None = None, workspace: Workspace | None = None, private: bool = True, dry_run: bool = False
) -> Upload:
    """Put an export and its card into a repository of the hub, in one commit.

    Args:
        dry_run: only say what would go there; needs no network and no token.

    Raises:
        ArtifactError: the folder is no export, or the hub refuses the name.
        VerificationError: it is not what was exported.
        MachineError: the hub cannot be reached, or does not know the token (HF_TOKEN).
    """
    changes = list(changed_files(folder))
    if changes:
        raise VerificationError(f"{folder} is not what was exported ({'; '.join(changes)}); nothing was sent. Make it again.")
    card = write_card(folder, repo=repo, licence=licence, workspace=workspace)
    names = [MANIFEST, *read_manifest(folder)["files"]]
    files = {name: (folder / name).stat().st_size for name in sorted(names)} | {"README.md": len(card.encode())}
    if dry_run:
        return Upload(repo, files, card, None)
    from huggingface_hub import CommitOperationAdd

    operations = [CommitOperationAdd(name, str(folder / name)) for name in names] + [CommitOperationAdd("README.md", card.encode())]
    try:
        api = HfApi(token=os.environ.get("HF_TOKEN"))
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.create_commit(repo, operations, commit_message=f"Export {manifest_hash(folder)[:12]}")
    except HFValidationError as error:
        raise ArtifactError(f"{repo!r} is no name of a hub repository ({error}); write owner/name") from None
    except (HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise MachineError(
            f"cannot push to {repo}: {str(error).splitlines()[0]}\nCheck the network and HF_TOKEN (it needs the right to write); "
            "nothing that was there has changed. --dry-run shows what would be sent."
        ) from error
    return Upload(repo, files, card, str(commit.commit_url))


@dataclass(frozen=True)
class _Trained:
    """The model folder in a workspace that an export comes from."""

    workspace: Workspace
    setting: str


def _trained_here(workspace: Workspace | None, setting: str | None, weights: str) -> _Trained | None:
    if workspace is None or setting is None or not (workspace.models / setting / MANIFEST).is_file():
        return None
    return _Trained(workspace, setting) if weights_hash(workspace.models / setting) == weights else None


def _scores(trained: _Trained, submodel: Submodel) -> Iterator[tuple[str, str, float]]:
    """(suite, task, score) of the submodel, the average last."""
    for path in sorted((trained.workspace.scores / trained.setting).glob("*.json")):
        tasks = dict(read_json(path).get(submodel.name, {}))
        average = tasks.pop("average", None)
        yield from ((path.stem, task, float(score)) for task, score in sorted(tasks.items()))
        if average is not None:
            yield path.stem, "average", float(average)


def _sources(trained: _Trained) -> Iterator[dict[str, Any]]:
    """Of the workspace's sources: name, rows, languages (their number, and their codes) and licence."""
    for folder in sorted(trained.workspace.sources.glob("*/")):
        manifest = read_manifest(folder)
        details = manifest["details"]
        codes = [str(code) for code in details.get("languages", [])]
        shown = ", ".join(codes) if 0 < len(codes) <= 5 else f"{len(codes)}" if codes else "not recorded"
        yield {
            "name": folder.name,
            "rows": training_rows(manifest["counts"]),
            "languages": shown,
            "codes": codes,
            "licence": details.get("licence"),
        }
