"""mlembed: the training package under the pipeline. It runs without Dagster, DVC or MLflow installed.

``load`` is the face for people who have a model and want vectors::

    import mlembed_core

    encoder = mlembed_core.load("models/3d", layers=2, dim=64, rank=64)
    vectors = encoder.encode_documents(["…"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlembed_core.registry.load import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    # Imported on first use: `import mlembed_core.config` must not cost the two seconds of torch.
    if name == "load":
        from mlembed_core.registry.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
