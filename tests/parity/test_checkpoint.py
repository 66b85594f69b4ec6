"""Oracle: the saved folder gives equal vectors in our encoder, in plain sentence-transformers and in plain transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from mlembed_core.config.model import Pooling
from mlembed_core.errors import ArtifactError, SubmodelError
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.encoder import Encoder, weights_hash
from mlembed_core.model.network import Network
from tests.tiny import tiny_qwen3, tokenizer_folder

from .architectures import one_by_one, stock

TEXTS = ["a", "hello world", "", "a longer text, long enough to be cut by the limit of tokens", "ünïcödé 🦉"]
TOLERANCE = 1e-5  # what the README promises; float32 and other orders of summation


@pytest.fixture(scope="module", params=[None, 8], ids=["dense", "mel"])
def folder(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("model")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64}
    model = tiny_qwen3(seed=0, vocab_size=258, **shape, rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    out = base / "checkpoint"
    out.mkdir()
    write_checkpoint(
        out,
        Network(model, rank=request.param),
        tokenizer_folder=tokenizer_folder(base / "tokenizer"),
        details={"mrl_dims": [8, 32]},
    )
    return out


def test_plain_transformers_gives_equal_vectors(folder):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    pooled = hidden[torch.arange(len(TEXTS)), batch["attention_mask"].sum(1) - 1]
    theirs = torch.nn.functional.normalize(pooled, dim=1).numpy()
    np.testing.assert_allclose(Encoder.from_folder(folder).encode_documents(TEXTS), theirs, atol=TOLERANCE)


def test_plain_sentence_transformers_gives_equal_vectors(folder):
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(Encoder.from_folder(folder).encode_documents(TEXTS), theirs, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("llama", Pooling.LAST),
        ("llama", Pooling.MEAN),
        ("gemma3", Pooling.LAST),
        ("gemma3_bidirectional", Pooling.MEAN),
        ("bert", Pooling.MEAN),
        ("bert", Pooling.CLS),
        ("xlm_roberta", Pooling.MEAN),
        ("modernbert", Pooling.CLS),
    ],
)
def test_other_architectures_give_equal_vectors_everywhere(name, pooling, tmp_path):
    from sentence_transformers import SentenceTransformer

    out = tmp_path / "checkpoint"
    out.mkdir()
    network = Network(stock(name, vocab_size=258).float(), rank=8, pooling=pooling)
    write_checkpoint(out, network, tokenizer_folder=tokenizer_folder(tmp_path / "tokenizer"), details={})
    encoder = Encoder.from_folder(out)
    assert encoder.network.pooling is pooling
    ours = encoder.encode_documents(TEXTS)
    np.testing.assert_allclose(ours, SentenceTransformer(str(out), device="cpu").encode(TEXTS), atol=TOLERANCE)

    model = AutoModel.from_pretrained(out).eval()
    plain = one_by_one(model, [np.asarray(ids) for ids in encoder.token_ids(TEXTS)], pooling)
    np.testing.assert_allclose(ours, torch.nn.functional.normalize(plain, dim=1).numpy(), atol=TOLERANCE)

    cut = encoder.exit_states(TEXTS, rank=4, layers=[2])[0]
    expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
    np.testing.assert_allclose(Encoder.from_folder(out, layers=2, rank=4).encode_documents(TEXTS), expected, atol=1e-6)


def test_vectors_are_of_unit_length_at_every_cut(folder):
    for layers, dim, rank in ((None, None, None), (1, 8, 4), (2, 5, 1)):
        vectors = Encoder.from_folder(folder, layers=layers, dim=dim, rank=rank).encode_documents(TEXTS)
        assert vectors.shape == (len(TEXTS), dim or 32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_a_cut_serves_what_one_pass_at_full_depth_shows(folder):
    whole = Encoder.from_folder(folder)
    states = whole.exit_states(TEXTS, rank=4, layers=[1, 2, 3])
    for layers in (1, 2, 3):
        cut = states[layers - 1, :, :8]
        expected = cut / np.linalg.norm(cut, axis=1, keepdims=True)
        np.testing.assert_allclose(Encoder.from_folder(folder, layers=layers, dim=8, rank=4).encode_documents(TEXTS), expected, atol=1e-6)


def test_an_instruction_stands_in_front_of_queries_only(folder):
    encoder = Encoder.from_folder(folder)
    np.testing.assert_array_equal(encoder.encode_queries(["x"]), encoder.encode_documents(["x"]))
    np.testing.assert_array_equal(
        encoder.encode_queries(["x"], instruction="Find it"), encoder.encode_documents(["Instruct: Find it\nQuery: x"])
    )


def test_batches_do_not_change_vectors(folder):
    encoder = Encoder.from_folder(folder)
    np.testing.assert_allclose(encoder.encode_documents(TEXTS, batch_tokens=1), encoder.encode_documents(TEXTS), atol=1e-6)


def test_parameters_of_a_cut_are_counted(folder):
    encoder = Encoder.from_folder(folder)
    full, cut = encoder.num_parameters(encoder.shape.full), encoder.num_parameters(type(encoder.submodel)(1, 8, 4))
    assert cut["table"] == 4 * (258 + 32)
    assert full["layers"] == 3 * cut["layers"]


def test_cuts_that_do_not_exist_and_damaged_folders_are_refused(folder, tmp_path):
    with pytest.raises(SubmodelError, match=r"layers=4 is out of range: this model has layers 1 … 3"):
        Encoder.from_folder(folder, layers=4)
    with pytest.raises(ArtifactError, match="no checkpoint of this project"):
        Encoder.from_folder(tmp_path)


def test_a_truncated_weight_file_is_named(folder, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=str(copy)):
        Encoder.from_folder(copy)
    assert weights_hash(copy) != weights_hash(folder)
