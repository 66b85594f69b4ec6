"""Released checkpoints: a plain Qwen3 folder with the factors of its table beside it, made here in that form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, Qwen3Config, Qwen3ForCausalLM

from mlembed_core.config.settings import LocalTeacher
from mlembed_core.errors import ArtifactError
from mlembed_core.export.golden import DOCUMENTS
from mlembed_core.export.kinds import Format, StoredType
from mlembed_core.export.slice import take_out
from mlembed_core.export.verify import Reader
from mlembed_core.importing import import_folder
from mlembed_core.model.encoder import Encoder
from mlembed_core.train.teacher import folder_hash, load_teacher
from tests.tiny import tiny_qwen3, tokenizer_folder
from tests.unit.export.conftest import SameProcess

VOCAB, ROWS, HIDDEN, RANK = 258, 264, 32, 16  # the table has spare rows, as Qwen3's does
SHAPE = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 4096}


def release(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A causal language model in bf16 or float32, factors as pickles, a tokenizer that names its EOS but does not append it."""
    config = Qwen3Config(**{**tiny_qwen3(seed=0, vocab_size=ROWS, **SHAPE).config.to_dict(), "tie_word_embeddings": True})
    torch.manual_seed(1)
    model = Qwen3ForCausalLM(config).to(dtype)
    generator = torch.Generator().manual_seed(2)
    u, v = torch.randn(ROWS, RANK, generator=generator), torch.randn(RANK, HIDDEN, generator=generator)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(u @ v)
    model.save_pretrained(folder)
    torch.save(torch.nn.Parameter(u.to(dtype)), folder / "U.pth")
    torch.save(v.to(dtype), folder / "V.pth")
    made = tokenizer_folder(folder / "own")
    tokenizer = json.loads((made / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<eos>"}, "model_max_length": 131072}))
    return folder


@pytest.fixture
def released(tmp_path):
    return release(tmp_path / "ml-embed")


def stock_vectors(folder: Path, max_length: int = 1024) -> np.ndarray:
    """As the release's own usage example: EOS by hand, the last state, unit length."""
    model, tokenizer = AutoModel.from_pretrained(folder, dtype=torch.float32).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
    eos = tokenizer.token_to_id("<eos>")
    with torch.no_grad():
        states = [
            model(torch.tensor([[*tokenizer.encode(text).ids[: max_length - 1], eos]])).last_hidden_state[0, -1] for text in DOCUMENTS
        ]
    return torch.nn.functional.normalize(torch.stack(states), dim=1).numpy()


def test_vectors_are_those_of_the_release(released, tmp_path):
    done = import_folder(released, tmp_path / "out")
    assert (done.layers, done.dim, done.rank, done.vocab, done.max_length) == (3, HIDDEN, RANK, ROWS, 1024)
    np.testing.assert_allclose(Encoder.from_folder(tmp_path / "out").encode_documents(DOCUMENTS), stock_vectors(released), atol=1e-5)
    assert not list((tmp_path / "out").rglob("*.pth"))


def test_a_release_in_bf16(tmp_path):
    source = release(tmp_path / "bf16", dtype=torch.bfloat16)
    import_folder(source, tmp_path / "out")
    cosines = (Encoder.from_folder(tmp_path / "out").encode_documents(DOCUMENTS) * stock_vectors(source)).sum(axis=1)
    assert cosines.min() > 0.999  # U and V are finer than the product that was rounded once more


def test_it_is_cut_exported_and_teaches(released, tmp_path):
    import_folder(released, tmp_path / "out")
    encoder = Encoder.from_folder(tmp_path / "out", layers=2, dim=8, rank=4)
    assert encoder.axes.mel_ranks == (16,)
    assert (encoder.axes.mrl_dims, encoder.axes.mll_layers) == ((8, 16, 32), (1, 2, 3))
    options = {"layers": 2, "dim": 8, "rank": 4, "dtype": StoredType.FP32, "instruction": None}
    done = take_out(tmp_path / "out", tmp_path / "cut", SameProcess([Reader.MLEMBED]), form=Format.FACTORISED, **options)
    assert done.submodel == "l2-d8-r4"

    params = LocalTeacher(type="local", path="out", sha256=folder_hash(tmp_path / "out"))
    teacher = load_teacher(
        params, path="t", root=tmp_path, tokenizer_folder=tokenizer_folder(tmp_path / "student"), hidden=16, registered=Path
    )
    assert teacher.network.shape.dim == HIDDEN


def test_a_plain_folder_has_a_dense_table(released, tmp_path):
    for name in ("U.pth", "V.pth"):
        (released / name).unlink()
    assert import_folder(released, tmp_path / "out", max_length=64).rank is None
    expected = stock_vectors(released, max_length=64)
    np.testing.assert_allclose(Encoder.from_folder(tmp_path / "out").encode_documents(DOCUMENTS), expected, atol=1e-5)


class Malicious:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def other_factors(folder):
    torch.save(torch.randn(ROWS, RANK), folder / "U.pth")


def transposed(folder):
    torch.save(torch.randn(HIDDEN, RANK), folder / "V.pth")


def no_matrix(folder):
    torch.save({"a": torch.ones(1), "b": torch.ones(1)}, folder / "V.pth")


def short_table(folder):
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_tokens([f"<extra {index}>" for index in range(10)])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: torch.save(Malicious(), folder / "V.pth"), r"V.pth is damaged, or holds more than tensors, which is not read"),
        (lambda folder: (folder / "V.pth").write_bytes(b"x"), r"V.pth is damaged"),
        (lambda folder: (folder / "V.pth").unlink(), r"holds U.pth but not the other of U.pth and V.pth"),
        (other_factors, r"the product of U.pth and V.pth differs from the model's token table by"),
        (transposed, r"V.pth \(32, 16\); for the table of this model they must be \(264, rank\) and \(rank, 32\)"),
        (no_matrix, r"V.pth must hold one matrix, found dict"),
        (short_table, r"its token table has 264 rows, its tokenizer 268 tokens"),
        (lambda folder: (folder / "config.json").unlink(), r"there is no model in .* \(no config.json\)"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"no tokenizer in"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), r"cannot read a model"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_left(released, tmp_path, capsys, spoil, message):
    spoil(released)
    with pytest.raises(ArtifactError, match=message):
        import_folder(released, tmp_path / "out")
    assert "never be printed" not in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"ml-embed"}


def test_what_is_there_is_never_overwritten(released, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match="out exists already"):
        import_folder(released, tmp_path / "out")
