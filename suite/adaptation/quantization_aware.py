"""Quantization-aware training: what of a model is trained, how, and through which gradient of its rounding.

`QuantizationAware` is part of a recipe. Weights are fake quantized on the recipe's grid wherever they are read, by a
parametrization that may hold learned scales and zero points; inputs of linear layers likewise, by tokens or with a
learned static step.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import nn

from suite.activations import has_static_scale, quantize_activations
from suite.adaptation.clipping import AsymmetricClip
from suite.adaptation.low_rank import Adapters, begun
from suite.adaptation.straight_through import fake_quantized, straight_through, tuned, within
from suite.adaptation.training import Schedule
from suite.grids.grid import Fitted, Grid, Tunable
from suite.grids.integer import FittedInteger, Integer
from suite.grids.scaled import FittedScaled, Scaled
from suite.grids.stored import stored_type

SHRINKS = 20  # ranges that a static one with two ends is begun from; LSQ+ leaves its search open


@dataclass(frozen=True, slots=True, kw_only=True)
class Gradient:
    """How gradients pass a rounding.

    `range` "clipped" lets them pass within the range of the levels, and as much as `beyond` it in units of the scale;
    "open" lets all pass. With `constant` the gradients of scales and zero points take codes for constants, and
    `overshoot` is added to the level of what is clipped (`suite.adaptation.straight_through.fake_quantized`).
    """

    range: Literal["clipped", "open"] = "clipped"
    beyond: float = 0.0
    constant: bool = False
    overshoot: float = 0.0

    def __post_init__(self) -> None:
        if not (self.beyond >= 0 and self.overshoot >= 0):
            raise ValueError(f"beyond {self.beyond}, overshoot {self.overshoot}: expected at least 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Perturbation:
    """Descent by forward passes alone: `noise` is the standard deviation, over `directions` in each update."""

    noise: float = 1e-3
    directions: int = 1

    def __post_init__(self) -> None:
        if not self.noise > 0 or self.directions < 1:
            raise ValueError(f"noise {self.noise}, directions {self.directions}: expected above 0, and at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationAware:
    """How a quantized model is trained; without any target to quantize, its control.

    `learned` "scales" makes parameters of the grid's scales (and real zero points), which begin at the grid's own
    `start` "range", at 2 mean|w| / sqrt(Q) ("lsq"), or at max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b - 1) ("lsq+");
    "symmetric" has levels around 0 as wide as the larger end asks for, where zero points are real (L4Q);
    "nothing" fits the grid anew to what the weights have become, at every update. Gradients of scales are divided by
    sqrt(N Q), with N weights of the matrix and Q the largest positive code, as LSQ has it.

    `rows` are those of a micro-batch. `loss` is of the next "tokens", or of the unquantized model's predictions:
    "forward-kl" and "reverse-kl", or "cakld" between them; to it is added `hidden` times the relative squared error of
    the last hidden states. `scratch` begins with random weights instead of the model's, and `sub_norm` then has a norm
    before every layer that writes to the residual stream (SubLN, as in BitNet). With `clipping` weights are clamped
    once, before training; those of the unquantized model that takes part are not. With `adapters` a layer is W + s B A,
    which is rounded as a whole, and of the model only A, B and what is learned of grids move (L4Q); without a target
    that is LoRA.
    """

    schedule: Schedule
    rows: int = 16
    learned: Literal["scales", "nothing"] = "scales"
    start: Literal["range", "lsq", "lsq+", "symmetric"] = "range"
    gradient: Gradient = field(default_factory=Gradient)
    loss: Literal["tokens", "forward-kl", "reverse-kl", "cakld"] = "tokens"
    hidden: float = 0.0
    perturbation: Perturbation | None = None
    scratch: bool = False
    sub_norm: bool = False
    clipping: AsymmetricClip | None = None
    adapters: Adapters | None = None

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows {self.rows}: expected at least 1")
        if not (math.isfinite(self.hidden) and self.hidden >= 0):
            raise ValueError(f"hidden {self.hidden}: expected a finite number, at least 0")
        if self.scratch and (self.loss != "tokens" or self.hidden):
            raise ValueError("from scratch there is no model to learn from: the loss is of the next tokens")
        if self.scratch and self.clipping is not None:
            raise ValueError("random weights are not clipped: clipping is for a model that is there")
        if self.scratch and self.adapters is not None:
            raise ValueError("random weights have nothing to adapt: adapters are for a model that is there")
        if self.sub_norm and not self.scratch:
            raise ValueError("a norm more is another function: sub_norm is for training from scratch")

    @property
    def distills(self) -> bool:
        """Whether the unquantized model takes part."""
        return self.loss != "tokens" or self.hidden > 0


class FakeQuantize(nn.Module):
    """A parametrization: weights (out, in) as the values they will be stored as.

    Learned parameters are `learned` by the name that the grid gives them; they are rounded to what is stored before
    they are used, so that what is trained is what will be evaluated.
    """

    def __init__(self, W: torch.Tensor, grid: Grid, how: QuantizationAware):
        super().__init__()
        self.grid, self.how, self._fitted = grid, how, grid.fit(W.detach())
        start = started(self._fitted, W.detach(), how.start) if how.learned == "scales" else {}
        self.learned = nn.ParameterDict({name: nn.Parameter(x.detach().clone()) for name, x in start.items()})
        self._damping = 1 / math.sqrt(W.numel() * largest_code(self._fitted))

    def fitted(self, W: torch.Tensor) -> Fitted:
        """The grid as it is now: with learned parameters as they are stored, or fitted to `W`."""
        if not self.learned:
            return self.grid.fit(W.detach())
        return tuned(self._fitted, self.values())

    def values(self) -> dict[str, torch.Tensor]:
        """Learned parameters as they are stored, by name."""
        damped = {name: _damped(x, self._damping) for name, x in self.learned.items()}
        if isinstance(self.grid, Integer | Scaled):
            return {name: _as_stored(x, name, self.grid) for name, x in damped.items()}
        kept = _read_back(tuned(self._fitted, {name: x.detach() for name, x in damped.items()}))
        return {name: straight_through(x, kept[name].to(x)) for name, x in damped.items()}

    def forward(self, W: torch.Tensor) -> torch.Tensor:
        """The rounded weights, with a gradient for `W` and what is learned."""
        fitted, how = self.fitted(W), self.how.gradient
        inside = within(W, fitted, how.beyond) if how.range == "clipped" and torch.is_grad_enabled() else None
        return fake_quantized(W, fitted, inside, constant=how.constant, overshoot=how.overshoot)


class Adapter(nn.Module):
    """A parametrization: weights W (out, in) as W + s B A, with A (rank, in) and B (out, rank) to be learned."""

    def __init__(self, W: torch.Tensor, how: Adapters, generator: torch.Generator):
        super().__init__()
        A, B = begun(W.shape[0], W.shape[1], how.rank, generator)
        self.A, self.B, self.scale = nn.Parameter(A.to(W)), nn.Parameter(B.to(W)), how.scale

    def forward(self, W: torch.Tensor) -> torch.Tensor:
        """The adapted weights."""
        return torch.addmm(W, self.B, self.A, alpha=self.scale)


class FakeInputs(nn.Module):
    """A hook before a linear layer: its inputs (..., in) rounded to nearest, straight through.

    Inputs on a grid with a static scale get a learned step, which begins at 2 mean|x| / sqrt(Q) of the first inputs
    (LSQ). With real zero points they get one of these too, and both begin at the range, shrunk from that of the first
    inputs, whose squared error is least (LSQ+). Gradients are divided by sqrt(N Q), with N channels.
    """

    def __init__(self, grid: Grid):
        super().__init__()
        self.grid, self.static = grid, has_static_scale(grid)
        if self.static and not (isinstance(grid, Integer) and grid.group == "tensor"):
            raise ValueError(f"a learned static scale is for integers of one scale, the grid is {grid}")
        self.step = nn.Parameter(torch.zeros(1, 1)) if self.static else None
        two_ends = self.static and isinstance(grid, Integer) and grid.convention == "real-zero"
        self.zero = nn.Parameter(torch.zeros(1, 1)) if two_ends else None

    def forward(self, module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """As a forward pre-hook."""
        x = arguments[0]
        if self.step is None:
            return (straight_through(x, quantize_activations(x.detach(), self.grid, 0.0)), *arguments[1:])
        flat = x.reshape(-1, x.shape[-1])
        if not bool(self.step.detach().any()):
            self._begin(flat.detach())
        fitted = cast(FittedInteger, tuned(self.grid.fit(flat.detach()), self._stored(x.shape[-1])))
        return (fake_quantized(flat, fitted, within(flat, fitted)).reshape(x.shape), *arguments[1:])

    def _begin(self, x: torch.Tensor) -> None:
        assert self.step is not None
        fitted = cast(FittedInteger, self.grid.fit(x))
        if self.zero is None:
            self.step.data.fill_(float(_lsq(x.abs().mean(), largest_code(fitted))))
            return
        shrunk = [_shrunk(x, cast(Integer, self.grid), 1 - i / SHRINKS) for i in range(SHRINKS)]
        best = min(shrunk, key=lambda candidate: float((candidate.rounded(x) - x).square().mean()))
        assert best.zero is not None
        self.step.data.copy_(best.scale)
        self.zero.data.copy_(best.zero)

    def _stored(self, channels: int) -> dict[str, torch.Tensor]:
        """Step and zero point as they are stored, with their gradients' sizes."""
        assert self.step is not None
        factor = 1 / math.sqrt(channels * max(1, 2 ** cast(Integer, self.grid).bits // 2 - 1))
        own = {"scale": self.step} | ({} if self.zero is None else {"zero": self.zero})
        return {name: _as_stored(_damped(x, factor), name, self.grid) for name, x in own.items()}

    @property
    def span(self) -> tuple[float, ...]:
        """What the learned static scale is made for, which `Integer.fit_range` takes it back from; none without one."""
        if self.step is None:
            return ()
        step, grid = float(self.step.detach().abs()), cast(Integer, self.grid)
        if self.zero is None:
            blank = grid.fit(torch.ones(1, 1))
            return (step / float(blank.scale),)
        zero = float(self.zero.detach())
        return -zero * step, (2**grid.bits - 1 - zero) * step


def _shrunk(x: torch.Tensor, grid: Integer, share: float) -> FittedInteger:
    """The grid on a share of the range of `x` (n, in)."""
    low, high = (end.reshape(1, 1) * share for end in x.aminmax())
    return grid.fit_range(low, high, (x.shape[0], x.shape[1]))


def started(fitted: Fitted, W: torch.Tensor, start: str) -> dict[str, torch.Tensor]:
    """Where learned parameters begin, by name; `ValueError` where a grid has none, or not the statistic asked for."""
    values = cast(Tunable, fitted).tunable() if hasattr(fitted, "tunable") else {}
    if not values:
        raise ValueError(f"{type(fitted.grid).__name__} has no real parameters to learn: expected learned='nothing'")
    if start == "range":
        return values
    if start == "symmetric":
        return _symmetric(fitted, W)
    if not isinstance(fitted, FittedInteger | FittedScaled) or "scale" not in values:
        raise ValueError(f"{type(fitted.grid).__name__} begins at its own range, not as in {start}")
    groups = fitted.layout.grouped(W, math.nan)
    if start == "lsq":
        scale = _lsq(groups.abs().nanmean(-1), largest_code(fitted))
    else:
        mean, count = groups.nanmean(-1), groups.isfinite().sum(-1)
        spread = 3 * ((groups - mean[..., None]).square().nansum(-1) / count).sqrt()
        scale = torch.maximum((mean - spread).abs(), (mean + spread).abs()) / 2 ** (math.log2(fitted.n_codes) - 1)
    return values | {"scale": torch.where(values["scale"] < 0, -scale, scale).to(values["scale"])}


def _symmetric(fitted: Fitted, W: torch.Tensor) -> dict[str, torch.Tensor]:
    if not (isinstance(fitted, FittedInteger) and fitted.grid.convention == "real-zero" and fitted.zero is not None):
        raise ValueError(f"{fitted.grid}: levels around 0 that can move are of integers with real zero points")
    half = fitted.n_codes // 2
    groups = fitted.layout.grouped(W, 0.0)
    scale = torch.maximum(groups.amin(-1) / -half, groups.amax(-1) / max(1, half - 1))
    return {"scale": torch.where(scale > 0, scale, fitted.scale), "zero": torch.full_like(fitted.zero, half)}


def largest_code(fitted: Fitted) -> int:
    """Q: the largest positive code of signed integers of as many levels; 1 at the least."""
    return max(1, fitted.n_codes // 2 - 1)


def _lsq(mean: torch.Tensor, largest: int) -> torch.Tensor:
    return 2 * mean / math.sqrt(largest)


def _damped(x: torch.Tensor, factor: float) -> torch.Tensor:
    """`x`, bit for bit, with `factor` times its gradient."""
    return x.detach() + (factor * x - (factor * x).detach())


def _read_back(fitted: Fitted) -> dict[str, torch.Tensor]:
    """The parameters of any grid as they come back from what is stored of them."""
    beside = [values.reshape(-1).to(torch.int64) for values, _ in fitted.beside()]
    return cast(Tunable, fitted.grid.restore(beside, fitted.header())).tunable()


def _as_stored(x: torch.Tensor, name: str, grid: Grid) -> torch.Tensor:
    """A learned parameter rounded to what is stored, straight through; scales keep a magnitude that can be."""
    width: Any = grid.scale_bits if isinstance(grid, Integer) else getattr(getattr(grid, "scale", None), "bits", None)
    if width is None:
        return x
    kind = stored_type(width)
    limits = torch.finfo(kind)
    kept = x.detach().clamp(-limits.max, limits.max)
    if name == "scale":
        least = limits.smallest_normal
        kept = torch.where(kept.abs() < least, torch.where(kept < 0, -least, least), kept)
    return straight_through(x, kept.to(kind).to(x.dtype))
