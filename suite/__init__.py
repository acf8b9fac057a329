"""The benchmark suite: methods, models, metrics, and the harness that runs them.

Maths files use the papers' letters: `W` (out, in), `X` (tokens, in), `H = X^T X / tokens`, `Q` the dequantized `W`,
`E = W - Q`, `s` a scale, `z` a zero point. Names are imported on first use, so that importing the result store does
not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from suite.allocation.mixed_width import allocate
    from suite.engine import run
    from suite.methods import METHODS
    from suite.models.checkpoint import load_model
    from suite.quantize import quantize_matrix
    from suite.recipe import Recipe

_HOME = {
    "METHODS": "suite.methods",
    "Recipe": "suite.recipe",
    "allocate": "suite.allocation.mixed_width",
    "load_model": "suite.models.checkpoint",
    "quantize_matrix": "suite.quantize",
    "run": "suite.engine",
}

__all__ = ["METHODS", "Recipe", "allocate", "load_model", "quantize_matrix", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'suite' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
