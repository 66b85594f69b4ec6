"""Stage ``tokenize@NAME``: token ids of one source, every document once."""

from __future__ import annotations

from mlembed_core.artifacts import Workspace, read_manifest, verify_files, write_manifest, writing
from mlembed_core.config.base import Section, pick
from mlembed_core.config.data import Sources, TokenizerParams
from mlembed_core.config.load import load
from mlembed_core.data.corpus import CorpusWriter
from mlembed_core.data.rows import ROWS_FILE
from mlembed_core.data.texts import num_rows, read_batches
from mlembed_core.data.tokenize import load_tokenizer
from mlembed_core.errors import DataError
from mlembed_core.progress import Reporter


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
    tokenizer = load_tokenizer(workspace.tokenizer)
    max_length = config.tokenizer.max_length
    file = folder / ROWS_FILE
    with writing(workspace, workspace.corpora / name) as draft:
        with (
            CorpusWriter(draft, tokenizer, source, max_length=max_length) as corpus,
            Reporter(f"tokenize {name}", num_rows(file), "rows") as progress,
        ):
            for batch in read_batches(file, corpus.columns, distinct_texts=corpus.text_columns):
                corpus.write(batch)
                progress.advance(batch.num_rows)
        if not corpus.counts["rows"]:
            raise DataError(f"{file} has no row of the train or dev split, so sources.{name} gives nothing to train on")
        write_manifest(
            draft,
            stage=f"tokenize@{name}",
            params=source.model_dump(mode="json", include={"instruction", "symmetric", "num_negatives"}) | {"max_length": max_length},
            inputs={f"source@{name}": folder, "tokenizer": workspace.tokenizer},
            counts=dict(corpus.counts),
        )
