"""What the kernel computes, in plain torch."""

import torch

from kernels.codes import LARGEST, SMALLEST, two_in_a_byte


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


def _codes(v: torch.Tensor, format: str) -> torch.Tensor:
    if format == "e4m3":
        return v.clamp(-448, 448).to(torch.float8_e4m3fn)  # torch's cast: to nearest even, NaN beyond 464
    codes = v.round().to(torch.int8)  # halves to even
    return codes if format == "int8" else two_in_a_byte(codes)
