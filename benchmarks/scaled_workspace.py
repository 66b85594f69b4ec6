"""A workspace of hundreds of items that DVC calls up to date, made in seconds: to time and to test the graph, not the work.

The parameters are those of the tiny preset with as many sources, settings and suites as asked for. Each item's out is small, but has
the files that Dagster's facts and checks read, and bytes of its own. ``dvc.lock`` is written as DVC would have written it after running
every stage (which would take most of an hour, since DVC writes that file again after each); ``dvc status`` is the judge of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from ruamel.yaml import YAML
from safetensors.numpy import save_file

from mlembed_core.artifacts import hash_of, write_json, write_manifest
from mlembed_core.config.base import parse
from mlembed_core.config.load import read_yaml
from mlembed_core.config.params import Params
from mlembed_core.config.presets import compose

PARAMS = "configs/params.yaml"
SETTINGS: Mapping[str, dict[str, Any]] = {
    "baseline": {},
    "mrl": {"mrl": "auto"},
    "mrl_mll": {"mrl": "auto", "mll": "auto"},
    "3d": {"mrl": "auto", "mll": "auto", "mel": {"rank": 16, "min_rank": 4, "sampled": True}},
}
SUBMODELS = ("full", "l1-d8-r4")
ROWS = 32  # of a source
LANGUAGES = ("deu", "eng")


def make(tree: Path, root: Path, *, sources: int, settings: int, suites: int) -> None:
    """Make the workspace ``root`` from the checkout ``tree``.

    Args:
        settings: of ``SETTINGS``, the first so many.

    Raises:
        RuntimeError: DVC does not call it up to date; its words follow.
    """
    _copy_tree(tree, root)
    values = _parameters(root, sources, settings, suites)
    with (root / PARAMS).open("w", encoding="utf-8") as handle:
        YAML().dump(values, handle)
    items = list(_items(read_yaml(root / "dvc.yaml")["stages"], values))
    for item in items:
        _OUTS[item.stage](root, item)
    hashes = Hashes(root)
    # Through JSON, so that nothing is shared: YAML would write what stands twice once, and DVC does not.
    lock = json.loads(json.dumps({"schema": "2.0", "stages": {item.name: item.locked(values, hashes) for item in items}}))
    (root / "dvc.lock").write_text(yaml.dump(lock, Dumper=yaml.CSafeDumper, sort_keys=False), encoding="utf-8")
    said = subprocess.run([Path(sys.executable).parent / "dvc", "status", "--json"], cwd=root, capture_output=True, text=True, check=False)
    if said.returncode or json.loads(said.stdout):
        raise RuntimeError(f"dvc.lock was not written as DVC writes it: {said.stdout[-3000:]}{said.stderr[-3000:]}")


def _copy_tree(tree: Path, root: Path) -> None:
    """What git would commit now, as a repository of its own; without results."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.split("\0"):
        if (tree / name).is_file() and not name.startswith(("scores/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tree / name, root / name)
    subprocess.run(["git", "init", "--quiet"], cwd=root, check=True)


def _parameters(root: Path, sources: int, settings: int, suites: int) -> dict[str, Any]:
    (root / PARAMS).write_text(compose(root / "configs" / "presets", "tiny"), encoding="utf-8")
    values = read_yaml(root / PARAMS)
    names = [f"source_{number:03}" for number in range(sources)]
    values["sources"] = {name: {"kind": "retrieval", "origin": {"type": "local", "files": [f"pairs/{name}.parquet"]}} for name in names}
    values["settings"] = {name: SETTINGS[name] for name in list(SETTINGS)[:settings]}
    values["suites"] = {
        f"suite_{number:02}": {"type": "local", "tasks": {"Pairs": {"type": "retrieval", "source": names[number % sources]}}}
        for number in range(suites)
    }
    parse(Params, values, origin=PARAMS)
    return values


@dataclass(frozen=True)
class Item:
    """One run of a stage: its definition with the item's names filled in."""

    stage: str
    axes: tuple[str, ...]
    definition: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.stage}@{'-'.join(self.axes)}" if self.axes else self.stage

    @cached_property
    def seed(self) -> int:
        return int(hash_of(self.name)[:8], 16)

    def outs(self) -> list[str]:
        named = [*self.definition.get("outs", ()), *self.definition.get("metrics", ())]
        return sorted(out if isinstance(out, str) else next(iter(out)) for out in named)

    def locked(self, values: Mapping[str, Any], hashes: Hashes) -> dict[str, Any]:
        """The item's record in ``dvc.lock``."""
        wanted = self.definition["params"][0][PARAMS]
        return {
            "cmd": self.definition["cmd"],
            "deps": [hashes.of(path) for path in sorted(self.definition["deps"])],
            "params": {PARAMS: {key: _value_at(values, key) for key in sorted(wanted)}},
            "outs": [hashes.of(path) for path in self.outs()],
        }


def _items(stages: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Item]:
    """Every item of ``dvc.yaml``, in its three forms: a plain stage, ``foreach`` over a mapping, a ``matrix`` of setting and suite."""
    for name, stage in stages.items():
        if "foreach" in stage:
            section = stage["foreach"].removeprefix("${").removesuffix("}")
            for key in values[section]:
                yield Item(name, (key,), _filled(stage["do"], {"key": key}))
        elif "matrix" in stage:
            for setting in values["settings"]:
                for suite in values["suites"]:
                    yield Item(name, (setting, suite), _filled(stage, {"item.setting": setting, "item.suite": suite}))
        else:
            yield Item(name, (), stage)


def _filled(definition: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    text = json.dumps({key: value for key, value in definition.items() if key != "matrix"})
    for name, value in names.items():
        text = text.replace(f"${{{name}}}", value)
    return dict(json.loads(text))


def _value_at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for key in path.split("."):
        found = found[key]
    return found


class Hashes:
    """MD5s as DVC takes them, of a file its bytes and of a folder the sorted list of its files; and its cache of what they stand for."""

    def __init__(self, root: Path):
        self._root = root
        self._known: dict[str, dict[str, Any]] = {}

    def of(self, path: str) -> dict[str, Any]:
        """The entry of ``dvc.lock`` for a path; its bytes are in the cache then."""
        if path not in self._known:
            self._known[path] = {"path": path, "hash": "md5", **self._taken(self._root / path)}
        return self._known[path]

    def _taken(self, path: Path) -> dict[str, Any]:
        if path.is_file():
            return {"md5": self._kept(path.read_bytes()), "size": path.stat().st_size}
        files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
        listed = [{"md5": self._kept(content), "relpath": name} for name, content in sorted(files.items())]
        md5 = self._kept(json.dumps(listed).encode(), suffix=".dir")
        return {"md5": md5, "size": sum(map(len, files.values())), "nfiles": len(files)}

    def _kept(self, content: bytes, suffix: str = "") -> str:
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest() + suffix
        path = self._root / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return md5


# What each stage leaves, as small as it can be while everything that Dagster shows of it is there.


def _close(out: Path, item: Item, counts: Mapping[str, int], **details: Any) -> None:
    write_manifest(out, stage=item.name, params={}, counts=counts, details=details)


def _source(root: Path, item: Item) -> None:
    out = _folder(root, item)
    numbers = np.arange(ROWS)
    rows = pd.DataFrame(
        {
            "query": [f"question {number} of {item.name}" for number in numbers],
            "passage": [f"answer {number} of {item.name}" for number in numbers],
            "lang": [LANGUAGES[number % len(LANGUAGES)] for number in numbers],
            "split": np.where(numbers % 4 == 0, "test", "train"),
        }
    )
    rows.to_parquet(out / "rows.parquet")
    train = int((rows["split"] == "train").sum())
    counts = {"rows": ROWS, "rows_train": train, "rows_test": ROWS - train, "languages": len(LANGUAGES)}
    _close(out, item, counts, kind="retrieval", languages=list(LANGUAGES), licences=["CC0-1.0"])


def _corpus(root: Path, item: Item) -> None:
    out = _folder(root, item)
    ids = np.random.default_rng(item.seed).permutation(1 << 16)[:ROWS]
    pd.DataFrame({"doc_id": ids.astype("uint64")}).to_parquet(out / "documents.parquet")
    _close(out, item, {"rows_train": ROWS, "documents": ROWS})


def _weights(root: Path, item: Item) -> Path:
    out = _folder(root, item)
    save_file({"table": np.random.default_rng(item.seed).normal(size=(64, 16)).astype("float32")}, out / "model.safetensors")
    return out


def _tokenizer(root: Path, item: Item) -> None:
    out = _folder(root, item)
    write_json(out / "tokenizer.json", {})
    _close(out, item, {"vocabulary": 0})


def _cache(root: Path, item: Item) -> None:
    out = _folder(root, item)
    (out / "tokens.bin").write_bytes(bytes(64))
    _close(out, item, {"rows_train": ROWS})


def _card(root: Path, item: Item) -> None:
    out = _folder(root, item)
    shutil.copyfile(root / "docs" / "images" / "frontier.png", out / "card.png")
    (out / "index.html").write_text("<!doctype html><title>data card</title>\n", encoding="utf-8")
    _close(out, item, {})


def _backbone(root: Path, item: Item) -> None:
    _close(_weights(root, item), item, {"parameters": 1024})


def _model(root: Path, item: Item) -> None:
    out = _weights(root, item)
    steps = np.arange(1, 33)
    losses = 4 / np.sqrt(steps) + np.random.default_rng(item.seed).normal(scale=0.01, size=len(steps))
    curve = pd.DataFrame({"step": steps, "source": "source_000", "loss": losses})
    curve.to_csv(out / "loss_curve.csv", index=False)
    curve.assign(layers=2, dim=32).to_csv(out / "validation_curve.csv", index=False)
    _close(out, item, {"parameters": 1024, "steps": len(steps)})


def _scores(root: Path, item: Item) -> None:
    summary, table = (root / out for out in item.outs())
    table.parent.mkdir(parents=True, exist_ok=True)
    scores = np.random.default_rng(item.seed).uniform(0.2, 0.8, size=len(SUBMODELS))
    frame = pd.DataFrame({"submodel": SUBMODELS, "task": "Pairs", "main": True, "score": scores, "bytes_fp32": [4096, 1024]})
    frame.to_parquet(table)
    write_json(summary, {name: {"Pairs": score, "average": score} for name, score in zip(SUBMODELS, scores.tolist(), strict=True)})


def _report(root: Path, item: Item) -> None:
    out = _folder(root, item)
    for name in ("frontier", "retention", "loss"):
        shutil.copyfile(root / "docs" / "images" / "frontier.png", out / f"{name}.png")
    (out / "index.html").write_text("<!doctype html><title>report</title>\n", encoding="utf-8")
    _close(out, item, {})


def _folder(root: Path, item: Item) -> Path:
    folder = root / item.outs()[0]
    folder.mkdir(parents=True)
    return folder


_OUTS: Mapping[str, Callable[[Path, Item], None]] = {
    "source": _source,
    "tokenizer": _tokenizer,
    "tokenize": _corpus,
    "cache": _cache,
    "card": _card,
    "backbone": _backbone,
    "train": _model,
    "evaluate": _scores,
    "control": _scores,
    "report": _report,
}
