"""The training stage in one process, on outs made by hand: what a distilled model says of its teacher."""

from contextlib import nullcontext

import numpy as np
import pytest
from ruamel.yaml import YAML
from tokenizers import Tokenizer, models, processors

from mlembed_core.artifacts import Workspace, manifest_hash, read_manifest, verify_files, write_json, write_manifest
from mlembed_core.config.data import Kind
from mlembed_core.data.store import CacheWriter
from mlembed_core.errors import ConfigError, MachineError
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.network import Network
from mlembed_core.stages import train as stage
from mlembed_core.train import state_folder
from mlembed_core.train.state_folder import drop_states, only_one
from mlembed_core.train.teacher import folder_hash
from tests.distributed.worker import VOCAB, stock

ROWS = 24


class Silent(nullcontext):
    """A tracker that tracks nothing."""

    def log(self, step, metrics):
        pass


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "open_run", lambda *arguments, **options: Silent())
    workspace = Workspace(tmp_path)
    make_tokenizer(workspace.tokenizer)
    make_cache(workspace.cache, workspace.tokenizer)
    make_backbone(workspace.backbone, workspace.tokenizer)
    return workspace


def make_tokenizer(folder):
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(VOCAB)}, unk_token="w0"))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A w1", special_tokens=[("w1", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", {"model_max_length": 16})
    write_manifest(folder, stage="tokenizer", params={})


def make_cache(folder, tokenizer):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with CacheWriter(folder) as cache:
        cache.begin_source("only", kind=Kind.RETRIEVAL, num_negatives=0)
        for validation in (False, True):
            texts = [cache.add_texts(rng.integers(2, VOCAB, size=3 * ROWS).astype(np.uint32), 3 * np.arange(ROWS + 1)) for _ in range(2)]
            none = np.zeros(0, dtype=np.int64)
            cache.add_rows(
                validation=validation,
                queries=texts[0],
                passages=texts[1],
                negatives=none,
                num_negatives=np.zeros(ROWS, dtype=np.int64),
                labels=[None] * ROWS,
            )
        cache.finish(tokenizer=manifest_hash(tokenizer))
    write_manifest(folder, stage="cache", params={})


def make_backbone(folder, tokenizer):
    folder.mkdir(parents=True)
    write_checkpoint(folder, Network(stock(hidden=16, seed=0)), tokenizer_folder=tokenizer, details={"setting": None})
    write_manifest(folder, stage="backbone", params={})


def write_params(workspace, **small):
    train = {
        "num_steps": 3,
        "batch_size": 8,
        "objectives": {"retrieval": {"in_batch": True, "num_hard_negatives": 0}},
        "learning_rate": 1e-3,
        "num_threads": 1,
        "checkpoint_every": 2,
    }
    workspace.params_file.parent.mkdir(exist_ok=True)
    YAML().dump(
        {"name": "tests", "seed": 1, "settings": {"baseline": {}, "small": {"mll": "auto", **small}}, "train": train}, workspace.params_file
    )


def distillation(pin):
    return {"distillation": {"weight": 5.0, "teacher": {"type": "local", "path": "models/baseline", "sha256": pin}}}


def test_a_setting_is_distilled_from_another(workspace):
    write_params(workspace)
    stage.run(workspace, "baseline")
    pin = folder_hash(workspace.models / "baseline")

    write_params(workspace, **distillation(None))
    with pytest.raises(ConfigError, match=rf"settings.small.distillation.teacher.sha256: is not pinned.*{pin}"):
        stage.run(workspace, "small")
    assert not (workspace.models / "small").exists()

    write_params(workspace, **distillation(pin))
    stage.run(workspace, "small")
    verify_files(workspace.models / "small")
    manifest = read_manifest(workspace.models / "small")
    assert manifest["details"]["teacher"] == pin
    assert manifest["params"]["setting"]["distillation"]["teacher"]["sha256"] == pin
    assert manifest["counts"] == {"parameters": manifest["counts"]["parameters"], "steps": 3, "skipped_steps": 0}
    assert "teacher" not in read_manifest(workspace.models / "baseline")["details"]

    header, *rows = (workspace.models / "small" / "loss_curve.csv").read_text().splitlines()
    last = dict(zip(header.split(","), rows[-1].split(","), strict=True))
    assert last["kind"] == "retrieval"
    assert float(last["distillation"]) > 0
    assert last["hard"] == ""


def test_what_the_teacher_says_is_kept_where_it_fits(workspace):
    write_params(workspace)
    stage.run(workspace, "baseline")
    settings = distillation(folder_hash(workspace.models / "baseline"))
    curves = {}
    for bound in (0, 1.0):
        settings["distillation"]["max_cache_gib"] = bound
        write_params(workspace, **settings)
        stage.run(workspace, "small")
        curves[bound] = np.genfromtxt(workspace.models / "small" / "loss_curve.csv", delimiter=",", names=True, dtype=None)
        assert len(list((workspace.work / "teacher").glob("*/vectors.bin"))) == (1 if bound else 0)
    # bf16: the teacher's other batches move its vectors by some 1e-3.
    np.testing.assert_allclose(curves[1.0]["distillation"], curves[0]["distillation"], rtol=2e-2)


def test_another_teacher_makes_another_training(workspace):
    write_params(workspace)
    stage.run(workspace, "baseline")
    states = set()
    for seed in (1, 2):
        teacher = workspace.models / "baseline"
        stock(hidden=16, seed=seed).save_pretrained(teacher)
        write_params(workspace, **distillation(folder_hash(teacher)))
        stage.run(workspace, "small")
        states.add(tuple(sorted(path.name for path in (workspace.work / "train" / "small").iterdir())))
    assert sorted(len(names) for names in states) == [1, 2]


def test_the_same_training_twice_at_once_is_refused(workspace, monkeypatch):
    monkeypatch.setattr(state_folder, "LOCK_PATIENCE_S", 0.2)
    write_params(workspace)
    stage.run(workspace, "small")
    (folder,) = (workspace.work / "train" / "small").iterdir()
    with only_one(folder), pytest.raises(MachineError, match="another process is training this setting"):
        stage.run(workspace, "small")


def test_the_state_of_a_training_goes_with_its_own_out_only(workspace):
    write_params(workspace)
    stage.run(workspace, "small")
    (folder,) = (workspace.work / "train" / "small").iterdir()
    own = manifest_hash(workspace.models / "small")
    drop_states(workspace, "small", "another")
    drop_states(workspace, "baseline", own)
    with only_one(folder):
        drop_states(workspace, "small", own)  # in use
    assert folder.is_dir()
    drop_states(workspace, "small", own)
    assert not folder.exists()
