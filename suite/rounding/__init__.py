"""Roundings: how does each value pick its point of the grid?

A rounding is a frozen value. `round(W, grid, H, generator)` binds the grid to W and returns codes, fitted grid and
what did not go as asked; `Qronos` takes the cross-Gram matrix of both models' inputs too. `Nearest` and `Stochastic`
also `pick` codes for single columns of a fitted grid, which is all that error feedback needs of them.
"""

from suite.rounding.additive import Additive
from suite.rounding.descent import Descent
from suite.rounding.elementwise import Nearest, Rounded, Stochastic
from suite.rounding.feedback import WHOLE, Feedback
from suite.rounding.group_feedback import GroupFeedback
from suite.rounding.half_quadratic import HalfQuadratic
from suite.rounding.qronos import Qronos
from suite.rounding.rate import RateAware
from suite.rounding.vector_feedback import VectorFeedback

ROUNDINGS = (
    Nearest,
    Stochastic,
    Feedback,
    HalfQuadratic,
    RateAware,
    Qronos,
    Additive,
    GroupFeedback,
    Descent,
    VectorFeedback,
)

__all__ = [
    "ROUNDINGS",
    "WHOLE",
    "Additive",
    "Descent",
    "Feedback",
    "GroupFeedback",
    "HalfQuadratic",
    "Nearest",
    "Qronos",
    "RateAware",
    "Rounded",
    "Stochastic",
    "VectorFeedback",
]
