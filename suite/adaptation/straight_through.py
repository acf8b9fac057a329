"""Fake quantization: the values of a grid in the forward pass, and gradients as if rounding were not there.

A value x of a group with parameters t (scales, zero points) is rounded to a code, v = D(code, t), where D decodes. The
gradient takes the code for its unrounded self within the range of the levels and for a constant beyond it. As
D(unrounded, t) = x there,

    dv/dx = 1 within, 0 beyond;    dv/dt = dD/dt (code) - dD/dt (unrounded) within, dD/dt (code) beyond.

With D = s (c - z) that is the gradient of learned step size quantization, s times round(x / s) - x / s within (Esser,
McKinstry, Bablani, Appuswamy, Modha 2020, "Learned Step Size Quantization", arXiv:1902.08153, equations 3 and 5), and
of LSQ+ with an offset (Bhalgat, Lee, Nagel, Blankevoort, Kwak 2020, arXiv:2004.09576, equations 5 and 6); but it holds
for the levels of any format. Where codes are taken for constants, dv/dt = dD/dt (code) everywhere. Where nothing is
learned and everything counts as within, it is the identity (Bengio, Leonard, Courville 2013, arXiv:1308.3432).
"""

from collections.abc import Mapping
from typing import cast

import torch

from suite.grids.grid import Fitted, Tunable
from suite.grids.integer import FittedInteger
from suite.grids.scaled import FittedScaled
from suite.grids.two_sided import FittedTwoSided

Affine = FittedInteger | FittedScaled | FittedTwoSided  # a value is scale times (level - zero)


def straight_through(x: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    """The values of `rounded`, bit for bit, with the gradient of `x`."""
    return rounded.detach() + (x - x.detach())


def within(x: torch.Tensor, fitted: Fitted, beyond: float = 0.0) -> torch.Tensor:
    """Which values of `x` (out, in) lie in the range of the levels, its ends included: bool (out, in).

    `beyond` widens the range at either end, in units of the scale; only integers and scaled levels have one. Raises
    `ValueError` for grids that code values in blocks: what they clip is not told value by value.
    """
    x = x.detach()
    if isinstance(fitted, Affine):
        scale, zero = _affine(fitted, x)
        low, high = fitted.ends
        ratio = x / scale.detach()
        return (ratio >= low - zero - beyond) & (ratio <= high - zero + beyond)
    if beyond:
        raise ValueError(f"beyond {beyond}: a {type(fitted.grid).__name__} has no scale to measure it in")
    below, above = fitted.neighbors(x)
    return (below != above) | (x == fitted.decode(below))


def fake_quantized(
    x: torch.Tensor,
    fitted: Fitted,
    inside: torch.Tensor | None = None,
    *,
    constant: bool = False,
    overshoot: float = 0.0,
) -> torch.Tensor:
    """`x` (out, in) rounded to nearest, exactly as `fitted` decodes it, with a straight-through gradient.

    `inside` (out, in), bool, are the values that count as within the range, all of them by default. Gradients also go
    to those parameters of integers and scaled levels that want them (`Tunable.tuned` puts them there). With `constant`
    codes they are dD/dt (code) everywhere; so they are for grids of any other kind. `overshoot` is added to the size of
    the level that a value beyond the range has in the gradient of the scale.
    """
    with torch.no_grad():
        codes = fitted.nearest(x)
    value = fitted.decode(codes)
    if not torch.is_grad_enabled():
        return value
    rounded, moving = value.detach(), x if inside is None else torch.where(inside, x, 0.0)
    if value.requires_grad:
        moving = moving + value
        if isinstance(fitted, Affine):
            if not constant:
                unrounded = _unrounded(x.detach(), fitted)
                moving = moving - (unrounded if inside is None else torch.where(inside, unrounded, 0.0))
            if overshoot and inside is not None:
                scale, _ = _affine(fitted, x.detach())
                moving = moving + torch.where(inside, 0.0, overshoot * x.detach().sign()) * scale
    return rounded + (moving - moving.detach())


def tuned(fitted: Fitted, values: Mapping[str, torch.Tensor]) -> Fitted:
    """The same with learned parameters in their place; itself where there are none."""
    return cast(Tunable, fitted).tuned(values) if values else fitted


def _affine(fitted: Affine, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Scale and zero point of the values `x` (out, in), broadcastable to it: those of its side, where there are two."""
    if isinstance(fitted, FittedTwoSided):
        return fitted.scale_of(x), 0.0
    scale, zero = fitted.layout.expand(fitted.scale), getattr(fitted, "zero", None)
    if zero is not None:
        return scale, fitted.layout.expand(zero)
    return scale, fitted.grid.zero if isinstance(fitted, FittedInteger) else 0.0


def _unrounded(x: torch.Tensor, fitted: Affine) -> torch.Tensor:
    """`x` as D(unrounded, t), for its gradient in t."""
    scale, zero = _affine(fitted, x)
    unrounded = (x / scale + zero).detach()
    return (unrounded - zero) * scale
