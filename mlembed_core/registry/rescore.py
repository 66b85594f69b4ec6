"""``mlembed rescore``: scores of a registered version on today's suites, where those that it was registered with are of other data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import Workspace
from mlembed_core.config.evaluate import SubmodelParams
from mlembed_core.config.load import load
from mlembed_core.registry.client import open_registry
from mlembed_core.registry.evaluate import evaluate_model
from mlembed_core.registry.gate import Config
from mlembed_core.registry.tables import FOLDER, upload_tables
from mlembed_core.registry.versions import find_version


@dataclass(frozen=True)
class Rescored:
    """What came of it: suite → submodel → average."""

    name: str
    version: str
    scores: dict[str, dict[str, dict[str, float]]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def summary(self) -> str:
        lines = [f"{self.name} version {self.version} was scored again"]
        for suite, of_suite in self.scores.items():
            lines += [f"{suite}: {submodel} {values.get('average', float('nan')):.4f}" for submodel, values in of_suite.items()]
        return "\n".join(lines)


def rescore(workspace: Workspace, ref: str = "champion") -> Rescored:
    """Score a version's submodels on the gate's suites, and keep the tables with it in place of the older ones.

    Raises:
        RegistryError: no such version.
        MlembedError: as ``mlembed evaluate``.
    """
    config = load(workspace.params_file, Config)
    with open_registry(workspace) as registry:
        version = find_version(registry, config.name, ref)
        number = str(version.version)
        found, tables = {}, {}
        for suite in config.gate_suites:
            target = workspace.work / "rescored" / f"{config.name}-{number}" / suite
            done = evaluate_model(f"models:/{config.name}/{number}", suite, cut=SubmodelParams(), grid=True, out=target)
            found[suite] = done.scores
            tables[f"{FOLDER}/{suite}.parquet"] = _named(done.folder, suite)
        upload_tables(registry.client, registry.client.get_run(version.run_id), tables)
    return Rescored(config.name, number, found)


def _named(folder: Path, suite: str) -> Path:
    """The table under the name that it has among the artifacts."""
    path = folder / f"{suite}.parquet"
    path.write_bytes((folder / "scores.parquet").read_bytes())
    return path
