"""What a preset takes before it is started: parameters, memory of one GPU, disk of each stage (``mlembed doctor --preset NAME``), and
with ``--machines`` the time on a cluster.

Parameters are counted on a model without memory (torch's meta device), so they are exact for any architecture. Memory adds what a
training keeps: float32 weights, gradients and AdamW's two moments, on every GPU the same or split over several (the launch profile
fsdp2); activations are estimated from the shape.
Disk follows the file formats; texts are taken to have the recipe's length where there is nothing to measure yet. Time is counted:
multiplications and bytes on the network, at rates that are given; none is measured here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlembed_core.artifacts import read_json
from mlembed_core.config.axes import resolve_axes
from mlembed_core.config.data import LocalOrigin, TrainedTokenizer
from mlembed_core.config.model import RandomBackbone
from mlembed_core.config.params import Params
from mlembed_core.config.train import Checkpointing
from mlembed_core.errors import ConfigError

QWEN3_VOCABULARY = 151_936  # rows of Qwen3's table, until the preset's tokenizer is there to be asked
WEIGHT_BYTES = 4  # float32, in training and on disk
STATE_BYTES = 16  # of a trained weight: itself, its gradient and two moments
SAVED_STATE_BYTES = 12  # the same without the gradient, in a resume state
ACTIVATION_BYTES = 2  # bf16
MEAN_TOKENS = 80  # of a text, the mean of the benchmarks' log-normal lengths
TEXTS_PER_ROW = 2  # a query and a passage; negatives are passages of other rows
MAX_NEGATIVES = 24
SPLIT_OVER = 8  # GPUs of the launch profile fsdp2
GATHERED_LAYERS = 2  # whole at a time where weights are split: the one that computes, and the next
DEFAULT_ROWS = 18_000_000  # of the recipe's stage 2
# Rates until somebody has measured theirs: a third of an H100's dense bf16 peak (989 TFLOP/s by its data sheet), a 400 Gbit/s card per GPU.
ASSUMED_TFLOPS, ASSUMED_GBITS = 330.0, 3200.0


@dataclass(frozen=True)
class Parameters:
    """Of the stock model with a dense table."""

    table: int
    layers: int
    other: int

    @property
    def total(self) -> int:
        return self.table + self.layers + self.other


@dataclass(frozen=True)
class Budget:
    """Bytes, by what they are for.

    Attributes:
        gpu: setting → part → bytes on each GPU that holds all weights.
        gpu_split: the same where the weights are split over ``SPLIT_OVER`` GPUs.
        disk: stage → bytes; DVC keeps another copy unless the file system shares it.
    """

    preset: str
    parameters: Parameters
    rows: int
    gpu: dict[str, dict[str, int]]
    gpu_split: dict[str, dict[str, int]]
    disk: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_parameters": self.parameters.total}


def estimate(params: Params, *, root: Path, rows: int | None = None) -> Budget:
    """The budget of a parameter file.

    Args:
        root: of the workspace, where the tokenizer and the sources' files may be already.
        rows: over all sources; None: the recipe's 18 million.

    Raises:
        ConfigError: the backbone's shape is not in the parameters.
    """
    count = count_parameters(params, root=root)
    rows = rows or DEFAULT_ROWS
    vocabulary = _vocabulary(params, root)
    gpu, split = ({name: _memory(params, name, count, vocabulary, over=over) for name in params.settings} for over in (1, SPLIT_OVER))
    return Budget(params.name, count, rows, gpu, split, _disk(params, count, rows, root))


@dataclass(frozen=True)
class Cluster:
    """Machines with ``SPLIT_OVER`` GPUs each.

    Attributes:
        tflops: 10¹² operations a second that a training step reaches on one GPU (``benchmarks.train_step --device cuda``).
        gbits: of the network, 10⁹ bits a second in each direction of one machine.
    """

    machines: int
    tflops: float = ASSUMED_TFLOPS
    gbits: float = ASSUMED_GBITS

    @property
    def gpus(self) -> int:
        return self.machines * SPLIT_OVER


@dataclass(frozen=True)
class Duration:
    """Of the training of one setting on a cluster.

    Attributes:
        flops: of a step, over all GPUs.
        compute: seconds of a step.
        network: seconds of a step in which gradients are summed over the machines, every GPU holding all weights.
        network_split: the same, and weights gathered, where all GPUs of the cluster split the weights; in part while they compute.
    """

    steps: int
    tokens_per_gpu: int
    flops: float
    compute: float
    network: float
    network_split: float

    @property
    def hours(self) -> float:
        return self.steps * (self.compute + self.network) / 3600

    @property
    def hours_split(self) -> tuple[float, float]:
        """At best (the network waits for nobody) and at worst (one after the other)."""
        best, worst = max(self.compute, self.network_split), self.compute + self.network_split
        return self.steps * best / 3600, self.steps * worst / 3600

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "hours": self.hours, "hours_split": self.hours_split}


def durations(params: Params, cluster: Cluster, *, root: Path, rows: int | None = None) -> dict[str, Duration]:
    """Setting → how long its training takes. Data, scores and a teacher's vectors come on top.

    Raises:
        ConfigError: the backbone's shape is not in the parameters.
    """
    count, vocabulary = count_parameters(params, root=root), _vocabulary(params, root)
    return {name: _duration(params, name, count, vocabulary, cluster, rows or DEFAULT_ROWS) for name in params.settings}


def _duration(params: Params, name: str, count: Parameters, vocabulary: int, cluster: Cluster, rows: int) -> Duration:
    assert isinstance(params.backbone, RandomBackbone)
    train, mel, hidden = params.train, params.settings[name].mel, params.backbone.shape["hidden_size"]
    tokens = train.batch_size * _texts_of_a_row(params) * MEAN_TOKENS
    per_gpu = tokens // cluster.gpus
    # Two operations per weight and token forward, four backward; whatever is computed again is another two. Attention over texts of
    # this length is a few percent, and vectors of texts, not tokens, are compared.
    passes = 6
    if train.activation_checkpointing is Checkpointing.FULL:
        passes += 2
    if train.grad_cache_tokens is not None and per_gpu > train.grad_cache_tokens:
        passes += 2
    multiplied = count.layers + (0 if mel is None else mel.rank * hidden)
    flops = float(passes * multiplied * tokens)
    table = count.table if mel is None else mel.rank * (vocabulary + hidden)
    rest, layers = table + count.other, count.layers
    between = (cluster.machines - 1) / cluster.machines / (cluster.gbits * 1e9 / 8)  # seconds a byte: the own share does not travel
    # A ring moves what is summed twice. Split weights travel in bf16 to every pass over the layers, forward and backward; their gradients,
    # and the table's both, in float32, once.
    bucket = train.bucket_tokens or train.grad_cache_tokens or per_gpu
    buckets = max(1, -(-per_gpu // bucket))
    split = layers * (2 * buckets * ACTIVATION_BYTES + buckets * WEIGHT_BYTES) + rest * 2 * WEIGHT_BYTES
    return Duration(
        steps=train.num_steps or rows // train.batch_size * train.num_epochs,
        tokens_per_gpu=per_gpu,
        flops=flops,
        compute=flops / (cluster.gpus * cluster.tflops * 1e12),
        network=2 * WEIGHT_BYTES * (layers + rest) * between,
        network_split=split * between,
    )


def _texts_of_a_row(params: Params) -> int:
    """In a step: query, positive and the hard negatives drawn, of the kind of source that draws the most."""
    return TEXTS_PER_ROW + max(objective.num_hard_negatives for objective in params.train.objectives.values())


def count_parameters(params: Params, *, root: Path) -> Parameters:
    """Parameters of the preset's backbone, from a model that takes no memory.

    Raises:
        ConfigError: a backbone whose shape stands elsewhere (a folder, the hub, the registry).
    """
    if not isinstance(params.backbone, RandomBackbone):
        raise ConfigError(
            f"backbone.type={params.backbone.type}: its shape stands in its own files; a budget needs one in the parameters (type: random)"
        )
    import torch

    from mlembed_core.model.architecture import form_of
    from mlembed_core.model.resolve import random_backbone

    backbone = params.backbone.model_copy(update={"config": params.backbone.shape})
    with torch.device("meta"):
        model: Any = random_backbone(backbone, vocab_size=_vocabulary(params, root), seed=0)
    table = model.get_input_embeddings().weight.numel()
    layers = sum(parameter.numel() for parameter in model.get_submodule(form_of(model).layers).parameters())
    return Parameters(table, layers, sum(parameter.numel() for parameter in model.parameters()) - table - layers)


def _vocabulary(params: Params, root: Path) -> int:
    if isinstance(params.tokenizer, TrainedTokenizer):
        return params.tokenizer.vocab_size
    file = root / getattr(params.tokenizer, "path", "data/tokenizer") / "tokenizer.json"
    if not file.is_file():
        return QWEN3_VOCABULARY
    tokenizer = read_json(file)
    return len({*tokenizer["model"]["vocab"], *(token["content"] for token in tokenizer.get("added_tokens", []))})


def _memory(params: Params, name: str, count: Parameters, vocabulary: int, *, over: int) -> dict[str, int]:
    """Of one GPU, with its part of the weights where they are split over several."""
    assert isinstance(params.backbone, RandomBackbone)
    config, setting = params.backbone.shape, params.settings[name]
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    exits = resolve_axes(name, setting, hidden=hidden, layers=layers).mll_layers
    table = count.table if setting.mel is None else setting.mel.rank * (vocabulary + hidden)
    trained = count.layers + count.other + table
    train = params.train
    tokens = train.grad_cache_tokens or train.batch_size * TEXTS_PER_ROW * MEAN_TOKENS
    kept = layers * _matrix_outputs(config)
    if train.activation_checkpointing is Checkpointing.FULL:
        tokens = min(tokens, train.bucket_tokens or tokens)  # one bucket is computed again at a time
    if train.activation_checkpointing is not Checkpointing.SELECTIVE:
        kept *= 2  # what norms, activations and products of elements keep
    texts = train.batch_size * _texts_of_a_row(params)
    # The table and its gradient are whole for the length of a step, layers one after the other.
    gathered = 2 * table + GATHERED_LAYERS * 2 * count.layers // layers if over > 1 else 0
    return {
        "weights, gradients and moments": trained * STATE_BYTES // over + gathered * WEIGHT_BYTES,
        "activations (estimated)": tokens * kept * ACTIVATION_BYTES,
        "vectors of the batch": texts * len(exits) * hidden * WEIGHT_BYTES,
    }


def _matrix_outputs(config: dict[str, Any]) -> int:
    """Numbers per token and layer that matrix products and attention give: q, k, v, attention, o, gate, up and down."""
    hidden, heads = config["hidden_size"], config.get("num_attention_heads", 1)
    width = config.get("head_dim", config["hidden_size"] // heads)
    queries, keys = heads * width, config.get("num_key_value_heads", heads) * width
    return int(2 * queries + 2 * keys + 2 * hidden + 2 * config["intermediate_size"])


def _disk(params: Params, count: Parameters, rows: int, root: Path) -> dict[str, int]:
    tokens = rows * TEXTS_PER_ROW * MEAN_TOKENS
    # The cache's flat files: token ids of 4 bytes; offsets, two text numbers, a label and 24 negatives of 8 (data/store.py).
    cache = tokens * 4 + rows * 8 * (TEXTS_PER_ROW + 2 + 1 + MAX_NEGATIVES)
    model = count.total * WEIGHT_BYTES
    disk = {"source": _source_bytes(params, root), "tokenize": tokens * 2, "cache": cache, "backbone": model}
    for name, setting in params.settings.items():
        assert isinstance(params.backbone, RandomBackbone)
        hidden = params.backbone.shape["hidden_size"]
        factors = 0 if setting.mel is None else setting.mel.rank * (count.table // hidden + hidden)
        trained = count.total - (count.table - factors if factors else 0)
        disk[f"train@{name}"] = model + factors * WEIGHT_BYTES
        disk[f"train@{name}, resume states"] = params.train.kept_checkpoints * trained * SAVED_STATE_BYTES
    return disk


def _source_bytes(params: Params, root: Path) -> int:
    """As much as the files that the sources read, as far as they are there."""
    origins = [source.origin for source in params.sources.values() if isinstance(source.origin, LocalOrigin)]
    return sum(path.stat().st_size for origin in origins for pattern in origin.patterns for path in pattern.matches(root))
