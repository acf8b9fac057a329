"""One grid of the suite on one matrix: true bits and error."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from theory.sources import Laplace, Source, Student, gaussian

SOURCES: dict[str, Source] = {"Gaussian": gaussian(), "Laplacian": Laplace(), "Student's t of 3": Student(degrees=3)}
LAYER = "the first block's mlp.down_proj"


@dataclass(frozen=True, slots=True)
class Outcome:
    """Bits per value, everything counted, and |x - q|^2 / |x|^2."""

    bits: float
    error: float

    @property
    def over_gaussian(self) -> float:
        """The error times 4^bits: 1 on the distortion-rate function of a Gaussian of the same variance."""
        return self.error * 4.0**self.bits

    @property
    def snr_db(self) -> float:
        """The signal-to-noise ratio in decibels."""
        return -10 * float(np.log10(self.error))


def matrix(name: str, shape: tuple[int, int], model: str, seed: int) -> np.ndarray:
    """A matrix of one of `SOURCES` of this `shape`, drawn by `seed`, or the weights of the `LAYER` of a model.

    Raises `ValueError` for another name.
    """
    if name in SOURCES:
        return SOURCES[name].draw(np.random.default_rng(seed), shape)
    if name != LAYER:
        raise ValueError(f"source {name!r}: expected one of {', '.join((*SOURCES, LAYER))}")
    from theory.layers import weights

    return weights(model)


def rounded(x: np.ndarray, grid: Any = None, method: str | None = None, **options: Any) -> Outcome:
    """`x` (out, in) in float32 through `suite.quantize_matrix`, to nearest on a grid or by a `method` with `options`.

    Whole steps of a grid without end (`Steps`) are entropy coded, tables included; all else is stored as it is.
    """
    import torch

    from suite.coding import Ans, Fixed
    from suite.grids import Steps
    from suite.quantize import quantize_matrix
    from suite.recipe import Recipe, Target

    W = torch.from_numpy(np.array(x)).float()
    if method is not None:
        found = quantize_matrix(W, method=method, **options)
    else:
        coding = Ans() if isinstance(grid, Steps) else Fixed()
        found = quantize_matrix(W, recipe=Recipe(weights=Target(grid), coding=coding))
    E = (W - found.dequantize()).double()
    return Outcome(found.n_bits / W.numel(), float(E.square().sum() / W.double().square().sum()))
