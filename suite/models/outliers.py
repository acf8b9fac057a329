"""The outlier dial: injected outliers of known size and place that leave the model's function as it was.

Kind 1: a norm's gain up on chosen channels, the following columns down (folding the gain undoes it). Kind 2: rows of
the up and value projections up, the matching columns of the down and output projections down. By a power of two, so
that every product is what it was, bit for bit, barring overflow. Dose and response, not how common outliers are.
"""

from dataclasses import dataclass

import torch
from torch import nn

from suite.models.architecture import Architecture, Site, weight_of
from suite.models.doses import KINDS, Dose


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDial:
    """`factor`-fold outliers in one channel of `every`, drawn by `seed`, of kind "norm", "linear" or both."""

    factor: int = 64
    every: int = 64
    kinds: tuple[str, ...] = ("norm", "linear")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.factor < 1 or self.factor & (self.factor - 1):
            raise ValueError(f"factor {self.factor}: expected a power of two")

    @classmethod
    def of(cls, dose: Dose | None) -> "OutlierDial | None":
        """The dial at this dose; None where it changes nothing, so that a model at dose 1 is the model itself."""
        return None if dose is None or dose.factor == 1 else cls(factor=dose.factor, kinds=KINDS[dose.kind])

    @torch.no_grad()
    def apply(self, block: nn.Module, architecture: Architecture, i: int) -> None:
        """Turn up the chosen channels of block `i`, in place."""
        for number, site in enumerate(architecture.sites):
            if site.kind not in self.kinds:
                continue
            channels = len(weight_of(block, site.source))
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + i * 101 + number)
            chosen = torch.randperm(channels, generator=generator)[: max(1, channels // self.every)]
            s = torch.ones(channels, dtype=weight_of(block, site.source).dtype)
            s[chosen] = 1 / self.factor
            scale_site(block, site, spread_over_heads(block, site, s), s)


@torch.no_grad()
def scale_site(block: nn.Module, site: Site, s: torch.Tensor, rows: torch.Tensor) -> None:
    """Divide what makes a site's input by `rows`, and multiply the columns that read it by `s`; in place."""
    weight = weight_of(block, site.source)
    weight.div_(rows if weight.ndim == 1 else rows[:, None])
    bias = getattr(block.get_submodule(site.source), "bias", None)
    if bias is not None:
        bias.div_(rows)
    for layer in site.layers:
        weight_of(block, layer).mul_(s)


def spread_over_heads(block: nn.Module, site: Site, rows: torch.Tensor) -> torch.Tensor:
    """A figure for each row of the source, as one for each input channel: value heads serve groups of query heads."""
    n_in = weight_of(block, site.layers[0]).shape[1]
    if not site.grouped or n_in == len(rows):
        return rows
    head = int(block.get_submodule("self_attn").head_dim)  # type: ignore[arg-type]
    return rows.reshape(-1, 1, head).expand(-1, n_in // len(rows), -1).reshape(-1)
