"""A workspace of a few text rows, for the stages from rows to the training cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlembed_core.artifacts import Workspace, write_manifest
from mlembed_core.data.rows import Row, RowWriter, to_table
from mlembed_core.stages import tokenize as tokenize_stage
from mlembed_core.stages import tokenizer as tokenizer_stage

WORDS = ["river", "stone", "header", "token", "parse", "bridge", "number", "return", "vector", "layer"]
WORDS += ["Ελλάδα", "भारत", "日本", "Österreich"]


class TextWorkspace:
    """Writes sources as stage ``source`` does, and the parameters that go with them."""

    def __init__(self, root: Path) -> None:
        self.workspace = Workspace(root)
        self.params: dict[str, Any] = {"sources": {}, "tokenizer": {"type": "trained", "vocab_size": 320, "max_length": 12}}

    def set(self, section: str, value: Any) -> None:
        self.params[section] = value
        self.workspace.params_file.parent.mkdir(parents=True, exist_ok=True)
        with self.workspace.params_file.open("w") as file:
            YAML(typ="safe").dump(self.params, file)

    def add_source(self, name: str, rows: Sequence[Row], *, num_negatives: int = 2, **params: Any) -> Path:
        """Returns the path of the rows."""
        folder = self.workspace.sources / name
        folder.mkdir(parents=True, exist_ok=True)
        with RowWriter(folder, num_negatives) as writer:
            writer.write(to_table(rows, num_negatives))
        write_manifest(folder, stage=f"source@{name}", params={}, counts=writer.counts(), details={"licences": []})
        origin = {"type": "local", "files": ["unused.parquet"]}
        source = {"kind": "retrieval", "origin": origin, "num_negatives": num_negatives} | params
        self.set("sources", self.params["sources"] | {name: source})
        return folder / "rows.parquet"

    def tokenize(self) -> None:
        """Run the two stages before ``cache``."""
        tokenizer_stage.run(self.workspace)
        for name in self.params["sources"]:
            tokenize_stage.run(self.workspace, name)


@pytest.fixture
def text_workspace(tmp_path: Path) -> TextWorkspace:
    return TextWorkspace(tmp_path / "clone")


@pytest.fixture
def rows() -> list[Row]:
    """200 rows: 160 train, 20 dev, 20 test. Test texts have words that no other row has."""
    made = []
    for number in range(200):
        split = "test" if number % 10 == 0 else "dev" if number % 10 == 1 else "train"
        left, right = WORDS[number % len(WORDS)], WORDS[number % 5]
        secret = " zzyzx" if split == "test" else ""
        made.append(
            Row(
                query=f"{left} {number}{secret}",
                passage=f"the {right} of {left}, number {number}{secret}",
                negatives=[f"the {right} of {left}, number {(number + step) % 200}" for step in (2, 4)][: number % 3],
                lang="ell" if number % 2 else None,
                label=None,
                split=split,
            )
        )
    return made
