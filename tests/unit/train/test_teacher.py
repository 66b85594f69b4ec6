"""A teacher is pinned by its hash, reads the student's token ids, and is at least as wide."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mlembed_core.config.model import HubModel, RegisteredModel
from mlembed_core.config.settings import LocalTeacher
from mlembed_core.errors import ArtifactError, ConfigError, MachineError
from mlembed_core.model.pack import pack
from mlembed_core.train.teacher import TOKENIZER_FILE, check_tokenizer, folder_hash, load_teacher
from tests.distributed.worker import VOCAB, stock

PATH = "settings.small.distillation.teacher"
HIDDEN = 24


def save_tokenizer(folder, *, size=VOCAB, eos=True):
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if eos:
        tokenizer.post_processor = processors.TemplateProcessing(single="$A w1", special_tokens=[("w1", 1)])
    tokenizer.save(str(folder / TOKENIZER_FILE))


@pytest.fixture
def folders(tmp_path):
    """The folder of the teacher and that of the student's tokenizer."""
    teacher, student = tmp_path / "teacher", tmp_path / "tokenizer"
    student.mkdir()
    stock(hidden=HIDDEN, seed=1).save_pretrained(teacher)
    save_tokenizer(teacher, eos=False)  # what is appended to a text is no matter of the teacher's
    save_tokenizer(student)
    return teacher, student


def load(folders, *, sha256="right", hidden=16, params=None):
    teacher, student = folders
    pin = folder_hash(teacher) if sha256 == "right" else sha256
    return load_teacher(
        params or LocalTeacher(type="local", path=teacher.name, sha256=pin),
        path=PATH,
        root=teacher.parent,
        tokenizer_folder=student,
        hidden=hidden,
        registered=lambda name, version: {("theirs", 3): teacher}[name, version],
    )


def test_a_teacher_is_frozen_and_known_by_its_hash(folders):
    teacher = load(folders)
    assert teacher.sha256 == folder_hash(folders[0])
    assert not teacher.network.training
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert teacher.network.shape.dim == HIDDEN


def test_a_registered_version_is_pinned_by_its_number(folders):
    found = load(folders, params=RegisteredModel(type="registry", name="theirs", version=3))
    assert found.sha256 == folder_hash(folders[0])


def test_a_teacher_of_the_hub_comes_from_its_cache(folders, monkeypatch):
    """The hub's cache is made by hand, in its own form; nothing is asked for over a network."""
    from huggingface_hub import constants

    revision, hub = "1" * 40, folders[0].parent / "hub"
    snapshot = hub / "models--org--teacher" / "snapshots" / revision
    shutil.copytree(folders[0], snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    params = HubModel(type="hub", repo="org/teacher", revision=revision)
    assert load(folders, params=params).sha256 == folder_hash(folders[0])
    with pytest.raises(MachineError, match=rf"{PATH}: cannot fetch org/teacher at {'2' * 40}.*(?s:.)*hf download"):
        load(folders, params=HubModel(type="hub", repo="org/teacher", revision="2" * 40))


@pytest.mark.parametrize("pin", [None, "0" * 64])
def test_a_missing_or_wrong_pin_says_what_to_write(folders, pin):
    with pytest.raises(ConfigError, match=rf"{PATH}.sha256: .*write sha256: {folder_hash(folders[0])}"):
        load(folders, sha256=pin)


def test_other_weights_are_another_teacher(folders):
    before = folder_hash(folders[0])
    other = stock(hidden=HIDDEN, seed=2)
    other.save_pretrained(folders[0])
    assert folder_hash(folders[0]) != before


def test_a_narrower_teacher_is_refused(folders):
    with pytest.raises(ConfigError, match=r"hidden size 24 is below the student's 32"):
        load(folders, hidden=32)


def test_another_tokenizer_is_refused(folders):
    teacher, student = folders
    save_tokenizer(student, size=VOCAB - 1)
    with pytest.raises(ConfigError, match=r"not the student's \(model differ"):
        load(folders)
    (teacher / TOKENIZER_FILE).unlink()
    with pytest.raises(ConfigError, match=r"no tokenizer.json in .*teacher"):
        load(folders)


def test_added_tokens_count(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_tokenizer(tmp_path / name)
    mine = tmp_path / "a" / TOKENIZER_FILE
    check_tokenizer(mine, tmp_path / "b" / TOKENIZER_FILE, path=PATH)
    tokenizer = Tokenizer.from_file(str(mine))
    tokenizer.add_tokens(["another"])
    tokenizer.save(str(mine))
    with pytest.raises(ConfigError, match="added_tokens differ"):
        check_tokenizer(tmp_path / "b" / TOKENIZER_FILE, mine, path=PATH)


def test_a_table_without_rows_for_all_tokens_is_refused(folders):
    for folder in folders:
        save_tokenizer(folder, size=VOCAB + 1)
    with pytest.raises(ConfigError, match=rf"has {VOCAB} rows, the tokenizer {VOCAB + 1} tokens"):
        load(folders)


def test_a_missing_teacher_is_told(folders):
    teacher, _ = folders
    (teacher / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="there is no teacher in"):
        folder_hash(teacher)
    shutil.rmtree(teacher)
    with pytest.raises(ArtifactError, match=rf"{PATH}.path=teacher: there is no folder"):
        load(folders, sha256="0" * 64)


def test_the_teacher_speaks_as_its_stock_model(folders):
    network = load(folders).network
    ids = torch.tensor([3, 4, 5])
    expected = stock(hidden=HIDDEN, seed=1).eval()(ids[None]).last_hidden_state[0, -1]
    assert torch.allclose(network(pack([ids.numpy()]), [network.num_layers])[0, 0], expected, atol=1e-6)
