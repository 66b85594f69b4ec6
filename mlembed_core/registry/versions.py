"""Which registered version a person means."""

from __future__ import annotations

from typing import Any

from mlembed_core.errors import RegistryError
from mlembed_core.registry.client import Registry, candidate_alias

CANDIDATE = candidate_alias("")


def find_version(registry: Registry, name: str, ref: str) -> Any:
    """A version by number, alias (``champion``, ``candidate-3d``) or setting (``3d``: its candidate).

    Raises:
        RegistryError: there is none; the message lists those there are.
    """
    aliases, versions = known(registry, name)
    number = ref if ref in versions else aliases.get(ref, aliases.get(candidate_alias(ref)))
    if number not in versions:
        raise RegistryError(
            f"model {name!r} at {registry.place} has no version, alias or candidate {ref!r} (versions: {', '.join(versions) or 'none'}; "
            f"aliases: {', '.join(f'{alias} → {version}' for alias, version in sorted(aliases.items())) or 'none'}). "
            "`mlembed register SETTING` makes a version."
        )
    return versions[number]


def candidates(registry: Registry, name: str) -> list[Any]:
    """The versions that ``candidate-SETTING`` names, the newest first."""
    aliases, versions = known(registry, name)
    numbers = {number for alias, number in aliases.items() if alias.startswith(CANDIDATE) and number in versions}
    return [versions[number] for number in sorted(numbers, key=int, reverse=True)]


def known(registry: Registry, name: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Alias → number, and number → version.

    Raises:
        RegistryError: no such model.
    """
    from mlflow.exceptions import MlflowException

    try:
        model = registry.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = ", ".join(sorted(model.name for model in registry.client.search_registered_models())) or "none"
        raise RegistryError(
            f"no model {name!r} is registered at {registry.place} (there are: {names}). `mlembed register SETTING` registers one."
        ) from None
    versions = {str(version.version): version for version in registry.client.search_model_versions(f"name='{name}'")}
    return {alias: str(number) for alias, number in model.aliases.items()}, versions
