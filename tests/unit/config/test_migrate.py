"""A configuration of the reference as a preset: what is taken, what is named, what is refused."""

import json
from pathlib import Path

import pytest

from mlembed_core.config.migrate import ELSEWHERE, KNOWN, migrate, write
from mlembed_core.config.presets import compose, read
from mlembed_core.errors import ConfigError

PRESETS = Path(__file__).resolve().parents[3] / "configs" / "presets"
FILE = {
    "model_path": "models/qwen3-0.6b",
    "experiment_id": "0.6b+lr.1e-5+bs.16x32",
    "train_data_path": "training_data/data_tokenized_qwen",
    "output_dir": "output",
    "tb_dir": "output/tb",
    "cache_dir": "cache",
    "train_batch_size": 16,
    "checkpointing_steps": 5000,
    "validation_steps": 4000,
    "max_seq_length": 512,
    "learning_rate": 8e-6,
    "min_lr": 1e-7,
    "weight_decay": 0.02,
    "warmup_steps": 500,
    "train_epochs": 2,
    "train_steps": -1,
    "log_interval": 100,
    "num_hard_neg": 5,
    "mrl": True,
    "mll": True,
    "rank": 256,
    "sample_rank": True,
    "kd_weight": 100,
    "teacher_path": "models/teacher",
    "lr_scheduler": "constant_with_warmup",
}


def migrated(tmp_path, values, *, base="ml-embed-0.6b", processes=32, **options):
    source = tmp_path / "config.json"
    source.write_text(json.dumps(values))
    return migrate(source, PRESETS, base=base, processes=processes, **options)


def as_params(done, tmp_path):
    """The migrated preset, put in place among the others and read as `mlembed preset` reads it."""
    folder = tmp_path / "configs" / "presets"
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*PRESETS.glob("*.yaml"), *(PRESETS.parent / "sources").glob("*.yaml")]:
        target = folder.parent / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        target.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    write(done, folder)
    assert compose(folder, done.name).startswith("# Written by `mlembed preset`")
    return read(folder, done.name)


@pytest.mark.parametrize("base", ["ml-embed-0.6b", "embedded"])
def test_what_the_file_says_is_what_is_trained(tmp_path, base):
    done = migrated(tmp_path, FILE, base=base)
    params = as_params(done, tmp_path)
    assert params.name == done.name == "0_6b_lr_1e_5_bs_16x32"
    train = params.train
    assert (train.batch_size, train.num_epochs, train.num_steps) == (16 * 32, 2, None)
    assert (train.learning_rate, train.min_learning_rate, train.weight_decay, train.schedule) == (8e-6, 1e-7, 0.02, "constant")
    assert (train.log_every, train.validate_every, train.checkpoint_every) == (100, 4000, 5000)
    assert train.objectives["retrieval"].num_hard_negatives == 5
    assert params.backbone.model_dump(exclude_none=True) == {"type": "local", "path": "models/qwen3-0.6b"}
    assert (params.tokenizer.path, params.tokenizer.max_length) == ("models/qwen3-0.6b", 512)
    (setting,) = params.settings.values()
    assert (setting.mrl, setting.mll) == ("auto", "auto")
    assert setting.mel.model_dump() == {"rank": 256, "min_rank": 64, "sampled": True}
    assert (setting.distillation.weight, setting.distillation.teacher.path) == (100, "models/teacher")


def test_every_key_is_accounted_for(tmp_path):
    done = migrated(tmp_path, {**FILE, "learning_rte": 1e-3, "zzz": 1})
    assert {*done.taken, *done.left, *done.unknown} == {*FILE, "learning_rte", "zzz"}
    assert set(done.left) == {"train_data_path", "output_dir", "tb_dir", "cache_dir", "warmup_steps", "train_steps"}
    assert "did you mean 'learning_rate'? Then add --key learning_rte=learning_rate" in done.unknown["learning_rte"]
    assert "--key zzz=" in done.unknown["zzz"]
    assert "train.warmup_fraction = 500 / steps" in done.left["warmup_steps"]
    for key in (*done.taken, *done.left, *done.unknown):
        assert key in done.summary


def test_steps_come_before_epochs_and_tell_the_share_of_the_warmup(tmp_path):
    train = as_params(migrated(tmp_path, {**FILE, "train_steps": 2000}), tmp_path).train
    assert (train.num_steps, train.warmup_fraction) == (2000, 0.25)


def test_without_an_axis_it_is_a_baseline(tmp_path):
    values = {"learning_rate": 1e-4, "mrl": False, "mll": 0, "rank": 0}
    done = migrated(tmp_path, values, name="plain", base="tiny")
    params = as_params(done, tmp_path)
    assert {name: setting.model_dump(exclude_defaults=True) for name, setting in params.settings.items()} == {"baseline": {}}
    assert params.backbone == read(PRESETS, "tiny").backbone  # of which the file said nothing


def test_a_rank_that_is_not_sampled_is_a_static_table(tmp_path):
    params = as_params(migrated(tmp_path, {"rank": 128}, name="static"), tmp_path)
    assert params.settings["3d"].mel.model_dump() == {"rank": 128, "min_rank": None, "sampled": False}


def test_a_key_of_another_release_is_taken_under_its_known_name(tmp_path):
    done = migrated(tmp_path, {"emb_r": 128, "lr": 1e-5}, name="renamed", renamed={"emb_r": "rank", "lr": "learning_rate"})
    assert set(done.taken) == {"emb_r", "lr"}
    assert done.taken["emb_r"] == "settings.3d.mel: rank 128, not sampled"
    assert not done.unknown


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({"train_batch_size": 16}, {"processes": None}, r"train_batch_size=16 is the batch of one process.*--processes N"),
        ({"train_batch_size": "16"}, {}, "train_batch_size='16' must be a whole number"),
        ({"mrl": "yes"}, {}, "mrl='yes' must be true or false"),
        ({"learning_rate": -1}, {}, r"(?s)learning_rate → train.learning_rate.*train.learning_rate=-1: Input should be greater than 0"),
        ({"model_type": "qwen3", "hidden_size": 64}, {}, r"describes a model \(model_type='qwen3'\).*mlembed import"),
        ({"a": 1}, {"renamed": {"b": "rank"}}, r"--key b=rank: .* has no key 'b' \(it has: a\)"),
        ({"a": 1}, {"renamed": {"a": "ranks"}}, r"'ranks' is none of"),
        ({"a": 1, "rank": 2}, {"renamed": {"a": "rank"}}, r"has a key 'rank' too"),
        ({}, {"base": "huge"}, "there is no preset 'huge'"),
        ({}, {"name": "With-Dash"}, "the name 'With-Dash' is not allowed"),
    ],
)
def test_what_cannot_be_is_told(tmp_path, values, options, message):
    with pytest.raises(ConfigError, match=message):
        migrated(tmp_path, values, **options)


def test_files_that_are_none_are_told(tmp_path):
    for text, message in (("{", "is not valid JSON"), ("[1]", "must hold one JSON object, found list")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            migrate(tmp_path / "config.json", PRESETS, base="tiny")
    with pytest.raises(ConfigError, match="cannot be read"):
        migrate(tmp_path / "nothing.json", PRESETS, base="tiny")


def test_another_preset_is_never_written_over(tmp_path):
    done = migrated(tmp_path, {"seed": 3}, name="mine", base="tiny")
    write(done, tmp_path)
    write(done, tmp_path)  # the same again
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(ConfigError, match=r"mine.yaml exists and says something else"):
        write(done, tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == "name: mine\n"


def test_no_key_is_explained_twice():
    assert len(set(KNOWN)) == len(KNOWN)
    assert all(ELSEWHERE.values())
