"""Turning a model's coordinates: the residual stream and the heads' values rotated, with norm gains folded.

With R1 (hidden, hidden) orthogonal, h' = h R1 for every hidden state. An RMS norm without a gain commutes with that, so
its gain is folded into the layers that read it first: W' = W diag(gain) R1 there, W' = R1^T W where a layer writes to
the stream. R2 (head_dim, head_dim) turns what attention mixes, head by head: rows of the value projection, columns of
the output projection. Ashkboos et al. 2024, "SliceGPT", arXiv:2401.15024, section 3 (computational invariance); Liu et
al. 2024, "SpinQuant", arXiv:2405.16406, section 3.1, whose names R1 and R2 are.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from suite.models.architecture import Architecture, Site

_ROWS = 1 << 14  # of an embedding, turned at once


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """R1 (hidden, hidden), and R2 (head_dim, head_dim) by block or None; float64, orthogonal."""

    matrix: torch.Tensor
    heads: tuple[torch.Tensor, ...] | None = None

    def __post_init__(self) -> None:
        for R in (self.matrix, *(self.heads or ())):
            if R.ndim != 2 or R.shape[0] != R.shape[1]:
                raise ValueError(f"a rotation is a square matrix, found shape {tuple(R.shape)}")

    def of_head(self, i: int) -> torch.Tensor | None:
        """R2 of block `i`."""
        return None if self.heads is None else self.heads[i]

    @property
    def sha256(self) -> str:
        """A hash of the matrices."""
        digest = hashlib.sha256()
        for R in (self.matrix, *(self.heads or ())):
            digest.update(R.double().contiguous().numpy().tobytes())
        return digest.hexdigest()


def turn_state(
    state: Mapping[str, torch.Tensor], architecture: Architecture, R1: torch.Tensor, R2: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """A block's tensors, by name within it, in turned coordinates: new tensors of their own types.

    Computed in R1's type, and differentiable in both rotations.
    """
    found = dict(state)
    for site in architecture.sites:
        if site.kind == "norm":
            gain = state[f"{site.source}.weight"]
            found[f"{site.source}.weight"] = torch.ones_like(gain)
            for layer in site.layers:
                W = found[f"{layer}.weight"]
                found[f"{layer}.weight"] = turn_columns(W.to(R1.dtype) * gain.to(R1.dtype), R1).to(W.dtype)
    for layer in architecture.writers:
        _turn_output(found, layer, R1)
    if R2 is not None:
        turn_heads(found, values_site(architecture), R2)
    return found


def turn_heads(state: dict[str, torch.Tensor], site: Site, R2: torch.Tensor) -> None:
    """Turn the values of every head in a block's tensors, replacing them."""
    _turn_output(state, site.source, R2)
    for layer in site.layers:
        W = state[f"{layer}.weight"]
        state[f"{layer}.weight"] = turn_columns(W.to(R2.dtype), R2).to(W.dtype)


def values_site(architecture: Architecture) -> Site:
    """The site whose input attention mixes from values, head by head; `ValueError` where a norm comes in between."""
    for site in architecture.sites:
        if site.grouped:
            return site
    raise ValueError(f"{architecture.name} has a norm between values and what reads them: no rotation passes it")


def turn_columns(W: torch.Tensor, R: torch.Tensor) -> torch.Tensor:
    """W diag(R, .., R) for W (out, in) and R (m, m), m dividing in."""
    return W if W.shape[0] == 0 else (W.unflatten(1, (-1, len(R))) @ R).flatten(1)


def turn_rows(W: torch.Tensor, R: torch.Tensor) -> torch.Tensor:
    """diag(R, .., R)^T W for W (out, in), or for a vector (out,)."""
    return turn_columns(W[None], R)[0] if W.ndim == 1 else turn_columns(W.T, R).T


def turn_embedding(W: torch.Tensor, R: torch.Tensor, gain: torch.Tensor | None = None) -> torch.Tensor:
    """W diag(gain) R for an embedding's or a head's weights (vocabulary, hidden), in their own type."""
    folded = (part.to(R.dtype) if gain is None else part.to(R.dtype) * gain.to(R.dtype) for part in W.split(_ROWS))
    return torch.cat([(part @ R).to(W.dtype) for part in folded])


def turn_back(
    Q: torch.Tensor, layer: str, architecture: Architecture, turn: Turn, i: int, gains: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """A turned layer's weights (out, in) in the coordinates of the checkpoint, float64.

    `gains` are the norms' by source. A column behind a gain of 0 cannot be known, and comes back as NaN.
    """
    Q, R2 = Q.double(), turn.of_head(i)
    for site in architecture.sites:
        if layer in site.layers and site.kind == "norm":
            gain = gains[site.source].double()
            Q = turn_columns(Q, turn.matrix.T) / torch.where(gain == 0, torch.nan, gain)
    if layer in architecture.writers:
        Q = turn_rows(Q, turn.matrix.T)
    if R2 is not None:
        values = values_site(architecture)
        if layer == values.source:
            Q = turn_rows(Q, R2.T)
        if layer in values.layers:
            Q = turn_columns(Q, R2.T)
    return Q


def _turn_output(state: dict[str, torch.Tensor], layer: str, R: torch.Tensor) -> None:
    for name in (f"{layer}.weight", f"{layer}.bias"):
        if name in state:
            state[name] = turn_rows(state[name].to(R.dtype), R).to(state[name].dtype)
