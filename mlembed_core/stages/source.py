"""Stage ``source@NAME``: one source's rows, from its origin to checked parquet with a split column.

The out, ``data/sources/NAME``, holds ``rows.parquet`` (see :mod:`mlembed_core.data.rows`) and a manifest with counts, languages, and
where the text comes from under which licence.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import Workspace, sha256_file, write_manifest, writing
from mlembed_core.config.base import Section, pick
from mlembed_core.config.data import EmbeddedOrigin, LocalOrigin, SourceParams, Sources
from mlembed_core.config.load import load
from mlembed_core.data.rows import RowWriter, clean, to_table
from mlembed_core.data.sources.local import LocalFiles
from mlembed_core.errors import DataError, MachineError


class Config(Section):
    """The sections that this stage reads."""

    sources: Sources


def run(workspace: Workspace, name: str) -> None:
    """Build the source ``name`` and write ``data/sources/NAME``.

    Raises:
        ConfigError: there is no such source or builder.
        DataError: a file is damaged or not of the recipe's form, or no row is left.
        MachineError: a package that embedded text comes from is missing, or the disk is full.
    """
    params = pick(load(workspace.params_file, Config).sources, name, path="sources")
    target = workspace.sources / name
    with writing(workspace, target) as draft:
        if isinstance(params.origin, EmbeddedOrigin):
            counts, details = _embedded(name, params, params.origin, draft)
        else:
            counts, details = _local(name, params, params.origin, draft, workspace.root)
        if not counts["rows"]:
            dropped = ", ".join(f"{reason} {count}" for reason, count in counts.items() if reason.startswith("dropped") and count)
            raise DataError(f"sources.{name} has no rows left ({dropped or 'its files are empty'}); training needs some. Mend the files.")
        write_manifest(
            draft,
            stage=f"source@{name}",
            params=params.model_dump(mode="json"),
            counts=counts,
            details={"kind": str(params.kind)} | details,
        )


Summary = tuple[dict[str, int], dict[str, Any]]
"""(counts, details) of the manifest."""


def _embedded(name: str, params: SourceParams, origin: EmbeddedOrigin, draft: Path) -> Summary:
    """Run a builder. A row that the checks would drop is a fault of the builder, not of the user: it stops here."""
    try:
        from mlembed_core.data.sources import embedded

        built = embedded.build(
            origin.builder,
            num_negatives=params.num_negatives,
            max_rows=origin.max_rows,
            path=f"sources.{name}.origin.builder: the list of builders",
        )
    except ModuleNotFoundError as error:
        raise MachineError(
            f"sources.{name} is embedded text, which needs the package {error.name!r}. "
            "Install it: pip install -c constraints.txt '.[embedded]'"
        ) from None
    cleaned = clean(to_table(built.rows, params.num_negatives))
    faults = {reason: count for reason, count in cleaned.dropped.items() if count}
    if faults:
        raise DataError(f"the builder {origin.builder!r} made rows that the recipe forbids: {faults}. This is a bug; please report it.")
    with RowWriter(draft, params.num_negatives) as writer:
        writer.write(cleaned.table)
    licences = sorted({part.licence for part in built.parts})
    return writer.counts() | built.dropped, {
        "languages": sorted(writer.languages),
        "licences": licences if params.licence is None else [params.licence],
        "provenance": [asdict(part) for part in built.parts],
    }


def _local(name: str, params: SourceParams, origin: LocalOrigin, draft: Path, root: Path) -> Summary:
    files = LocalFiles.find(name, origin.files, root=root, num_negatives=params.num_negatives)
    dropped: dict[str, int] = {}
    with RowWriter(draft, params.num_negatives) as writer:
        for table in files.chosen_tables(origin.max_rows, dropped):
            writer.write(table)
    provenance = [{"name": _shown(path, root), "sha256": sha256_file(path)} for path in files.paths]
    licences = [] if params.licence is None else [params.licence]
    return writer.counts() | dropped, {"languages": sorted(writer.languages), "licences": licences, "provenance": provenance}


def _shown(path: Path, root: Path) -> str:
    """A path as it may stand in a manifest: relative to the workspace, or the bare name of a file from elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
