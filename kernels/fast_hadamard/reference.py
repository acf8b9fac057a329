"""What the transform computes, in float64, and how far codes may be from it."""

import torch

from kernels.codes import LARGEST, values
from kernels.hadamard import hadamard_transform


def hadamard_reference(x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Give x H / sqrt(n) for the rows of x (rows, n), or x H^T / sqrt(n), in float64."""
    return hadamard_transform(x.double(), inverse)


def decode(codes: torch.Tensor, scale: torch.Tensor, format: str) -> torch.Tensor:
    """Give values (rows, n), float64, of what `hadamard_quantize` returns."""
    return values(codes, format) * scale.double()[:, None]


def excess_of_codes(result: tuple[torch.Tensor, torch.Tensor], y: torch.Tensor, tolerance: float, format: str) -> float:
    """Largest error of codes and scales in units of what is allowed; infinite for NaN.

    Codes may be off by half a step of their grid, scales not at all, and both by what `tolerance` rms(y) of an error
    before rounding does.
    """
    codes, scale = result
    allowed = tolerance * y.square().mean().sqrt()
    s = scale.double()
    half_step = torch.full_like(y, 0.5)
    if format == "e4m3":  # in the binade of 2^e, steps are 2^(e - 3); below 2^-6, 2^-9
        magnitudes = (y / s[:, None]).abs().clamp(min=2.0**-6)
        half_step = torch.exp2(magnitudes.log2().floor() - 4)
    of_codes = (decode(codes, scale, format) - y).abs() / (s[:, None] * half_step * (1 + tolerance) + allowed)
    of_scales = (s * LARGEST[format] - y.abs().amax(1)).abs() / allowed
    worst = torch.cat([of_codes.flatten(), of_scales]).amax().item()
    return worst if worst == worst else float("inf")
