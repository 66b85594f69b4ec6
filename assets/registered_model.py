"""Asset ``registered_model``: a version in MLflow's registry, a partition per setting. An act, not a stage (docs/decisions/0001)."""

from collections.abc import Iterator, Mapping
from typing import Any

from dagster import AssetExecutionContext, MaterializeResult, MetadataValue, PipesSubprocessClient, asset

from assets.checks import MATCHES_DVC
from assets.facts import Facts, mlflow_run, mlflow_version
from assets.frontier_report import frontier_report
from assets.graph import HASH_DIGITS, LockedItem, version_of
from assets.mteb_scores import mteb_scores
from assets.partitions import SETTINGS, WORKSPACE
from assets.stages import OWNER, RETRIES, StageAsset, check_spec, result_of, run_item
from assets.trained_model import trained_model
from mlembed_core.artifacts import MANIFEST, hash_of, manifest_hash, read_json

NAME = "registered_model"
CODE_FOLDER = "mlembed_core/registry"
COMMAND = "mlembed register"


class RegisteredModel(StageAsset):
    """What ``mlembed register`` did last, by the record that it leaves in ``.work``."""

    def items(self) -> dict[str | None, str]:
        return trained_model.items()

    def recorded(self) -> dict[str | None, LockedItem]:
        trained = trained_model.recorded()
        found: dict[str | None, LockedItem] = {}
        for key in self.items():
            path = WORKSPACE.registration(str(key))
            if path.is_file():
                record = read_json(path)
                found[key] = LockedItem(
                    md5=record["dvc_md5"] or "unknown",
                    size=trained[key].size if key in trained else 0,
                    out=f"models/{key}",
                    entry=hash_of(record)[:HASH_DIGITS],
                )
        return found

    def reasons(self, status: Mapping[str, list[str]]) -> dict[str | None, list[str]]:
        """A version matches when its bytes are those that DVC has for the setting, and these are up to date."""
        reasons = trained_model.reasons(status)
        on_disk = trained_model.recorded()
        for key, version in self.recorded().items():
            if key not in on_disk or on_disk[key].md5 != version.md5:
                reasons[key] = [*reasons[key], f"models/{key} has other bytes than the registered version"]
            if read_json(WORKSPACE.registration(str(key)))["report_hash"] != _report_hash():
                reasons[key] = [*reasons[key], "reports/ has changed since the registration"]
        return reasons

    def code_version(self) -> str:
        return code_version()

    def facts(self, key: str | None, locked: LockedItem) -> Facts:
        record: dict[str, Any] = read_json(WORKSPACE.registration(str(key)))
        return {
            "version": record["version"],
            "alias": record["alias"],
            "mlflow": mlflow_version(record["name"], record["version"]),
            "mlflow_run": mlflow_run(record["experiment_id"], record["run_id"]),
            "bytes": locked.size,
            "md5": locked.md5,
            "weights_hash": record["weights_hash"],
            "registration": MetadataValue.json(record),
        }


def _report_hash() -> str | None:
    return manifest_hash(WORKSPACE.reports) if (WORKSPACE.reports / MANIFEST).is_file() else None


def code_version() -> str:
    """Of the registry's code: there is no stage in dvc.yaml that lists it."""
    files = (WORKSPACE.root / CODE_FOLDER).rglob("*.py")
    return version_of(WORKSPACE, COMMAND, [path.relative_to(WORKSPACE.root).as_posix() for path in files])


@asset(
    name=NAME,
    deps=[trained_model.name, mteb_scores.name, frontier_report.name],
    group_name="registry",
    description="A version of the model in MLflow's registry, alias candidate-SETTING, with its scores and the report's pictures.",
    kinds={"mlflow"},
    owners=[OWNER],
    code_version=code_version(),
    partitions_def=SETTINGS,
    check_specs=[check_spec(NAME, MATCHES_DVC, "The version's bytes are those that DVC has, and up to date.", partitions=SETTINGS)],
    retry_policy=RETRIES,
)
def _register(context: AssetExecutionContext, pipes: PipesSubprocessClient) -> Iterator[MaterializeResult[Any]]:
    run_item(context, pipes, ["--", *COMMAND.split(), context.partition_key])
    yield result_of(registered_model, context.partition_key)


registered_model = RegisteredModel(NAME, "", (trained_model, mteb_scores, frontier_report), SETTINGS, _register)
