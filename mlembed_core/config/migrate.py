"""``mlembed migrate config.json``: a training configuration of the reference becomes a preset of this project.

F2LLM and ML-Embed (arXiv 2510.02294, 2605.15081) read one flat JSON file. What it says is laid over one of our presets as a small overlay
(:mod:`mlembed_core.config.presets`), and of every key it is told where it went, why it has no place here, or that nobody knows it.
Releases differ in how they call some keys, so that a key may be renamed on the way (``--key theirs=known``).
"""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlembed_core.config.base import NAME_PATTERN, parse
from mlembed_core.config.params import Params
from mlembed_core.config.presets import laid_over
from mlembed_core.errors import ConfigError

MIN_RANK = 64  # the smallest rank that the recipe draws
MAX_LENGTH = 1024  # tokens of a text in the recipe
SETTING = "3d"  # with any of the three axes; without one it is
PLAIN_SETTING = "baseline"

# Keys whose value moves as it is.
SAME_VALUE = {
    "learning_rate": "train.learning_rate",
    "min_lr": "train.min_learning_rate",
    "weight_decay": "train.weight_decay",
    "temperature": "train.temperature",
    "num_hard_neg": "train.objectives.retrieval.num_hard_negatives",
    "log_interval": "train.log_every",
    "validation_steps": "train.validate_every",
    "checkpointing_steps": "train.checkpoint_every",
    "max_seq_length": "tokenizer.max_length",
    "seed": "seed",
}
# Keys that something stands in the place of.
ELSEWHERE = {
    "output_dir": "a checkpoint is always models/SETTING, and resume states are in .work/train",
    "tb_dir": "curves are in models/SETTING/*.csv and in MLflow",
    "cache_dir": "the training cache is the stage `cache`, data/cache",
    "train_data_path": "sources are files of text, one by one under `sources` (--on: those of a preset); token ids cannot be turned back",
    "num_processes": "how many processes run is the launch profile's (MLEMBED_LAUNCHER, configs/accelerate)",
}
# Keys that take some arithmetic, or each other; see :class:`_Migration`.
COMBINED = (
    "model_path",
    "experiment_id",
    "train_batch_size",
    "train_steps",
    "train_epochs",
    "warmup_steps",
    "lr_scheduler",
    "gradient_checkpointing",
    "mrl",
    "mll",
    "rank",
    "sample_rank",
    "kd_weight",
    "teacher_path",
)
KNOWN = (*SAME_VALUE, *ELSEWHERE, *COMBINED)


@dataclass(frozen=True)
class Migrated:
    """A preset, and what became of every key.

    Attributes:
        text: the overlay, as YAML.
        taken: key → what of ours it became.
        left: key → why it has no counterpart, or what it waits for.
        unknown: key → what it may mean.
    """

    name: str
    text: str
    taken: dict[str, str]
    left: dict[str, str]
    unknown: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def summary(self) -> str:
        lines = [f"taken    {key} → {place}" for key, place in self.taken.items()]
        lines += [f"left out {key}: {why}" for key, why in self.left.items()]
        lines += [f"unknown  {key}: {hint}" for key, hint in self.unknown.items()]
        return "\n".join(lines)


def migrate(
    source: Path,
    presets: Path,
    *,
    base: str,
    name: str | None = None,
    processes: int | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Migrated:
    """What a file of the reference says, as an overlay of the preset ``base``, checked.

    Args:
        presets: ``configs/presets``.
        name: of the preset and the model; None: the file's ``experiment_id``.
        processes: that the file was written for: its batch is that of one process. None: as the file says.
        renamed: key of the file → the known key that it stands for.

    Raises:
        ConfigError: no such file or preset, not JSON, a value that the schema refuses, or something that has to be said along with it.
    """
    values = _read(source, renamed or {})
    migration = _Migration(source, values, processes)
    migration.run()
    name = name or _as_name(str(values.get("experiment_id") or source.stem))
    if not NAME_PATTERN.fullmatch(name):
        raise ConfigError(f"the name {name!r} is not allowed: names are made of a-z, 0-9 and _. Give another --name")
    overlay = {"extends": base, "name": name, **migration.overlay()}
    path = presets / f"{name}.yaml"
    parse(Params, laid_over(presets, overlay, path=path), origin=f"{source}, in the keys of a preset ({migration.places})")
    yaml, text = YAML(), io.StringIO()
    yaml.width = 140
    yaml.dump(overlay, text)
    head = f"# Made by `mlembed migrate` from {source.name} of the reference, on top of the preset {base}.\n"
    theirs = {known: key for key, known in (renamed or {}).items()}
    taken, left = ({theirs.get(key, key): said for key, said in part.items()} for part in (migration.taken, migration.left))
    return Migrated(name, head + text.getvalue(), taken, left, _unknown(values))


def write(done: Migrated, presets: Path) -> Path:
    """Put a migrated preset beside the others.

    Raises:
        ConfigError: there is another preset of that name.
    """
    path = presets / f"{done.name}.yaml"
    if path.is_file() and path.read_text(encoding="utf-8") != done.text:
        raise ConfigError(f"{path} exists and says something else; choose another --name, or remove it")
    path.write_text(done.text, encoding="utf-8")
    return path


def _read(source: Path, renamed: Mapping[str, str]) -> dict[str, Any]:
    try:
        values = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{source} cannot be read ({error.strerror}); give the JSON file that the reference was started with") from None
    except ValueError as error:
        raise ConfigError(f"{source} is not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{source} must hold one JSON object, found {type(values).__name__}")
    if "model_type" in values and "model_path" not in values:
        raise ConfigError(
            f"{source} describes a model (model_type={values['model_type']!r}), not a training. `mlembed import FOLDER` takes models in"
        )
    for theirs, known in renamed.items():
        if theirs not in values:
            raise ConfigError(f"--key {theirs}={known}: {source} has no key {theirs!r} (it has: {', '.join(sorted(values)) or 'none'})")
        if known not in KNOWN:
            raise ConfigError(f"--key {theirs}={known}: {known!r} is none of {', '.join(sorted(KNOWN))}")
        if known in values:
            raise ConfigError(f"--key {theirs}={known}: {source} has a key {known!r} too")
        values[known] = values.pop(theirs)
    return values


def _unknown(values: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key in values:
        if key not in KNOWN:
            close = difflib.get_close_matches(key, KNOWN, n=1)
            means = f"did you mean {close[0]!r}? Then add --key {key}={close[0]}" if close else f"if it means one of ours, --key {key}=…"
            found[key] = f"{values[key]!r} is not taken; {means}"
    return found


def _as_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


@dataclass
class _Migration:
    """Goes through the keys of one file and gathers an overlay."""

    source: Path
    values: Mapping[str, Any]
    processes: int | None
    taken: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    _overlay: dict[str, Any] = field(default_factory=dict)

    def run(self) -> None:
        for key, place in SAME_VALUE.items():
            if key in self.values:
                self._take(key, place, self.values[key])
        for key, why in ELSEWHERE.items():
            if key in self.values:
                self.left[key] = why
        for part in (self._name, self._batch, self._length, self._warmup, self._arithmetic, self._backbone, self._setting):
            part()

    def overlay(self) -> dict[str, Any]:
        """With what the base has to give up: whatever is said here as a whole."""
        sections = {"backbone": ["backbone", "tokenizer"], "settings": ["settings"]}
        whole = [each for section, gone in sections.items() if section in self._overlay for each in gone]
        return {"without": whole, **self._overlay} if whole else dict(self._overlay)

    @property
    def places(self) -> str:
        """Whose value a mistake in the overlay is, for messages."""
        return ", ".join(f"{key} → {place.split(':')[0]}" for key, place in self.taken.items()) or "nothing taken"

    def _take(self, key: str, place: str, value: Any) -> None:
        self.taken[key] = f"{place}: {value}"
        section = self._overlay
        *parents, last = place.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value

    def _name(self) -> None:
        if "experiment_id" in self.values:
            self.taken["experiment_id"] = "name, unless --name says another"

    def _batch(self) -> None:
        if "train_batch_size" not in self.values:
            return
        of_one = self._number("train_batch_size")
        processes = self.processes or (self._number("num_processes") if self.values.get("num_processes") else None)
        if processes is None:
            raise ConfigError(
                f"{self.source}: train_batch_size={of_one} is the batch of one process; here it is that of all together. Say how many "
                "there were: --processes N"
            )
        self._take("train_batch_size", "train.batch_size", of_one * processes)

    def _length(self) -> None:
        """Steps take precedence over epochs there; −1 switches them off."""
        steps = self._number("train_steps") if "train_steps" in self.values else -1
        if steps > 0:
            self._take("train_steps", "train.num_steps", steps)
            if "train_epochs" in self.values:
                self.left["train_epochs"] = f"train_steps={steps} takes precedence"
            return
        if "train_steps" in self.values:
            self.left["train_steps"] = f"{steps} switches it off"
        if "train_epochs" in self.values:
            self._take("train_epochs", "train.num_epochs", self.values["train_epochs"])
            self._overlay["train"]["num_steps"] = None  # of a base that counts steps

    def _warmup(self) -> None:
        if "warmup_steps" not in self.values:
            return
        warmup, steps = self._number("warmup_steps"), self._overlay.get("train", {}).get("num_steps")
        if steps is None:
            self.left["warmup_steps"] = (
                f"warm-up is a share here, and how many steps the epochs have is known once the cache is made: train.warmup_fraction = "
                f"{warmup} / steps"
            )
            return
        self._take("warmup_steps", "train.warmup_fraction", round(warmup / steps, 6))

    def _arithmetic(self) -> None:
        if "lr_scheduler" in self.values:
            kind = str(self.values["lr_scheduler"])
            self._take("lr_scheduler", "train.schedule", "constant" if kind.startswith("constant") else kind)
        if "gradient_checkpointing" in self.values:
            again = "full" if self._switch("gradient_checkpointing") else "none"
            self._take("gradient_checkpointing", "train.activation_checkpointing", again)

    def _backbone(self) -> None:
        if "model_path" not in self.values:
            return
        path = str(self.values["model_path"])
        self._overlay["backbone"] = {"type": "local", "path": path}
        length = self._overlay.get("tokenizer", {}).get("max_length", MAX_LENGTH)
        self._overlay["tokenizer"] = {"type": "local", "path": path, "max_length": length}
        self.taken["model_path"] = (
            f"backbone and tokenizer: the folder {path} (for one of the hub: type: hub, repo: …, revision: the full commit)"
        )

    def _setting(self) -> None:
        """The three axes and the teacher, which are one setting here."""
        setting: dict[str, Any] = {}
        for key in ("mrl", "mll"):
            if key in self.values:
                setting[key] = "auto" if self._switch(key) else None
                self.taken[key] = f"settings.{SETTING}.{key}: auto" if setting[key] else f"no {key} in the setting"
        if (mel := self._mel()) is not None:
            setting["mel"] = mel
        name = SETTING if any(setting.values()) else PLAIN_SETTING
        if (distillation := self._distillation(name)) is not None:
            setting["distillation"] = distillation
        if any(key in self.values for key in ("mrl", "mll", "rank", "kd_weight")):
            self._overlay["settings"] = {name: {key: value for key, value in setting.items() if value is not None}}

    def _mel(self) -> dict[str, Any] | None:
        """A rank without sampling is a plain low-rank table; rank 0 switches it off."""
        if "rank" not in self.values:
            if "sample_rank" in self.values:
                self.left["sample_rank"] = "there is no rank to sample from"
            return None
        rank = self._number("rank")
        if rank <= 0:
            self.left["rank"] = f"{rank} is a dense table: no mel"
            return None
        sampled = self._switch("sample_rank") if "sample_rank" in self.values else False
        mel: dict[str, Any] = {"rank": rank, "min_rank": min(MIN_RANK, rank), "sampled": True} if sampled else {"rank": rank}
        self.taken["rank"] = f"settings.{SETTING}.mel: rank {rank}, " + (f"sampled from {mel['min_rank']} on" if sampled else "not sampled")
        if "sample_rank" in self.values:
            self.taken["sample_rank"] = f"settings.{SETTING}.mel.sampled: {str(sampled).lower()}"
        return mel

    def _distillation(self, name: str) -> dict[str, Any] | None:
        weight, path = self.values.get("kd_weight"), self.values.get("teacher_path")
        if not weight or not path:
            lacking = "no teacher_path goes with it" if weight else "no kd_weight above 0 goes with it"
            self.left |= {key: lacking for key in ("kd_weight", "teacher_path") if key in self.values}
            return None
        self.taken["kd_weight"] = f"settings.{name}.distillation.weight: {weight}"
        self.taken["teacher_path"] = f"settings.{name}.distillation.teacher: the folder {path}, whose sha256 training tells you to pin"
        return {"weight": weight, "teacher": {"type": "local", "path": str(path)}}

    def _number(self, key: str) -> int:
        value = self.values[key]
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.source}: {key}={value!r} must be a whole number")
        return value

    def _switch(self, key: str) -> bool:
        value = self.values[key]
        if not isinstance(value, bool | int) or value not in (0, 1):
            raise ConfigError(f"{self.source}: {key}={value!r} must be true or false")
        return bool(value)
