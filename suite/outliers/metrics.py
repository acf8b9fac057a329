"""What makes a tensor hard to round: the outliers of a layer's inputs `X` (tokens, in) and weights `W` (out, in).

Rounded in groups, a value costs what the largest of its group dictates; these figures say how far that one is from the
others, and where it sits. Normal outliers are channels that are large in most tokens (Dettmers, Lewis, Belkada,
Zettlemoyer 2022, "LLM.int8()", arXiv:2208.07339; Xiao et al. 2022, arXiv:2211.10438), massive ones a few tokens in a
few channels (Sun, Chen, Kolter, Liu 2024, "Massive Activations in Large Language Models", arXiv:2402.17762). Both are
relative here: the published thresholds in absolute size (6 and 100) hold for one model's scale alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from suite.statistics import quadratic
from suite.transforms.scale import smooth_scale

NORMAL_RATIO = 20.0  # "up to 20x larger" than the other channels: LLM.int8(), section 1
MASSIVE_RATIO = 1000.0  # "around 1,000 times larger than the median magnitude": Sun et al., section 2


def excess_kurtosis(x: torch.Tensor) -> float:
    """Fourth over squared second central moment of all values, less 3: 0 for a Gaussian; NaN where all are equal.

    >>> excess_kurtosis(torch.tensor([-1.0, 1.0, 1.0, -1.0]))
    -2.0
    """
    centered = x.double() - x.double().mean()
    variance = float(centered.square().mean())
    return float(centered.pow(4).mean()) / variance**2 - 3 if variance else float("nan")


def max_to_median(x: torch.Tensor) -> float:
    """The largest over the median of the channels' (columns') largest absolute values of `x` (rows, in).

    Infinite where half of the channels are zero; NaN where all are.

    >>> max_to_median(torch.tensor([[1.0, -8.0, 2.0], [1.0, 3.0, 1.0]]))
    4.0
    """
    largest = x.double().abs().amax(0)
    return float(largest.max() / largest.quantile(0.5))


def incoherence(W: torch.Tensor) -> float:
    """QuIP's mu of `W` (m, n), max |W_ij| sqrt(mn) / |W|_F: 1 if all are of one size, sqrt(mn) if one is not zero.

    Chee, Cai, Kuleshov, De Sa 2023, arXiv:2307.13304, definition 1. NaN for a zero matrix.
    """
    W = W.double()
    return float(W.abs().max() * W.numel() ** 0.5 / torch.linalg.norm(W))


def eigenvector_incoherence(H: torch.Tensor) -> float:
    """QuIP's mu of a Gram matrix `H` (n, n): max |V_ij| sqrt(n) over its eigenvectors V, from 1 to sqrt(n).

    Definition 1 as well. Eigenvectors whose eigenvalues are zero to rounding are any basis of what inputs never reach,
    and do not count; NaN for a zero matrix. Where eigenvalues coincide, it is that of the eigenvectors that were found.
    """
    values, vectors = torch.linalg.eigh(H.double())
    reached = values > len(H) * torch.finfo(torch.float64).eps * values.max()
    return float(vectors[:, reached].abs().max() * len(H) ** 0.5) if bool(reached.any()) else float("nan")


def dynamic_range(x: torch.Tensor) -> float:
    """Largest over mean absolute value, row by row (a token, an output channel), averaged over `x` (rows, in).

    What a row's scale is made for over what it is mostly used on: 1 if all are of one size, at most `in`. Rows of zeros
    do not count; NaN if there are no others.
    """
    size = x.double().abs()
    size = size[size.amax(1) > 0]
    return float((size.amax(1) / size.mean(1)).mean())


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierChannels:
    """Masks (in,) of the input channels that hold normal outliers, and of those that hold massive ones."""

    normal: torch.Tensor
    massive: torch.Tensor


def outlier_channels(X: torch.Tensor, max_abs: torch.Tensor | None = None) -> OutlierChannels:
    """Which channels of the inputs `X` (tokens, in) are outliers, told apart by how many tokens they are large in.

    The yardstick is the median of |x| over all channels of the median over tokens. A channel is normal where it is at
    least 20 times that in half of the tokens or more, and massive where it is not, yet reaches 1,000 times that in some
    token. `max_abs` (in,), by default that of `X`, may stem from more tokens than `X`. Where most channels are zero in
    most tokens there is no yardstick, and no outlier.
    """
    size = X.double().abs()
    typical = size.quantile(0.5, dim=0)
    yardstick = typical.quantile(0.5)
    largest = size.amax(0) if max_abs is None else max_abs.double()
    normal = (typical >= NORMAL_RATIO * yardstick) & (yardstick > 0)
    return OutlierChannels(normal=normal, massive=(largest >= MASSIVE_RATIO * yardstick) & (yardstick > 0) & ~normal)


@dataclass(frozen=True, slots=True, kw_only=True)
class Smoothed:
    """A site's dynamic ranges after SmoothQuant's scaling at `alpha`, and the output error, relative, of rounding both.

    `both` is the root of the sum of the two squared ranges: the two errors add up in the output.
    """

    alpha: float
    inputs: float
    weights: float
    error: float

    @property
    def both(self) -> float:
        """What an alpha has to keep small."""
        return (self.inputs**2 + self.weights**2) ** 0.5


def smoothed(
    weights: Sequence[torch.Tensor],
    X: torch.Tensor,
    max_abs: torch.Tensor,
    alphas: Sequence[float],
    rounded: Callable[[torch.Tensor], torch.Tensor],
) -> list[Smoothed]:
    """Ranges and error at every alpha for `weights` (out, in) that share the inputs `X` (tokens, in).

    `max_abs` (in,) is what the scales are made for, as in `smooth_scale`; `rounded` puts inputs and weights on their
    grid. The error is |X W^T - Xq Wq^T|^2 / |X W^T|^2 over all of `weights`.
    """
    W = torch.cat(list(weights)).double()
    exact, found = X.double() @ W.T, []
    for alpha in alphas:
        s = smooth_scale(list(weights), max_abs, alpha).double()
        scaled_X, scaled_W = X.double() / s, W * s
        output = rounded(scaled_X).double() @ rounded(scaled_W).double().T
        error = float((exact - output).square().sum() / exact.square().sum())
        found.append(Smoothed(alpha=alpha, inputs=dynamic_range(scaled_X), weights=dynamic_range(scaled_W),
                              error=error))  # fmt: skip
    return found


def best_alpha(found: Sequence[Smoothed], value: Callable[[Smoothed], float]) -> tuple[float, bool]:
    """The alpha with the least `value`, the first of equals, and whether it is interior: neither first nor last."""
    at = min(range(len(found)), key=lambda k: value(found[k]))
    return found[at].alpha, 0 < at < len(found) - 1


CRITERIA = ("salient weights", "worst weights", "salient channels", "worst channels", "large inputs")


def saliences(W: torch.Tensor, E: torch.Tensor, H: torch.Tensor, mean_abs: torch.Tensor) -> dict[str, torch.Tensor]:
    """What weights (out, in) or input channels (in,) are protected by, under the names in `CRITERIA`.

    Salient: diag(H) w^2, for a channel the sum over its column, known before rounding. Worst: diag(H) e^2 of the
    rounding error `E`, which is OWQ's for a channel (Lee et al. 2023, arXiv:2306.02272, eq. 5) and close to SpQR's for
    a weight (Dettmers et al. 2023, arXiv:2306.03078, which divides by the inverse's diagonal instead). Large inputs:
    mean |x|, as in AWQ (Lin et al. 2023, arXiv:2306.00978).
    """
    salient, worst = (H.diagonal() * x.double().square() for x in (W, E))
    return dict(zip(CRITERIA, (salient, worst, salient.sum(0), worst.sum(0), mean_abs.double()), strict=True))


def captured(
    E: torch.Tensor, H: torch.Tensor, salience: torch.Tensor, fractions: Sequence[float]
) -> list[tuple[float, float]]:
    """For each fraction of weights or channels, at least one: which it really is, and the share of error it captures.

    The share of tr(E H E^T), for E (out, in) and H (in, in), that is gone when the most salient ones are left
    unrounded, the first of equals; `salience` is (out, in), or (in,) for channels. NaN where there is no error.
    """
    total, order = quadratic(E, H), salience.flatten().argsort(descending=True, stable=True)
    between = (E.T.double() @ E.double()) * H if salience.ndim == 1 else None  # its sum is tr(E H E^T)
    found = []
    for fraction in fractions:
        n = max(1, round(fraction * len(order)))
        rest = torch.ones(len(order), dtype=torch.float64)
        rest[order[:n]] = 0
        left = float(rest @ between @ rest) if between is not None else quadratic(E * rest.reshape(E.shape), H)
        found.append((n / len(order), 1 - left / total if total else float("nan")))
    return found
