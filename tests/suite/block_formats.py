"""MX and NVFP4 as grids, and matrices of many kinds to round to them."""

import torch

from suite.grids import PowerOfTwo, Scaled, TwoLevel
from suite.grids.elements import ELEMENTS


def mx(element, rule="floor"):
    return Scaled(element=element, group=32, scale=PowerOfTwo(rule), pad=True)


NVFP4 = Scaled(element="e2m1", group=16, scale=TwoLevel(), pad=True)


def matrices(width=256):
    """Matrices of many kinds, float32, with rows of `width` values of normal size."""
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(64, width, generator=g)
    sizes = torch.exp2(torch.randint(-60, 60, (64, 1), generator=g).float())
    spread = normal * torch.exp2(torch.randint(-12, 12, normal.shape, generator=g).float())
    edges = torch.tensor(ELEMENTS["e2m3"].levels).repeat(64, width // 64)
    constant = torch.linspace(-3, 3, 64)[:, None].expand(64, width).contiguous()
    spiky = torch.zeros(64, width).index_fill_(1, torch.tensor([5]), 1e4)
    return {"normal": normal, "sizes": normal * sizes, "spread": spread, "edges": edges, "constant": constant,
            "spiky": spiky, "negative": -normal.abs(), "zeros": torch.zeros(64, width)}  # fmt: skip
