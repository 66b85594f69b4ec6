"""What splitting the weights needs without several processes; the rest is held to one process in tests/distributed."""

import torch

from mlembed_core.model.network import Network
from mlembed_core.model.pack import filler, pack
from mlembed_core.train import sharding
from mlembed_core.train.launch import SHARDED
from tests.tiny import tiny_qwen3


def test_one_process_has_nobody_to_share_with(monkeypatch):
    monkeypatch.setenv(SHARDED, "1")
    assert not sharding.asked_for()


def test_a_filler_changes_no_other_state():
    network = Network(tiny_qwen3(seed=0), rank=8)
    buckets = pack([[1, 2, 3], [4, 5]])
    alone = network(buckets, [1, 2])
    filled = network([*buckets, filler(2)], [1, 2])
    assert filled.shape[1] == 3
    torch.testing.assert_close(filled[:, :2], alone, rtol=0, atol=0)


def test_weights_come_back_as_they_were():
    network, other = Network(tiny_qwen3(seed=0), rank=8), Network(tiny_qwen3(seed=1), rank=8)
    sharding.load_from_main(other, sharding.whole_on_main(network.state_dict()))
    for name, value in network.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
