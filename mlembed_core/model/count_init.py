"""A decoder that starts as a bag-of-words model: weights from counts instead of noise.

A small model trained for minutes never gets past a poor start, so the start carries what counting can give: the token table
holds IDF-weighted vectors (half random, for the identity of words; half from the PPMI matrix between a query's and its passage's
tokens, for what goes with what), the first layer's attention averages them into the EOS token, and every other branch starts at
zero. One coordinate is constant and large, so that the first norm keeps the IDF weights instead of dividing them out.

Levy and Goldberg, "Neural word embedding as implicit matrix factorization" (NeurIPS 2014) for SVD of PPMI.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlembed_core.errors import ConfigError
from mlembed_core.model.architecture import embedding_scale, is_causal

TABLE_RMS = 0.05
QUERY_NORM = 0.1  # small query norms flatten the softmax to a near-uniform average
CONTEXT_POWER = 0.25  # singular values enter to this power: flat enough that rare directions count


@torch.no_grad()
def initialise_from_counts(
    model: nn.Module, pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], *, eos_id: int, seed: int
) -> None:
    """Overwrite the weights of a random decoder in place.

    Args:
        model: Qwen3 or a decoder of its form, all heads together as wide as the hidden state.
        pairs: token ids of (query, passage), without padding.
        eos_id: the pooled token; its row is zero, so that the residual stream there starts empty.

    Raises:
        ConfigError: no decoder of that form, or the attention's width is not the hidden size, so that its value path cannot be the
            identity.
    """
    network = cast("Any", model)
    if not is_causal(model) or embedding_scale(network.get_input_embeddings()) != 1:
        raise ConfigError(
            f"backbone.initialisation=counts is made for decoders of the Qwen and Llama form, not for {type(model).__name__}. "
            "Use such a model_type, or initialisation: default."
        )
    table = network.get_input_embeddings().weight
    vocab, hidden = table.shape
    _start_as_average(network, hidden)
    joint, document_frequency, num_texts = _count(pairs, vocab)
    idf = np.log((num_texts + 1) / (document_frequency + 1)) + 1
    generator = torch.Generator().manual_seed(seed)
    width = hidden - 1
    meanings = _ppmi_vectors(joint, width // 2, generator)
    words = torch.randn(vocab, width - width // 2, generator=generator)
    content = torch.cat([_unit_rms(words), _unit_rms(meanings)], dim=1) * torch.from_numpy(idf).float()[:, None]
    content[eos_id] = 0
    # A random rotation spreads both halves over all coordinates, so that no cut of the vector favours one by accident of order.
    content = _unit_rms(content) @ _rotation(width, generator)
    table[:, 1:] = TABLE_RMS * content
    table[:, 0] = TABLE_RMS * float(np.sqrt(hidden)) * 3
    table[eos_id] = 0


def _start_as_average(network: Any, hidden: int) -> None:
    for depth, layer in enumerate(network.layers):
        attention = layer.self_attn
        if attention.v_proj.weight.shape != (hidden, hidden) or attention.o_proj.weight.shape != (hidden, hidden):
            raise ConfigError(
                "backbone.initialisation=counts needs num_attention_heads = num_key_value_heads and head_dim × heads = hidden_size "
                f"(v_proj is {tuple(attention.v_proj.weight.shape)}, hidden_size {hidden}). Use such a shape, or initialisation: default."
            )
        layer.mlp.down_proj.weight.zero_()
        if depth > 0:
            attention.o_proj.weight.zero_()
            continue
        identity = torch.eye(hidden)
        identity[0, 0] = 0  # the constant coordinate stays behind
        attention.v_proj.weight.copy_(identity)
        attention.o_proj.weight.copy_(torch.eye(hidden))
        if hasattr(attention, "q_norm"):
            attention.q_norm.weight.fill_(QUERY_NORM)
        else:
            attention.q_proj.weight.mul_(QUERY_NORM)


def _count(pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], vocab: int) -> tuple[Tensor, NDArray[np.float64], int]:
    """Co-occurrence of query and passage tokens (each pair of texts counts 1 in all), document frequencies, number of texts."""
    rows, columns, weights = [], [], []
    frequency = np.zeros(vocab)
    num_texts = 0
    for query, passage in pairs:
        left, right = np.unique(query), np.unique(passage)
        rows.append(np.repeat(left, len(right)).astype(np.int64))
        columns.append(np.tile(right, len(left)).astype(np.int64))
        weights.append(np.full(len(left) * len(right), 1 / (len(left) * len(right))))
        frequency[left] += 1
        frequency[right] += 1
        num_texts += 2
    if not num_texts:
        raise ConfigError("backbone.initialisation=counts needs rows to count, and no source has any for training")
    cells = np.concatenate(rows) * vocab + np.concatenate(columns)
    joint = np.bincount(cells, weights=np.concatenate(weights), minlength=vocab * vocab).reshape(vocab, vocab)
    return torch.from_numpy(joint), frequency, num_texts


def _ppmi_vectors(joint: Tensor, dims: int, generator: torch.Generator) -> Tensor:
    """Row vectors of the symmetrised PPMI matrix by randomised subspace iteration: (vocab, dims)."""
    joint = joint + joint.T
    total = joint.sum()
    marginal = joint.sum(dim=1)
    smoothed = marginal**0.75  # context smoothing (Levy, Goldberg and Dagan, TACL 2015)
    expected = (marginal[:, None] / total) * (smoothed[None, :] / smoothed.sum())
    ppmi = torch.log((joint / total) / expected.clamp_min(1e-12)).clamp_min(0).nan_to_num(0.0, posinf=0.0, neginf=0.0).float()
    basis = torch.randn(ppmi.shape[1], dims + 16, generator=generator)
    for _ in range(4):
        basis, _ = torch.linalg.qr(ppmi @ (ppmi.T @ basis))
    _, singular, right = torch.linalg.svd(basis.T @ ppmi, full_matrices=False)
    vectors: Tensor = ppmi @ right[:dims].T
    weights: Tensor = singular[:dims].clamp_min(1e-6) ** (CONTEXT_POWER - 1)
    return vectors * weights


def _unit_rms(rows: Tensor) -> Tensor:
    return rows / rows.square().mean().sqrt().clamp_min(1e-12)


def _rotation(size: int, generator: torch.Generator) -> Tensor:
    rotation, upper = torch.linalg.qr(torch.randn(size, size, generator=generator))
    signed: Tensor = rotation * upper.diagonal().sign()
    return signed
