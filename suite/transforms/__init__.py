"""Transforms: in which coordinates? The model's function stays the same.

A transform says where it acts, its `place`:

- "fold": a linear layer's input channel j is divided by s_j where it is made (a norm's gain, or the rows of the layer
  before) and its column of W multiplied by s_j;
- "residual": the stream between the blocks is rotated, which embedding, head and blocks absorb;
- "heads": what attention mixes is rotated head by head, which value and output projections absorb;
- "online" and "across": the inputs of some linear layers pass through maps at run time, W through their inverses;
- "keys": queries and keys are rotated at run time, after the rotary embedding;
- "matrix": each weight matrix of the blocks is rotated on both sides, and keeps how (`Quantized.frame`).

A transform that searches is handed a `score` of a candidate; what is behind it (which grid, which rounding, which
activations) it does not know.
"""

from suite.transforms.incoherence import Frame, Incoherence
from suite.transforms.learned import LearnedRotations
from suite.transforms.maps import MAPS, Map, Scale, map_from, map_header
from suite.transforms.rotation import RotateHeads, RotateInputs, RotateKeys, RotateResidual, RotateValues
from suite.transforms.scale import AwqScale, Score, SmoothScale, awq_scale, smooth_scale
from suite.transforms.zigzag import DualRotation, Zigzag

Transform = (
    SmoothScale | AwqScale | RotateResidual | RotateValues | RotateInputs | RotateHeads | RotateKeys | Zigzag
    | DualRotation | LearnedRotations | Incoherence
)  # fmt: skip
TRANSFORMS: tuple[type, ...] = Transform.__args__

__all__ = [
    "MAPS", "TRANSFORMS", "AwqScale", "DualRotation", "Frame", "Incoherence", "LearnedRotations", "Map", "RotateHeads",
    "RotateInputs", "RotateKeys", "RotateResidual", "RotateValues", "Scale", "Score", "SmoothScale", "Transform",
    "Zigzag", "awq_scale", "map_from", "map_header", "smooth_scale",
]  # fmt: skip
