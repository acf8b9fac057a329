r"""The bound that stands beside a layer's measured error: of values rounded one by one on integers, fed back or not.

The suite asks for it by the entry point `bitfrontier.bounds`. What rounding promises is how far a value lands from what
it was rounded from: half a step to nearest, a step stochastically, where it is not clipped. A value that is clipped
lands as far as it does; it counts with its own distance, which is known once it is rounded (`targets_missed`). So with
r_ij the larger of the promise and the distance, for e the distances,

- with feedback, e (H~ + lambda I) e^T = sum_j d_j e_j^2 (`zhang_2025_optq`), H~ being what the layer was rounded under,
  and if H <= k (H~ + lambda I) as matrices, the error in H is at most k sum_ij d_j r_ij^2; k = 1 where H~ = H;
- without, e H e^T is at most r |H| r^T, entry by entry, and at most the largest eigenvalue of H times |r|^2.

Both k and the largest eigenvalue are certified: the Cholesky factorization of k B - H succeeds. Where nothing is
clipped the bound follows from steps and Gram matrices alone; `clipped` says how many values are.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from suite.bounds import RoundedLayer

_POWER_STEPS = 30  # the certificate comes from the factorization: these only have to come near
_TRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """How far values land from what they are rounded from: `reach` (out, in) in float64, and how many are `clipped`.

    Columns are in the order in which they are rounded. Clipped is what lands farther than rounding promises, by more
    than what arithmetic in the matrix's own type may be off by.
    """

    reach: "torch.Tensor"
    clipped: int


def bound(layer: "RoundedLayer") -> float | None:
    """What tr (W - Q) H (W - Q)^T cannot exceed; None for other grids and roundings, and for sides and frames."""
    import torch

    from suite.rounding import Feedback

    if not applies(layer):
        return None
    rounding, H = layer.target.rounding, layer.H.double()
    if not isinstance(rounding, Feedback):
        reach = reached(layer, None, torch.arange(len(H))).reach
        entrywise = float(((reach @ H.abs()) * reach).sum())
        return min(entrywise, largest_ratio(H, torch.eye(len(H), dtype=H.dtype)) * float(reach.square().sum()))
    R, perm = _factor(layer)
    found = float((reached(layer, R, perm).reach.square() @ R.diagonal().square()).sum())
    return found if layer.gram is layer.H else largest_ratio(H[perm[:, None], perm], R @ R.T) * found


def applies(layer: "RoundedLayer") -> bool:
    """Whether values were rounded one by one on integers, to nearest or stochastically, and nothing was added since."""
    from suite.grids.integer import FittedInteger
    from suite.rounding import Feedback, Nearest, Stochastic

    found = layer.quantized
    alone = found.frame is None and found.side is None and found.in_scale is None
    kinds = isinstance(layer.target.rounding, Nearest | Stochastic | Feedback)
    return alone and kinds and isinstance(found.grid, FittedInteger)


def clipped(layer: "RoundedLayer") -> int:
    """How many values of a layer to which the bound applies lie outside of their grid's range as they are rounded."""
    import torch

    from suite.rounding import Feedback

    if isinstance(layer.target.rounding, Feedback):
        return reached(layer, *_factor(layer)).clipped
    return reached(layer, None, torch.arange(layer.W.shape[1])).clipped


def reached(layer: "RoundedLayer", R: "torch.Tensor | None", perm: "torch.Tensor") -> Reached:
    """How far values land, in the order `perm`; `R` as `suite.rounding.feedback.factor` gives it, None without it."""
    import torch

    from suite.rounding import Feedback, Stochastic

    rounding, grid = layer.target.rounding, layer.quantized.grid
    pick = rounding.pick if isinstance(rounding, Feedback) else rounding
    steps = grid.layout.expand(grid.scale).double().abs().expand(layer.W.shape)[:, perm]  # type: ignore[attr-defined]
    promised = steps if isinstance(pick, Stochastic) else steps / 2
    missed = (layer.W.double() - layer.quantized.dequantize().double())[:, perm]
    if R is not None:
        missed = missed @ R / R.diagonal()
    off = len(perm) * torch.finfo(layer.W.dtype).eps * float(layer.W.abs().max())
    return Reached(reach=torch.maximum(promised, missed.abs()), clipped=int((missed.abs() > promised + off).sum()))


def largest_ratio(H: "torch.Tensor", B: "torch.Tensor") -> float:
    """A k with H <= k B as matrices, a few per cent above the least; `H` and `B` (in, in), B positive definite.

    Power iteration on B^-1 H comes near the least from below; k is raised until k B - H has a Cholesky factor.
    """
    import torch

    L, x = torch.linalg.cholesky(B), torch.arange(1, len(H) + 1, dtype=H.dtype).cos_()
    for _ in range(_POWER_STEPS):
        y = torch.cholesky_solve((H @ x)[:, None], L)[:, 0]
        if not bool(y.any()):
            break
        x = y / y.norm()
    k = 1.01 * float(x @ (H @ x)) / float(x @ (B @ x))
    for _ in range(_TRIES):
        if not torch.linalg.cholesky_ex(k * B - H)[1]:
            return k
        k = max(1.05 * k, torch.finfo(H.dtype).eps * float(H.diagonal().sum() / B.diagonal().sum()))
    return float("inf")


def _factor(layer: "RoundedLayer") -> tuple["torch.Tensor", "torch.Tensor"]:
    from suite.rounding import Feedback
    from suite.rounding.feedback import factor

    rounding = layer.target.rounding
    assert isinstance(rounding, Feedback)
    R, perm, _ = factor(layer.gram, rounding.order, rounding.damping)
    return R, perm
