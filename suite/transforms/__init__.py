"""Transforms: in which coordinates? The model's function stays the same.

So far channel scales: a linear layer's input channel j is divided by s_j where it is made (a norm's gain, or the rows
of the layer before) and its column of W multiplied by s_j. A transform that searches is handed a `score` of a
candidate; what is behind it (which grid, which rounding, which activations) it does not know.
"""

from suite.transforms.scale import AwqScale, Score, SmoothScale, awq_scale, smooth_scale

TRANSFORMS = (SmoothScale, AwqScale)

__all__ = ["TRANSFORMS", "AwqScale", "Score", "SmoothScale", "awq_scale", "smooth_scale"]
