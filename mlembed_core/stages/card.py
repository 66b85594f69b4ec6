"""Stage ``card``: what the training data are, as ``card.json``, a picture and one self-contained page."""

from __future__ import annotations

from pathlib import Path

from mlembed_core.artifacts import Workspace, manifest_hash, read_manifest, write_json, write_manifest, writing
from mlembed_core.config.base import Section
from mlembed_core.config.data import Sources
from mlembed_core.config.load import load
from mlembed_core.data.card import DataCard, describe, page, picture, source_facts
from mlembed_core.data.rows import ROWS_FILE
from mlembed_core.data.store import TrainingCache
from mlembed_core.errors import ArtifactError, MachineError
from mlembed_core.progress import track


class Config(Section):
    """What this stage reads of the parameters."""

    sources: Sources


def run(workspace: Workspace) -> None:
    """Write ``data/card/``.

    Raises:
        ArtifactError: a source, a corpus or the cache is missing or damaged, or they are not of each other.
        MachineError: a package for the picture or the page is missing.
    """
    sources = load(workspace.params_file, Config).sources
    made_of = read_manifest(workspace.cache, made_by="mlembed cache")["inputs"]
    cache = TrainingCache.open(workspace.cache)
    lengths = {source.name: source for source in cache.sources}
    facts = []
    try:
        for name, params in track(sorted(sources.items()), description="data card", total=len(sources), unit="sources"):
            if made_of.get(f"tokenize@{name}") != manifest_hash(workspace.corpora / name):
                raise ArtifactError(
                    f"{workspace.cache} is not made of {workspace.corpora / name} as it is now. Run `dvc repro cache` first."
                )
            facts.append(
                source_facts(
                    name,
                    kind=str(params.kind),
                    rows_file=workspace.sources / name / ROWS_FILE,
                    source=read_manifest(workspace.sources / name, made_by=f"mlembed source {name}"),
                    corpus=read_manifest(workspace.corpora / name, made_by=f"mlembed tokenize {name}"),
                    cached=lengths[name],
                    cache=cache,
                )
            )
        card = describe(facts)
        png = picture(card)
        with writing(workspace, workspace.card) as draft:
            write_json(draft / "card.json", card.as_dict())
            (draft / "card.png").write_bytes(png)
            (draft / "index.html").write_text(page(card, png), encoding="utf-8")
            _close(workspace, draft, card)
    except ModuleNotFoundError as error:
        raise MachineError(
            f"the data card needs the package {error.name!r}. Install it: pip install -c constraints.txt '.[evaluate]'"
        ) from None


def _close(workspace: Workspace, draft: Path, card: DataCard) -> None:
    write_manifest(
        draft,
        stage="card",
        params={},
        inputs={"cache": workspace.cache, **{f"source@{facts.name}": workspace.sources / facts.name for facts in card.sources}},
        counts={
            "sources": len(card.sources),
            "rows": card.rows,
            "documents": card.documents,
            "tokens": card.tokens,
            "languages": len(card.languages),
            "scripts": len(card.scripts),
            "dropped": sum(count for name, count in card.dropped.items() if name.startswith("dropped_")),
        },
    )
