r"""Qronos: correct the errors that the layers before have made, then shape those still to come.

Zhang, Zhang, Colbert, Saab 2025, "Qronos: Correcting the Past by Shaping the Future in Post-Training Quantization",
arXiv:2505.11695 (ICLR 2026). A layer of the quantized model sees inputs X~ instead of X, and Qronos minimizes

    |X W^T - X~ Q^T|^2,        H = X~^T X~ / n,  G = X^T X~ / n,

row by row w of W. *Correction*: the next column is rounded from its least-squares value, the columns after it as they
are. *Diffusion*: the columns after it are solved for by least squares. The two alternate. The paper's theorem is that
correction has something to do in the first column alone, since what diffusion leaves is optimal already: from then on
the recursion is GPTQ's. Diffusion takes G + lambda I and H + lambda I for G and H.

That makes it error feedback on other weights. With D = G - H let

    W* = W (G + lambda I)(H + lambda I)^-1 = W + W D (H + lambda I)^-1.

Written out in blocks, first column (0) and the others (1), w (G + lambda I) = w* (H + lambda I) says that after any
first column q the least-squares values of the others are

    (w (G + lambda I)_1 - q H_01)(H + lambda I)_11^-1 = w*_1 + (w*_0 - q) H_01 (H + lambda I)_11^-1,

where error feedback on W* pushes them. What differs is what the first column is rounded from, which the paper takes
with the others at their original values, and undamped:

    (w G_0 - w_1 H_10) / H_00 = w_0 + (w D)_0 / H_00,

and w_0 where H_00 = 0. On matched inputs D = 0, and this is error feedback on W, bit for bit. The identity of
`suite.rounding.feedback` holds with W* in place of W.

Where this differs from the release (Brevitas 0.13.4): input channels that never fire keep their weights instead of
losing them, and the largest eigenvalue is sought from a fixed start instead of a random one.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from suite.grids.grid import Grid
from suite.grids.layout import check_finite
from suite.rounding.elementwise import Nearest, Rounded, Stochastic
from suite.rounding.feedback import Feedback, Groups, Order, Ordered, checked, factor

_POWER_STEPS = 30  # of power iteration: the release's


@dataclass(frozen=True, slots=True, kw_only=True)
class Qronos:
    """Error feedback for inputs that differ from those that the layer was made for.

    `order`, `groups`, `block` and `pick` are those of `Feedback`: "static" groups are fitted to W, others to W* as
    pushed so far. `damping` is relative to the largest eigenvalue of H, as in the paper, or to its "mean" diagonal as
    GPTQ's, and is raised tenfold, and recorded, while H cannot be factored.
    """

    order: Order = "decreasing"
    groups: Groups = "static"
    damping: float = 1e-6
    relative_to: Literal["largest", "mean"] = "largest"
    block: int = 128
    pick: Nearest | Stochastic = field(default_factory=Nearest)

    def __post_init__(self) -> None:
        if self.relative_to not in ("largest", "mean"):
            raise ValueError(f"relative_to {self.relative_to!r}: expected largest or mean")
        self._feedback(self.damping)  # which checks the others

    def round(
        self,
        W: torch.Tensor,
        grid: Grid,
        H: torch.Tensor | None,
        generator: torch.Generator,
        cross: torch.Tensor | None = None,
    ) -> Rounded:
        """Codes for `W` (out, in) given `H` = X~^T X~ / n (in, in) and `cross` = G = X^T X~ / n (in, in).

        Without `cross` the inputs count as matched, G = H: then this is error feedback. So it is in a recipe of
        `inputs="original"`. `ValueError` without H, for wrong shapes, and for NaN or infinite values of G.
        """
        H = checked(H, W.shape[1]).double()
        feedback = self._feedback(self._damping(H))
        R, perm, fallbacks = factor(H, feedback.order, feedback.damping)
        wanted, first = W, None
        if cross is not None:
            wanted, first = corrected(W, H, checked_cross(cross, H), R, perm)
        columns = replace(Ordered.of(wanted, H, R, perm), first=first)
        codes, fitted = feedback.place(columns, grid.fit(W, H), generator)
        return Rounded(codes, fitted, fallbacks)

    def _feedback(self, damping: float) -> Feedback:
        return Feedback(order=self.order, groups=self.groups, damping=damping, block=self.block, pick=self.pick)

    def _damping(self, H: torch.Tensor) -> float:
        """The damping relative to the mean diagonal, which is what `factor` takes."""
        mean = float(H.diagonal().mean())
        if self.relative_to == "mean" or mean == 0:
            return self.damping
        return self.damping * largest_eigenvalue(H) / mean


def corrected(
    W: torch.Tensor, H: torch.Tensor, cross: torch.Tensor, R: torch.Tensor, perm: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """W* (out, in) = W + W (G - H)(H + lambda I)^-1, and what its first column in the order `perm` is rounded from.

    `R` and `perm` as `factor` gives them for `H`: (H + lambda I)[perm][:, perm] = R R^T. In float64, given back in the
    type of `W`.
    """
    moment = (W.double() @ (cross.double() - H))[:, perm]  # W D, in order
    half = torch.linalg.solve_triangular(R, moment.T, upper=True)
    shift = torch.empty_like(moment)
    shift[:, perm] = torch.linalg.solve_triangular(R.T, half, upper=False).T
    energy = H[perm[0], perm[0]]
    push = torch.where(energy > 0, moment[:, 0] / energy, 0.0)
    return (W.double() + shift).to(W.dtype), (W[:, perm[0]].double() + push).to(W.dtype)


def checked_cross(cross: torch.Tensor, H: torch.Tensor) -> torch.Tensor:
    """`cross`, or a `ValueError` where its shape is not that of `H` or its values are not finite."""
    if cross.shape != H.shape:
        raise ValueError(f"Qronos needs the cross-Gram matrix of shape {tuple(H.shape)}, found {tuple(cross.shape)}")
    check_finite(cross)
    return cross


def largest_eigenvalue(H: torch.Tensor) -> float:
    """The largest eigenvalue of a positive semidefinite `H` (in, in), from below: a Rayleigh quotient.

    Power iteration from a fixed start of no structure. What is missing after k steps is on average over starts at most
    0.871 ln(in) / (k - 1) of it (Kuczynski, Wozniakowski 1992), which is no matter for a damping. 0 where H is.
    """
    x = torch.arange(1, len(H) + 1, dtype=H.dtype).cos_()
    for _ in range(_POWER_STEPS):
        y = H @ x
        if not bool(y.any()):
            return 0.0
        x = y / y.norm()
    return float(x @ (H @ x))
