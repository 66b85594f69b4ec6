"""``mlembed import``: a checkpoint from elsewhere becomes one of this project's, to be cut, scored, searched, exported or taught from.

Any stock checkpoint with safetensors will do. The released ML-Embed models are plain Qwen3 folders with the factors of their token
table beside them, ``U.pth`` and ``V.pth`` (arXiv 2605.15081); these are read without unpickling anything but tensors, held against the
table whose product they are, and written as safetensors.

Shapes: ``vocab`` V, ``hidden`` D, ``rank`` r. U is (V, r), V is (r, D).
"""

from __future__ import annotations

import pickle
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlembed_core.artifacts import read_json, sha256_file, write_manifest
from mlembed_core.config.axes import Axes, resolve_axes
from mlembed_core.config.model import Pooling
from mlembed_core.config.settings import MelParams, SettingParams
from mlembed_core.data.tokenize import save_tokenizer
from mlembed_core.errors import ArtifactError
from mlembed_core.export.new_folder import check_is_new, new_folder
from mlembed_core.model.checkpoint import write_checkpoint
from mlembed_core.model.low_rank import LowRankEmbedding
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import check_positions, load_folder
from mlembed_core.stages import tokenizer as tokenizer_stage

FACTOR_FILES = ("U.pth", "V.pth")
MIN_RANK = 64  # the smallest that the recipe trains
MAX_LENGTH = 1024  # tokens of a text in the recipe
# The table is stored in bfloat16 at the least (8 bits of mantissa), and is a sum of r products.
PRODUCT_TOLERANCE = 0.02
COMPARED_ROWS = 1024


@dataclass(frozen=True)
class Imported:
    """What was written; ``rank`` is None for a dense table."""

    folder: str
    architecture: str
    layers: int
    dim: int
    rank: int | None
    vocab: int
    max_length: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def summary(self) -> str:
        table = "a dense table" if self.rank is None else f"a table of rank {self.rank}"
        return (
            f"{self.folder}: {self.architecture}, {self.layers} layers, dim {self.dim}, {table} for {self.vocab:,} tokens. "
            f"Next: mlembed export {self.folder} …, or search --model {self.folder}"
        )


def import_folder(source: Path, target: Path, *, max_length: int | None = None, pooling: Pooling | None = None) -> Imported:
    """Write the checkpoint in ``source`` to the new folder ``target`` in this project's form.

    Args:
        max_length: tokens of a text, EOS included; None takes what the folder says to sentence-transformers, else the recipe's.
        pooling: None: last token of a causal model, mean of a bidirectional one.

    Raises:
        ArtifactError: a file is missing, damaged, unsafe or does not fit the others; ``target`` exists.
        ConfigError: texts of that length are longer than the model has positions for.
    """
    check_is_new(target)
    if not (source / "config.json").is_file():
        raise ArtifactError(f"there is no model in {source} (no config.json). Give a folder in Hugging Face form, with safetensors.")
    tokenizer = tokenizer_stage.take(source)
    network = Network(load_folder(source), pooling=pooling)
    length = max_length or _declared_length(source)
    check_positions(network.backbone, length)
    vocabulary = tokenizer.tokenizer.get_vocab_size()
    if network.shape.vocab < vocabulary:
        raise ArtifactError(
            f"{source}: its token table has {network.shape.vocab} rows, its tokenizer {vocabulary} tokens: not of one model"
        )
    factors = read_factors(source, network.stock_state_dict()[network.table_name])
    if factors is not None:
        network.embedding = LowRankEmbedding(*factors)
    axes = _axes(network, factorised=factors is not None)
    with new_folder(target) as draft, tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        save_tokenizer(tokenizer.tokenizer, scratch, special_tokens=tokenizer.special_tokens, max_length=length)
        write_manifest(scratch, stage="import", params={})
        details = {"setting": None, "mrl_dims": axes.mrl_dims, "mll_layers": axes.mll_layers, "mel_ranks": axes.mel_ranks}
        write_checkpoint(draft, network, tokenizer_folder=scratch, details=details)
        write_manifest(draft, stage="import", params={"max_length": length}, details={"files": _hashes(source)})
    shape = network.shape
    rank = None if factors is None else shape.rank
    return Imported(str(target), type(network.backbone).__name__, shape.layers, shape.dim, rank, shape.vocab, length)


def read_factors(folder: Path, table: Tensor) -> tuple[Tensor, Tensor] | None:
    """U and V of a folder, in float32; None where it has none.

    Args:
        table: (vocab, hidden), the product that the folder's model was saved with.

    Raises:
        ArtifactError: one of the two is missing, is no tensor, or they are not the factors of ``table``.
    """
    present = [name for name in FACTOR_FILES if (folder / name).is_file()]
    if not present:
        return None
    if len(present) < len(FACTOR_FILES):
        raise ArtifactError(f"{folder} holds {present[0]} but not the other of {' and '.join(FACTOR_FILES)}; fetch both, or remove it")
    u, v = (_read_tensor(folder / name) for name in FACTOR_FILES)
    vocab, hidden = table.shape
    if u.shape[0] != vocab or v.shape != (u.shape[1], hidden):
        raise ArtifactError(
            f"{folder}: U.pth has the shape {tuple(u.shape)} and V.pth {tuple(v.shape)}; for the table of this model they must be "
            f"({vocab}, rank) and (rank, {hidden})"
        )
    rows = torch.linspace(0, vocab - 1, min(vocab, COMPARED_ROWS)).long()
    gap = float((u[rows] @ v - table[rows]).abs().max() / table[rows].abs().max())
    if not gap <= PRODUCT_TOLERANCE:
        raise ArtifactError(
            f"{folder}: the product of U.pth and V.pth differs from the model's token table by {gap:.2g} of its largest entry (allowed: "
            f"{PRODUCT_TOLERANCE}); they are of another model, or damaged. Fetch the folder again."
        )
    return u, v


def _read_tensor(path: Path) -> Tensor:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} is damaged, or holds more than tensors, which is not read: a pickle can run code ({str(error).splitlines()[0]})"
        ) from None
    if isinstance(value, dict) and len(value) == 1:  # the state dict of a module with one weight
        value = next(iter(value.values()))
    if not isinstance(value, Tensor) or value.ndim != 2:
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise ArtifactError(f"{path} must hold one matrix, found {found}")
    return value.detach().float().contiguous()


def _declared_length(source: Path) -> int:
    path = source / "sentence_bert_config.json"
    declared = read_json(path).get("max_seq_length") if path.is_file() else None
    return int(declared) if declared else MAX_LENGTH


def _axes(network: Network, *, factorised: bool) -> Axes:
    """What the recipe trains for this shape."""
    shape = network.shape
    mel = MelParams(rank=shape.rank, min_rank=min(MIN_RANK, shape.rank), sampled=True) if factorised else None
    return resolve_axes("imported", SettingParams(mrl="auto", mll="auto", mel=mel), hidden=shape.dim, layers=shape.layers)


def _hashes(source: Path) -> dict[str, str]:
    """Of the files that were read, so that the manifest says what it came from."""
    names = {"config.json", "tokenizer.json", *FACTOR_FILES, *(path.name for path in source.glob("*.safetensors"))}
    return {name: sha256_file(source / name) for name in sorted(names) if (source / name).is_file()}
