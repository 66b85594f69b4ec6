"""The token table as a product of two factors, and its truncated SVD (MEL, ML-Embed arXiv 2605.15081).

Shapes: ``vocab`` V, ``hidden`` D, ``rank`` r. U is (V, r) and carries the singular values, V is (r, D).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional


class LowRankEmbedding(nn.Module):
    """Looks tokens up in U, then multiplies the few rows found by V. The full product V × D is never built."""

    def __init__(self, u: Float[Tensor, "vocab rank"], v: Float[Tensor, "rank hidden"]) -> None:
        super().__init__()
        self.u = nn.Parameter(u)
        self.v = nn.Parameter(v)

    @property
    def rank(self) -> int:
        return self.u.shape[1]

    def look_up(self, ids: Int[Tensor, "*tokens"], rank: int | None = None) -> Float[Tensor, "*tokens rank"]:
        """Rows of U, the first ``rank`` columns (None: all). Apart from :meth:`expand`, so that one look-up serves all buckets: its
        backward pass fills a gradient of U's size with zeros.
        """
        return functional.embedding(ids, self.u)[..., :rank]

    def expand(self, rows: Float[Tensor, "*tokens rank"]) -> Float[Tensor, "*tokens hidden"]:
        """Embeddings from what was looked up."""
        return rows @ self.v[: rows.shape[-1]]

    @torch.no_grad()
    def product(self, rank: int | None = None) -> Float[Tensor, "vocab hidden"]:
        """The dense table that the factors stand for."""
        return self.u[:, :rank] @ self.v[:rank]


@torch.no_grad()
def factorise(table: Float[Tensor, "vocab hidden"], rank: int) -> tuple[Float[Tensor, "vocab rank"], Float[Tensor, "rank hidden"]]:
    """The best factors of ``rank`` for a dense table: truncated SVD, singular values folded into U.

    Computed from the eigenvectors of TᵀT (D × D) in float64: a table has many more rows than columns, and this is exact to
    float32 at a fraction of the cost of a full SVD. Signs are fixed (largest entry of each row of V positive), so that the result
    does not depend on the LAPACK build's choice.
    """
    wide = table.double()
    _, eigenvectors = torch.linalg.eigh(wide.T @ wide)  # ascending
    v = eigenvectors.flip(1)[:, :rank].T
    peaks = v.gather(1, v.abs().argmax(dim=1, keepdim=True))
    v = v * torch.where(peaks < 0, -1.0, 1.0)
    return (wide @ v.T).to(table.dtype).contiguous(), v.to(table.dtype).contiguous()
