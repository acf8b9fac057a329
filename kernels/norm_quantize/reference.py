"""What the kernel computes, in plain torch."""

import torch

LARGEST = {"int8": 127.0, "int4": 7.0, "e4m3": 448.0}  # symmetric integers; the largest number of E4M3
SMALLEST = 2.0**-118  # the least magnitude by which 448 can be divided in float32, in powers of two


def norm_quantize_reference(
    x: torch.Tensor,
    format: str,
    gain: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    eps: float | None = 1e-6,
) -> tuple[torch.Tensor, ...]:
    """Codes as `norm_quantize` gives them, scales in float64; with `residual` the sum, too.

    Codes do not depend on the norm of a token: they are u L / max |u| rounded, with u = h gain and L the largest code,
    and so can be had to the last bit, with every operation in float32.
    """
    h = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    u = h.float() if gain is None else h.float() * gain.float()
    top = u.abs().amax(dim=1)
    largest = torch.full_like(top, LARGEST[format])
    usable = (top >= SMALLEST) & top.isfinite()
    by = torch.where(usable, largest / top, 0.0)
    scale = torch.where(top < SMALLEST, 0.0, (top / largest).double())
    squares = h.double().square().mean(dim=1)
    if eps is not None:
        scale = scale / (squares + torch.tensor(eps, dtype=torch.float32).double()).sqrt()
        usable &= squares * h.shape[1] < torch.finfo(torch.float32).max
    scale[~(usable | (top < SMALLEST))] = torch.nan
    codes = _codes(torch.where(usable[:, None], u, 0.0) * by[:, None], format)
    return (codes, scale) if residual is None else (codes, scale, h)


def unpack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Integers of 4 bits (rows, 2 n), int8, from bytes (rows, n): the first in the low nibble, two's complement."""
    return torch.stack([(codes << 4) >> 4, codes >> 4], dim=-1).flatten(1)


def _codes(v: torch.Tensor, format: str) -> torch.Tensor:
    if format == "e4m3":
        return v.clamp(-448, 448).to(torch.float8_e4m3fn)  # torch's cast: to nearest even, NaN beyond 464
    codes = v.round().to(torch.int8)  # halves to even
    return codes if format == "int8" else (codes[:, ::2] & 15) | (codes[:, 1::2] << 4)
