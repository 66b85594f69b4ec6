"""Low-rank adapters (Hu et al., LoRA, arXiv 2106.09685) on the backbone's linear layers, through peft: trained in place of the
weights, merged into them at the end, so that the checkpoint is a plain one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mlembed_core.config.settings import LoraParams
from mlembed_core.errors import ConfigError, MachineError
from mlembed_core.model.architecture import set_submodule
from mlembed_core.model.low_rank import LowRankEmbedding
from mlembed_core.model.network import Network


def add_adapters(network: Network, params: LoraParams, *, seed: int) -> None:
    """Freeze ``network`` but for adapters, which change nothing before the first step (B starts at zero).

    A factorised table goes on training beside them, having lost what lies beyond its rank; a dense one is frozen.

    Raises:
        ConfigError: no linear layer has the name of a target.
        MachineError: peft is not installed.
    """
    peft = _peft()
    linear = {name: name.rsplit(".", 1)[-1] for name, module in network.layers.named_modules() if isinstance(module, nn.Linear)}
    unknown = set(params.target_modules or ()) - set(linear.values())
    if unknown:
        raise ConfigError(
            f"lora.target_modules={sorted(unknown)}: {type(network.backbone).__name__} has no such linear layers (there are: "
            f"{', '.join(sorted(set(linear.values())))}). Use some of these, or null for all."
        )
    wanted = [
        f"{network.layers_name}.{name}" for name, leaf in linear.items() if params.target_modules is None or leaf in params.target_modules
    ]
    network.requires_grad_(requires_grad=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=params.rank, lora_alpha=params.alpha, target_modules=wanted, lora_dropout=0.0)
        peft.inject_adapter_in_model(config, network.backbone)
    if isinstance(network.embedding, LowRankEmbedding):
        network.embedding.requires_grad_(requires_grad=True)


def merge_adapters(network: Network) -> None:
    """Add what the adapters learned to the weights, and take them out."""
    adapted = _peft().tuners.lora.LoraLayer
    for name, module in list(network.backbone.named_modules()):
        if isinstance(module, adapted):
            module.merge(safe_merge=True)  # refuses values that are not finite
            set_submodule(network.backbone, name, module.get_base_layer())
    network.train_everything()


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MachineError("settings with lora need peft; install it with `pip install -c constraints.txt -e .[lora]`") from error
    return peft
