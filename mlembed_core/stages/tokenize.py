"""Stage ``tokenize@NAME``: token ids of one source, every document once."""

from __future__ import annotations

import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import Workspace, hash_of, manifest_hash, read_manifest, sha256_file, verify_files, write_manifest, writing
from mlembed_core.config.base import Section, pick
from mlembed_core.config.data import Sources, TokenizerParams
from mlembed_core.config.load import load
from mlembed_core.data import corpus
from mlembed_core.data.corpus import Job, make_corpus
from mlembed_core.data.rows import ROWS_FILE
from mlembed_core.data.tokenize import load_tokenizer
from mlembed_core.errors import DataError
from mlembed_core.spread import PROCESSES, RAY


class Config(Section):
    """What this stage reads of the parameters; of the sources, its own item."""

    sources: Sources
    tokenizer: TokenizerParams


def run(workspace: Workspace, name: str) -> None:
    """Write ``data/corpus/NAME/``.

    Raises:
        ConfigError: no source has that name.
        ArtifactError: the source's out or the tokenizer is missing or damaged.
        DataError: no row of the source is for training.
    """
    config = load(workspace.params_file, Config)
    source = pick(config.sources, name, path="sources")
    folder = workspace.sources / name
    for out, command in ((folder, f"mlembed source {name}"), (workspace.tokenizer, "mlembed tokenizer")):
        read_manifest(out, made_by=command)
        verify_files(out)
    max_length = config.tokenizer.max_length
    shape = source.model_dump(mode="json", include={"instruction", "symmetric", "num_negatives"}) | {"max_length": max_length}
    inputs = {f"source@{name}": folder, "tokenizer": workspace.tokenizer}
    job = Job(
        rows_file=folder / ROWS_FILE,
        tokenizer=workspace.tokenizer,
        state=workspace.work / "tokenize" / fingerprint(name, shape, inputs),
        **shape,
        alone=not (os.environ.get(RAY) or os.environ.get(PROCESSES)),
    )
    load_tokenizer(job.tokenizer)  # refused before anything is read
    for old in job.state.parent.glob(f"{name}-*"):
        if old != job.state:  # of other rows, another tokenizer or other code
            shutil.rmtree(old, ignore_errors=True)
    with writing(workspace, workspace.corpora / name) as draft:
        counts = make_corpus(job, draft, scratch=draft, description=f"tokenize {name}")
        if not counts["rows"]:
            raise DataError(f"{job.rows_file} has no row of the train or dev split, so sources.{name} gives nothing to train on")
        write_manifest(draft, stage=f"tokenize@{name}", params=shape, inputs=inputs, counts=counts)
    shutil.rmtree(job.state, ignore_errors=True)


def fingerprint(name: str, shape: dict[str, Any], inputs: dict[str, Path]) -> str:
    """Names the state of a source's tokenising: everything that shapes its bytes, the code and its libraries too."""
    code = {path.name: sha256_file(path) for path in sorted(Path(corpus.__file__).parent.glob("*.py"))}
    libraries = {package: version(package) for package in ("numpy", "pyarrow", "tokenizers")}
    of_inputs = {item: manifest_hash(path) for item, path in inputs.items()}
    return f"{name}-{hash_of({'shape': shape, 'inputs': of_inputs, 'code': code, 'libraries': libraries})[:16]}"
