"""A registered version as an MLflow model: ``mlflow.pyfunc.load_model("models:/NAME/1").predict(texts, params={"dim": 64})``.

The flavour names this module as its loader and the checkpoint folder as its data, so that nothing is pickled and nothing copied. It runs
where mlembed is installed (``mlflow models serve --env-manager local``).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mlembed_core.prompts import format_query

COLUMN = "text"
# MLflow's parameters have a type and a default, so "uncut" needs a value.
UNCUT = 0
AXES = ("layers", "dim", "rank")


class PyfuncModel:
    """What MLflow calls."""

    def __init__(self, folder: Path) -> None:
        from mlembed_core.export.formats import open_encoder
        from mlembed_core.registry.serving.submodels import Submodels

        self._submodels = Submodels(open_encoder(folder))

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> NDArray[Any]:
        """Unit vectors, (text, dim), of a table's column ``text``.

        Args:
            params: ``layers``, ``dim``, ``rank`` (0: uncut), and ``instruction`` for queries ("": none).

        Raises:
            SubmodelError: a cut larger than the model.
        """
        wanted = dict(params or {})
        submodel = self._submodels.resolve(**{axis: int(wanted.get(axis) or UNCUT) or None for axis in AXES})
        texts = [format_query(str(text), wanted.get("instruction") or None) for text in model_input[COLUMN]]
        return self._submodels.encode(texts, submodel)


def _load_pyfunc(path: str) -> PyfuncModel:
    """MLflow's entry point."""
    return PyfuncModel(Path(path))


def mlmodel(run_id: str) -> str:
    """The text of the ``MLmodel`` file that makes a checkpoint folder an MLflow model."""
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    params = [ParamSpec(axis, "long", UNCUT) for axis in AXES] + [ParamSpec("instruction", "string", "")]
    model = Model(run_id=run_id, signature=ModelSignature(inputs=Schema([ColSpec("string", COLUMN)]), params=ParamSchema(params)))
    # By name: importing the flavour loads what only its other loaders need.
    model.add_flavor("python_function", loader_module=__name__, python_version=platform.python_version())
    return str(model.to_yaml())
