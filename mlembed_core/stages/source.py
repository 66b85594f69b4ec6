"""Stage ``source@NAME``: one source's rows, from its origin to checked parquet with a split column.

The out, ``data/sources/NAME``, holds ``rows.parquet`` (see :mod:`mlembed_core.data.rows`) and a manifest with counts, languages, and
where the text comes from under which licence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import Workspace, sha256_file, write_manifest, writing
from mlembed_core.config.base import Section, pick
from mlembed_core.config.checks import Check, Policy, RowChecks
from mlembed_core.config.data import EmbeddedOrigin, HubOrigin, Kind, LocalOrigin, SourceParams, Sources
from mlembed_core.config.load import load
from mlembed_core.data.checks import RowFilter
from mlembed_core.data.rows import RowWriter, to_table
from mlembed_core.data.sources.files import SourceFiles, find_local
from mlembed_core.data.sources.hub import Copy, find_hub
from mlembed_core.errors import DataError, MachineError

# A builder is our own code: a row that it should not have made is a fault of ours and stops here.
OF_BUILDERS = RowChecks(**{check.value: Policy.ERROR for check in Check if check is not Check.TOO_FEW_NEGATIVES})


class Config(Section):
    """The sections that this stage reads."""

    sources: Sources


def run(workspace: Workspace, name: str) -> None:
    """Build the source ``name`` and write ``data/sources/NAME``.

    Raises:
        ConfigError: there is no such source, builder, or dataset.
        DataError: a file is damaged or not of the recipe's form, or no row is left.
        MachineError: a package that embedded text comes from is missing, files are not here and cannot be fetched, or the disk is full.
    """
    params = pick(load(workspace.params_file, Config).sources, name, path="sources")
    with writing(workspace, workspace.sources / name) as draft:
        match params.origin:
            case EmbeddedOrigin():
                counts, details = _embedded(name, params, params.origin, draft)
            case LocalOrigin():
                files = find_local(
                    name,
                    params.origin.patterns,
                    root=workspace.root,
                    num_negatives=params.num_negatives,
                    languages=params.languages,
                )
                counts, details = _from_files(files, params, params.origin, draft)
            case HubOrigin():
                copy = find_hub(name, params.origin, languages=params.languages)
                files = SourceFiles.checked(name, copy.files, num_negatives=params.num_negatives)
                counts, details = _from_files(files, params, params.origin, draft, copy)
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


def prefetch(workspace: Workspace, *, mirror: Path | None = None, only_list: bool = False) -> Iterator[tuple[str, str, bool]]:
    """Fetch what the sources read from the hub and this machine lacks.

    Args:
        mirror: the folder to fetch into, and the only one to look into; None: the machine's.
        only_list: say what is where, fetch nothing.

    Yields:
        name of a source, its folder (``missing`` where it is only asked), and whether something was fetched.

    Raises:
        MachineError: some could not be fetched; one message tells of them all, the others are there.
    """
    places = None if mirror is None else [mirror.absolute()]
    failed: dict[str, str] = {}
    for name, params in load(workspace.params_file, Config).sources.items():
        if isinstance(params.origin, HubOrigin):
            try:
                copy = find_hub(name, params.origin, places=places, fetch=not only_list)
                yield name, str(copy.folder), copy.fetched
            except MachineError as error:
                if only_list:
                    yield name, "missing", False
                else:
                    failed[name] = str(error)
    if failed:
        first = next(iter(failed.values()))
        raise MachineError(f"{len(failed)} source(s) are missing still: {', '.join(failed)}. The first of them:\n{first}")


Summary = tuple[dict[str, int], dict[str, Any]]
"""(counts, details) of the manifest."""


def _embedded(name: str, params: SourceParams, origin: EmbeddedOrigin, draft: Path) -> Summary:
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
    rows = RowFilter(name, OF_BUILDERS, num_negatives=params.num_negatives)
    try:
        table = rows.filter(to_table(built.rows, params.num_negatives), where=f"the builder {origin.builder!r}")
    except DataError as error:
        raise DataError(f"{error} A builder must not make such rows: this is a bug; please report it.") from None
    with RowWriter(draft, params.num_negatives) as writer:
        writer.write(table)
    licences = sorted({part.licence for part in built.parts})
    return writer.counts() | built.dropped, {
        "languages": sorted(writer.languages),
        "licences": licences if params.licence is None else [params.licence],
        "provenance": [asdict(part) for part in built.parts],
    }


def _from_files(
    files: SourceFiles, params: SourceParams, origin: LocalOrigin | HubOrigin, draft: Path, copy: Copy | None = None
) -> Summary:
    """Rows from files of the machine or, with ``copy``, of the hub."""
    filters: list[RowFilter] = []

    def new_filter() -> RowFilter:
        filters.append(
            RowFilter(
                files.name,
                params.checks,
                num_negatives=params.num_negatives,
                labels=params.labels,
                label_column=files.label_column(params.kind is Kind.CLASSIFICATION),
                folder=draft,
            )
        )
        return filters[-1]

    with RowWriter(draft, params.num_negatives) as writer:
        per_file = origin.max_rows_per_file if isinstance(origin, HubOrigin) else None
        for table in files.chosen_tables(origin.max_rows, new_filter, max_rows_per_file=per_file):
            writer.write(table)
    licence = params.licence or (copy.licence if copy else None)
    details: dict[str, Any] = {
        "languages": sorted(writer.languages),
        "licences": [] if licence is None else [licence],
        "provenance": [{"name": file.shown, "sha256": sha256_file(file.path)} for file in files.files],
    }
    if params.declared_languages:
        details["declared_languages"] = sorted(params.declared_languages)
    if copy is not None:
        assert isinstance(origin, HubOrigin)
        details["hub"] = {"repo": origin.repo, "revision": copy.revision}
    return writer.counts() | filters[-1].counts, details
