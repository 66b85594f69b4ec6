"""Oracle: joined texts give what each text gives alone, on CPUs (attention a text at a time, causal models) and on CUDA. CUDA's kernel is
replaced by a plain one with its signature; the test that runs the real one needs a GPU.
"""

import inspect

import pytest
import torch
from torch.nn.attention.varlen import varlen_attn

from mlembed_core.config.base import Precision
from mlembed_core.config.model import Pooling
from mlembed_core.config.train import Checkpointing
from mlembed_core.model import attention
from mlembed_core.model.architecture import is_causal
from mlembed_core.model.attention import BY_TEXT, VARLEN, choose_attention
from mlembed_core.model.network import Network
from mlembed_core.model.pack import pack

from .architectures import CASES, LAYERS, VOCAB, one_by_one, stock, texts

# Neither way has a soft cap of the logits.
JOINED_CASES = [
    (name, pooling, way)
    for name, pooling in CASES
    for way in (VARLEN, BY_TEXT)
    if name != "gemma2" and (way == VARLEN or is_causal(stock(name)))
]


def plain_kernel(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
    """softmax(q kᵀ · scale) v of each text, of tokens at most ``window_size`` away (−1: any)."""
    assert torch.equal(cu_seq_q, cu_seq_k)
    assert cu_seq_q.dtype is torch.int32
    assert max_q == max_k == int(cu_seq_q.diff().max())
    if enable_gqa:
        key, value = (state.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for state in (key, value))
    outputs = []
    for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (state[start:stop].transpose(0, 1) for state in (query, key, value))
        distance = torch.arange(stop - start)[None, :] - torch.arange(stop - start)[:, None]  # of the key from the query
        behind, ahead = window_size
        seen = ((behind < 0) | (distance >= -behind)) & ((ahead < 0) | (distance <= ahead))
        scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -torch.inf)
        outputs.append((scores.softmax(dim=-1) @ v).transpose(0, 1))
    return torch.cat(outputs)


@pytest.fixture
def kernel(monkeypatch):
    def bound(*arguments, **options):
        inspect.signature(varlen_attn).bind(*arguments, **options)  # what the real one would refuse
        return plain_kernel(*arguments, **options)

    monkeypatch.setattr(attention, "varlen_attn", bound)


def joined_network(name, pooling, way, **options):
    model = stock(name)
    model.set_attn_implementation(way)
    return Network(model, pooling=pooling, **options)


@pytest.mark.parametrize(("name", "pooling", "way"), JOINED_CASES)
@pytest.mark.parametrize("max_tokens", [None, 90])
def test_joined_equals_one_by_one(kernel, name, pooling, way, max_tokens):
    ids = texts(count=12)
    network = joined_network(name, pooling, way).eval()
    assert network.joins_texts
    with torch.no_grad():
        states = network(pack(ids, joined=True, max_tokens=max_tokens), [LAYERS])[0]
    expected = one_by_one(stock(name), ids, pooling)
    assert (states - expected).norm() < 1e-5 * expected.norm()  # float32 inside the stock norms


@pytest.mark.parametrize(
    ("name", "pooling", "way"),
    [
        ("qwen3", Pooling.LAST, VARLEN),
        ("modernbert", Pooling.MEAN, VARLEN),
        ("xlm_roberta", Pooling.CLS, VARLEN),
        ("qwen3", Pooling.LAST, BY_TEXT),
        ("gemma3", Pooling.MEAN, BY_TEXT),  # a sliding window, which some of the texts are longer than
    ],
)
@pytest.mark.parametrize("checkpointing", list(Checkpointing))
def test_gradients_of_joined_texts_equal_those_of_rectangles(kernel, name, pooling, way, checkpointing):
    ids, exits = texts(count=12), [1, 3, LAYERS]
    joined, rectangles = joined_network(name, pooling, way, rank=8).train(), Network(stock(name), pooling=pooling, rank=8)
    joined.checkpointing = checkpointing
    for network in (joined, rectangles):
        network(pack(ids, joined=network.joins_texts, max_tokens=100), exits).sin().sum().backward()
    for (key, parameter), other in zip(joined.named_parameters(), rectangles.parameters(), strict=True):
        if parameter.requires_grad:
            assert (parameter.grad - other.grad).norm() < 1e-5 * other.grad.norm() + 1e-10, key


@pytest.mark.parametrize("way", [VARLEN, BY_TEXT])
def test_a_joined_neighbour_does_not_leak(kernel, way):
    ids = texts(count=6)
    changed = [ids[0], *[(text - 1) % (VOCAB - 2) + 2 for text in ids[1:]]]
    network = joined_network("qwen3", Pooling.LAST, way).eval()
    with torch.no_grad():
        before, after = (network(pack(some, joined=True), [LAYERS])[0] for some in (ids, changed))
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize(
    ("name", "device", "precision", "chosen"),
    [
        ("qwen3", "cpu", Precision.BF16, BY_TEXT),
        ("qwen3", "cuda", Precision.BF16, VARLEN),
        ("qwen3", "cuda", Precision.FP32, "sdpa"),
        ("qwen3", "cpu", Precision.FP32, BY_TEXT),
        ("bert", "cpu", Precision.BF16, attention.FLOAT32),
        ("bert", "cpu", Precision.FP32, "sdpa"),
        ("gemma2", "cuda", Precision.BF16, "eager"),  # a soft cap
        ("gemma2", "cpu", Precision.BF16, "eager"),
    ],
)
def test_attention_is_chosen_by_device_and_precision(name, device, precision, chosen):
    model = stock(name)
    choose_attention(model, device=torch.device(device), precision=precision)
    assert model.config._attn_implementation == chosen


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: the varlen kernel has no other backend")
@pytest.mark.parametrize("name", ["qwen3", "gemma3", "bert", "modernbert"])
def test_the_real_kernel_equals_rectangles_on_cuda(name):
    ids, exits, device = texts(count=40), [1, LAYERS], torch.device("cuda")
    gradients = []
    for joined in (False, True):
        network = Network(stock(name).float()).to(device).train()
        if joined:
            choose_attention(network.backbone, device=device, precision=Precision.BF16)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            states = network([bucket.to(device) for bucket in pack(ids, joined=joined)], exits)
        states.float().sin().sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.requires_grad]))
    # bfloat16 has 8 bits of mantissa, and the two kernels add in different orders.
    assert (gradients[0] - gradients[1]).norm() < 0.05 * gradients[0].norm()
