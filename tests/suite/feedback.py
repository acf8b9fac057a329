"""What error feedback is tested over: grids, dampings and the rounding errors that follow from them."""

import torch
from hypothesis import strategies as st

from suite.grids import Integer
from suite.grids.integer import CONVENTIONS

ORDERS, GROUPS = ("given", "reversed", "decreasing", "pivot"), ("static", "dynamic", "stale")
EPS = 2.0**-52
CONDITION = 1e4  # of the damped Gram matrices, at most: n_in / damping = 40 / 0.01, and a margin

damping = st.sampled_from([0.01, 0.1, 1.0])
grids = st.builds(
    Integer,
    bits=st.integers(2, 5),
    group=st.sampled_from([3, 8, "row", "tensor"]),
    convention=st.sampled_from(CONVENTIONS),
    axis=st.sampled_from([0, 1]),
)


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
