"""The parameter file: what is refused, and that the message names key, value and what is allowed."""

from pathlib import Path

import pytest

from mlembed_core.config.base import Section
from mlembed_core.config.load import load, load_all
from mlembed_core.config.params import Params
from mlembed_core.config.presets import compose
from mlembed_core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]
PRESETS = ROOT / "configs" / "presets"
TEXT = (ROOT / "configs" / "params.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ("temperature: 0.05", "temprature: 0.05", ["train.temprature", "did you mean 'temperature'"]),
        ("temperature: 0.05", "temperature: -1", ["train.temperature=-1", "greater than 0"]),
        ("dim: 128", "dimm: 128", ["evaluation.submodels.1.dimm", "did you mean 'dim'"]),
        ("rank: 256, min", "rank: 4096, min", ["settings.3d.mel.rank=4096", "hidden size 256", "rank ≤ 256"]),
        ("mll: auto", "mll: [1, 9]", ["settings.3d.mll=9", "number of layers 2"]),
        ("mrl: auto", "mrl: [512]", ["settings.3d.mrl=512", "hidden size 256"]),
        ("min_rank: 16, sampled: true", "sampled: true", ["settings.3d.mel", "min_rank"]),
        ("min_rank: 16", "min_rank: 300", ["min_rank=300 exceeds rank=256"]),
        ("source: cldr_bitext}", "source: cldr_bitex}", ["suites.embedded.tasks.CldrBitext.source", "did you mean 'cldr_bitext'"]),
        ("python_topics: 0.4", "python_topic: 0.4", ["train.source_weights.python_topic", "did you mean 'python_topics'"]),
        ("  baseline: {}", "  base-line: {}", ["base-line", "a-z, 0-9 and _"]),
        ("kind: classification", "kind: clasification", ["sources.cldr_kind_of_name.kind='clasification'", "'classification'"]),
        ("type: trained", "type: hub, repo: a/b, revision: main", ["tokenizer", "revision='main'"]),
        ("seed: 17", "seeed: 17", ["seeed: unknown key; did you mean 'seed'", "seed: missing"]),
        ("    classification: {in_batch: false, num_hard_negatives: 1}\n", "", ["train.objectives.classification: missing"]),
        ("hidden_size: 256", "hidden: 256", ["hidden_size=None must be given as int"]),
        ("seed: 17", "seed: [", ["is not valid YAML"]),
    ],
)
def test_a_mistake_is_named_with_its_path_value_and_remedy(tmp_path, old, new, parts):
    assert old in TEXT
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_all(path, Params)
    for part in [*parts, str(path)]:
        assert part in str(caught.value)


def test_yaml_is_1_2(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("learning_rate: 4.0e-4", "learning_rate: 3e-4"), encoding="utf-8")
    assert load_all(path, Params).train.learning_rate == 3e-4


class SeedOnly(Section):
    seed: int


def test_a_stage_reads_its_own_sections_only(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(TEXT.replace("type: local", "type: lokal"), encoding="utf-8")
    assert load(path, SeedOnly).seed == 17
    with pytest.raises(ConfigError, match="lokal"):
        load_all(path, Params)


def test_the_default_is_the_embedded_preset():
    assert compose(PRESETS, "embedded") == TEXT, "configs/params.yaml and configs/presets/embedded.yaml must be equal"


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_composes(preset, tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(compose(PRESETS, preset), encoding="utf-8")
    load_all(path, Params)


def test_unknown_presets_circles_and_drops_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="there is no preset 'huge'.*embedded"):
        compose(PRESETS, "huge")
    (tmp_path / "a.yaml").write_text("extends: b\n")
    (tmp_path / "b.yaml").write_text("extends: a\n")
    with pytest.raises(ConfigError, match="circle: a → b → a"):
        compose(tmp_path, "a")
    (tmp_path / "b.yaml").write_text("seed: 1\n")
    (tmp_path / "a.yaml").write_text("extends: b\nwithout: [train.seed]\n")
    with pytest.raises(ConfigError, match=r"train\.seed is not in the base"):
        compose(tmp_path, "a")
