"""ZeroQAT: quantization-aware training by forward passes alone, at the memory of inference.

Song et al. 2025, "ZeroQAT: Your Quantization-aware Training but Efficient", arXiv:2509.00031. The loss of the rounded
model is measured twice, along a random direction forth and back, and weights, clipping thresholds (here the scales of
the grid) descend along the slope. The paper's learned smoothing of activations is not here.
"""

from typing import Any

from suite.adaptation.quantization_aware import Perturbation
from suite.adaptation.training import Schedule
from suite.grids import Integer
from suite.methods.method import Method, training
from suite.recipe import Recipe, Target

# a pair of forward passes takes two thirds of an update by backpropagation
FORWARD = Schedule(steps=600, rate=1e-6, warmup=0.0, final=0.1, weight_decay=0.0)


def build(*, bits: int, group: int | str = 128, **options: Any) -> Recipe:
    """Further options are fields of `Schedule`, of `QuantizationAware` and of `Integer`."""
    how = training(options, FORWARD, perturbation=Perturbation())
    return Recipe(weights=Target(Integer(bits=bits, group=group, **options)), adaptation=how)  # type: ignore[arg-type]


ZEROQAT = Method(
    name="zeroqat",
    paper="ZeroQAT: Your Quantization-aware Training but Efficient",
    arxiv="2509.00031",
    needs="training",
    bits=(2, 3, 4, 8),
    build=build,
)
