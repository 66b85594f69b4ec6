"""A checkpoint folder at one submodel, for inference: texts in, unit vectors out.

Shapes: ``text`` number of texts, ``exit`` depths, ``hidden`` D, ``dim`` ≤ D.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mlembed_core.artifacts import sha256_file
from mlembed_core.config.base import Precision
from mlembed_core.config.grid import Shape, Submodel, resolve_submodel
from mlembed_core.config.model import Pooling
from mlembed_core.errors import ArtifactError
from mlembed_core.model.attention import choose_attention
from mlembed_core.model.checkpoint import FACTORS, read_facts
from mlembed_core.model.low_rank import LowRankEmbedding
from mlembed_core.model.network import Network
from mlembed_core.model.resolve import load_folder
from mlembed_core.prompts import format_query

DEFAULT_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class TrainedAxes:
    """What a checkpoint was trained for; None where that is not known or the axis was off."""

    mrl_dims: tuple[int, ...] | None
    mll_layers: tuple[int, ...] | None
    mel_ranks: tuple[int, ...] | None


class Encoder:
    """A model that turns texts into vectors of unit length.

    Attributes:
        shape: the full size of the checkpoint.
        submodel: the cut that ``encode_*`` serve.
        axes: what the checkpoint was trained for.
        max_length: tokens of one text, EOS included; longer texts are cut.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Any,
        *,
        max_length: int,
        axes: TrainedAxes,
        submodel: Submodel | None = None,
        precision: Precision = Precision.FP32,
    ) -> None:
        self.network = network.eval()
        self.shape: Shape = network.shape
        self.submodel = submodel or self.shape.full
        self.axes = axes
        self.max_length = max_length
        self._device = next(network.parameters()).device
        self._precision = precision
        choose_attention(network.backbone, device=self._device, precision=precision)
        self._tokenizer = tokenizer
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_length=max_length)

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        *,
        layers: int | None = None,
        dim: int | None = None,
        rank: int | None = None,
        precision: Precision = Precision.FP32,
    ) -> Encoder:
        """Open a checkpoint that this project wrote.

        Args:
            folder: with ``config.json``, ``model.safetensors``, ``tokenizer.json`` and ``mlembed.json``.
            layers, dim, rank: the submodel; None leaves that axis whole.
            precision: bf16 is about twice as fast where the processor has it; vectors differ by some 1e-3.

        Raises:
            ArtifactError: a file is missing, damaged or of another format version.
            SubmodelError: a cut larger than the model.
        """
        facts = read_facts(folder)
        submodel = resolve_submodel(Shape(**facts["shape"]), layers=layers, dim=dim, rank=rank)
        network = Network(load_folder(folder), pooling=Pooling(facts["pooling"]))
        if (folder / FACTORS).is_file():
            network.embedding = LowRankEmbedding(*_read_factors(folder / FACTORS))
        encoder = cls.around(network, folder, submodel=submodel, precision=precision)
        if layers is not None:
            # Layers above the cut would only cost time and memory.
            network.cut(layers)
        return encoder

    @classmethod
    def around(cls, network: Network, folder: Path, *, submodel: Submodel, precision: Precision) -> Encoder:
        """An encoder of ``network`` with the tokenizer and the facts (length limit, trained sizes) of a checkpoint folder.

        Raises:
            ArtifactError: see :meth:`from_folder`.
        """
        from tokenizers import Tokenizer

        facts = read_facts(folder)
        return cls(
            network.requires_grad_(requires_grad=False),
            Tokenizer.from_file(str(folder / "tokenizer.json")),
            max_length=facts["max_length"],
            axes=TrainedAxes(*(None if facts[axis] is None else tuple(facts[axis]) for axis in ("mrl_dims", "mll_layers", "mel_ranks"))),
            submodel=submodel,
            precision=precision,
        )

    def to(self, device: torch.device) -> Encoder:
        """Move the weights to ``device``, where texts are encoded from now on; the encoder itself."""
        if device != self._device:
            self.network.to(device)
            self._device = device
            choose_attention(self.network.backbone, device=device, precision=self._precision)
        return self

    def encode_documents(self, texts: Sequence[str], *, batch_tokens: int = DEFAULT_BATCH_TOKENS) -> Float32[NDArray[Any], "text dim"]:
        """Unit vectors of documents, which take no prompt."""
        sub = self.submodel
        return unit_vectors(self.exit_states(texts, rank=sub.rank, layers=[sub.layers], batch_tokens=batch_tokens)[0], sub.dim)

    def encode_queries(
        self, texts: Sequence[str], *, instruction: str | None = None, batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> Float32[NDArray[Any], "text dim"]:
        """Unit vectors of queries, each behind the instruction's prompt where one is given."""
        return self.encode_documents([format_query(text, instruction) for text in texts], batch_tokens=batch_tokens)

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids as the model sees them, EOS last."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def exit_states(
        self, texts: Sequence[str], *, rank: int, layers: Sequence[int], batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> Float32[NDArray[Any], "exit text hidden"]:
        """Pooled hidden states after the final norm, at several depths from one pass; neither cut in dim nor of unit length.

        Args:
            texts: with their prompts already in front.
            rank: of the token table.
            layers: the depths to read out.
            batch_tokens: how many tokens to encode at a time.
        """
        return self.exit_states_of_ids(self.token_ids(texts), rank=rank, layers=layers, batch_tokens=batch_tokens)

    @torch.inference_mode()
    def exit_states_of_ids(
        self, ids: Sequence[Sequence[int]], *, rank: int, layers: Sequence[int], batch_tokens: int = DEFAULT_BATCH_TOKENS
    ) -> Float32[NDArray[Any], "exit text hidden"]:
        """As :meth:`exit_states`, of texts that are token ids already (:meth:`token_ids`)."""
        states = np.empty((len(layers), len(ids), self.shape.dim), dtype=np.float32)
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._precision is Precision.BF16):
            for rows, pooled in self.network.by_bucket(ids, layers, rank, max_tokens=batch_tokens):
                states[:, rows] = pooled.float().cpu().numpy()
        return states

    def num_parameters(self, submodel: Submodel) -> dict[str, int]:
        """Parameters of the physically cut model: its ``table`` (factorised where that is smaller), ``layers`` and ``other``.

        A cut in dim shortens the output vector, not the weights.
        """
        vocab, hidden = self.shape.vocab, self.shape.dim
        per_layer = [_size(layer) for layer in self.network.layers]
        return {
            "table": min(vocab * hidden, submodel.rank * (vocab + hidden)),
            "layers": sum(per_layer[: submodel.layers]),
            "other": _size(self.network.backbone) - sum(per_layer) + _size(self.network.norm),
        }


def usual_device() -> torch.device:
    """The first GPU that this process may use, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def unit_vectors(states: Float32[NDArray[Any], "text hidden"], dim: int) -> Float32[NDArray[Any], "text dim"]:
    """The first ``dim`` entries of pooled states, scaled to length 1."""
    cut = states[:, :dim]
    norms = np.linalg.norm(cut, axis=1, keepdims=True)
    return np.ascontiguousarray(cut / np.maximum(norms, np.finfo(np.float32).tiny))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _read_factors(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        factors = load_file(path)
        return factors["u"], factors["v"]
    except (SafetensorError, KeyError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Fetch it again with `dvc checkout`.") from error


def weights_hash(folder: Path) -> str:
    """40 hex digits that name a folder's weights: equal weights, equal name."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder} holds no *.safetensors, so there are no weights to name")
    return hashlib.sha256("".join(f"{path.name}:{sha256_file(path)}\n" for path in files).encode()).hexdigest()[:40]
