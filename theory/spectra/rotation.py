"""Whether outliers break quantization by the step they ask for or by the curvature they meet: a rotation decides.

Turn a layer's inputs by an orthogonal R, W' = W R and H' = R^T H R. The function stays, and so does the spectrum of
H = X^T X / n: no direction becomes stiffer or softer. What goes are outliers, of weights and of inputs alike. The
error of rounding without clipping, the grid's steps s (out, in) and the rounding's targets dispersed, is

    tr E (H + lambda I) E^T = 1/12 sum_rj s_rj^2 d_j,    d_j the pivots of H + lambda I for error feedback,
                                                         its diagonal for rounding to nearest,

so that with the mean square step S, the sum of pivots D and one factor K for how the two meet,

    1/12 sum_rj s_rj^2 d_j = out / 12 S D K,    log2 (error' / error) = log2 S'/S + log2 D'/D + log2 K'/K,

an identity. With one step for a row, K = 1. Rounding to nearest has D = tr H + in lambda, which no rotation moves: all
that a rotation does for it is done by the step. Error feedback's pivots have a product that no rotation moves, det (H +
lambda I), but their sum moves. In a further arm the rotated weights are rounded with the steps of the unrotated ones:
what is left of the gain there is not the step's.

A model may have no outliers that a rotation could remove. The converse is to plant them: one weight of each row becomes
twice the row's largest, so that S is four times what it was, whatever the input channel. Planted in the stiffest
channel, of the largest H_jj, and in the softest it costs the same, if the step is what it costs by.

That errors are uniform over a step is the one assumption, and steps so wide that they leave most weights at zero break
it. The same ratios are therefore measured too, by the suite's own roundings, on codes with room beyond the grid's ends,
and errors are of H + lambda I. Our own analysis; the identity of errors and pivots is in `suite.rounding.feedback`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from suite.calibration import gather
from suite.grids import Integer
from suite.grids.integer import FittedInteger
from suite.grids.layout import ALL
from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint
from suite.quantize import generator_for
from suite.rounding import Feedback
from suite.rounding.feedback import Ordered, factor
from suite.statistics import quadratic
from suite.tokens import Tokens
from suite.transforms import RotateResidual

Rounding = Literal["nearest", "feedback"]
Change = Literal["rotated", "planted stiff", "planted soft"]
ROUNDINGS: tuple[Rounding, ...] = ("nearest", "feedback")
CHANGES: tuple[Change, ...] = ("rotated", "planted stiff", "planted soft")
_ROOM_BITS = 8  # codes are given this range, so that nothing is clipped


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Base-2 logarithms of a changed over an unchanged layer's error: -2 is the error of one more bit.

    `predicted` is `step` + `pivots` + `meeting`, exactly. `measured` and `measured_at_equal_step` are by rounding.
    """

    layer: str
    seed: int
    change: Change
    rounding: Rounding
    step: float
    pivots: float
    meeting: float
    predicted: float
    measured: float
    measured_at_equal_step: float


@dataclass(frozen=True, slots=True)
class _Arm:
    """Weights (out, in) and Gram matrix (in, in) in some coordinates, with H + lambda I = R R^T."""

    W: torch.Tensor
    H: torch.Tensor
    R: torch.Tensor
    damping: float

    @classmethod
    def of(cls, W: torch.Tensor, H: torch.Tensor, damping: float) -> "_Arm":
        R, _, fallbacks = factor(H, "given", damping)
        if fallbacks:
            raise ValueError(f"the Gram matrix needs another damping than {damping:g}: {'; '.join(fallbacks)}")
        return cls(W, H + damping * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype), R, damping)

    def weights(self, rounding: Rounding) -> torch.Tensor:
        """What the squared steps are weighted by, d (in,)."""
        return self.H.diagonal() if rounding == "nearest" else self.R.diagonal() ** 2

    def error(self, rounding: Rounding, fitted: FittedInteger) -> float:
        """What rounding on this grid, with more codes beyond its ends, leaves; `ValueError` where it needs more yet."""
        wide = replace(fitted, grid=replace(fitted.grid, bits=_ROOM_BITS))
        if rounding == "nearest":
            codes = wide.nearest(self.W)
        else:
            order = torch.arange(len(self.H))
            columns = Ordered.of(self.W, self.H, self.R, order)
            feedback = Feedback(groups="static", damping=self.damping)
            codes, _ = feedback.place(columns, wide, torch.Generator())
        low, high = wide.ends
        if bool(((codes == low) | (codes == high)).any()):
            raise ValueError(f"{fitted.grid.bits} bits leave no room beyond the grid's ends: expected fewer")
        return quadratic(self.W - wide.decode(codes), self.H)


def splits_of(
    W: torch.Tensor, H: torch.Tensor, R: torch.Tensor, grid: Integer, *, damping: float = 0.01, layer: str = "",
    seed: int = 0,
) -> Iterator[Split]:  # fmt: skip
    """Every change and rounding of `W` (out, in) with Gram matrix `H` (in, in) and rotation `R` (in, in), float64.

    `grid` is an `Integer` without stored zero points: its steps are those of the grid fitted to each arm's weights, and
    nothing is clipped. `ValueError` for other grids, for a grid of so many bits that codes run out, and where H cannot
    be factored with this damping, which is relative to its mean diagonal.
    """
    if grid.convention not in ("full-range", "narrow", "span"):
        raise ValueError(f"convention {grid.convention!r}: expected full-range, narrow or span, which store no zero")
    plain, size = _Arm.of(W, H, damping), H.diagonal()
    arms: dict[Change, _Arm] = {
        "rotated": _Arm.of(W @ R, R.T @ H @ R, damping),
        "planted stiff": replace(plain, W=planted(W, int(size.argmax()))),
        "planted soft": replace(plain, W=planted(W, int(size.argmin()))),
    }
    for rounding in ROUNDINGS:
        for change, arm in arms.items():
            terms = _terms((plain, arm), grid, rounding)
            yield Split(layer=layer, seed=seed, change=change, rounding=rounding, **terms)


def planted(W: torch.Tensor, channel: int) -> torch.Tensor:
    """`W` (out, in) with the weight of this input channel at twice its row's largest absolute value."""
    found = W.clone()
    found[:, channel] = 2 * W.abs().amax(1)
    return found


def _terms(arms: tuple[_Arm, _Arm], grid: Integer, rounding: Rounding) -> dict[str, float]:
    """Logarithms of ratios, by the name of the field."""
    fitted = tuple(grid.fit(arm.W) for arm in arms)
    squares = [f.layout.expand(f.scale, ALL).double().expand(f.shape) ** 2 for f in fitted]
    steps = [float(s.mean()) for s in squares]
    sums = [float(arm.weights(rounding).sum()) for arm in arms]
    totals = [float((s @ arm.weights(rounding)).mean()) for s, arm in zip(squares, arms, strict=True)]
    meeting = [total / (step * d) for total, step, d in zip(totals, steps, sums, strict=True)]
    errors = [arm.error(rounding, f) for arm, f in zip(arms, fitted, strict=True)]
    equal = arms[1].error(rounding, fitted[0])
    ratios = {"step": steps, "pivots": sums, "meeting": meeting, "predicted": totals, "measured": errors,
              "measured_at_equal_step": [errors[0], equal]}  # fmt: skip
    return {name: _log2(pair) for name, pair in ratios.items()}


def _log2(pair: list[float]) -> float:
    before, after = torch.tensor(pair, dtype=torch.float64).log2().tolist()
    return after - before


@torch.no_grad()
def rotation_splits(
    checkpoint: Checkpoint, tokens: Tokens, *, bits: int = 4, group: int | Literal["row"] = "row", seed: int = 0,
    blocks: int | None = None, kind: Literal["hadamard", "orthogonal"] = "hadamard",
) -> Iterator[Split]:  # fmt: skip
    """The splits of every layer of the first `blocks` blocks, all by default; one block is in memory.

    H is of `tokens`; `seed` draws the rotation of each layer. `ValueError` where there is no Hadamard matrix of a
    layer's size: an "orthogonal" one there is of any.
    """
    grid, hidden = (
        Integer(bits=bits, group=group, convention="narrow", scale_bits=32),
        checkpoint.embed(tokens.tensor()),
    )
    for i in range(checkpoint.n_blocks if blocks is None else min(blocks, checkpoint.n_blocks)):
        block = checkpoint.block(i)
        for site in checkpoint.architecture.sites:
            H = gather(checkpoint, i, block, hidden, site).gram
            for layer in site.layers:
                name, W = checkpoint.architecture.full_name(i, layer), linear(block, layer).weight.double()
                R = RotateResidual(kind=kind).fit(len(H), generator_for(seed, name))
                yield from splits_of(W, H, R, grid, layer=name, seed=seed)
        hidden = checkpoint.run(i, block, hidden)
