"""Choice under a budget: one option for every layer, the least sum of predicted losses, never more bytes than given.

A multiple-choice knapsack (Kellerer, Pferschy, Pisinger 2004, "Knapsack Problems", ch. 11), solved exactly: dynamic
programming over the undominated (bytes, loss) sums of the layers so far, where a sum is dropped once its Lagrangian
lower bound lies above a solution at hand. Worst case are as many sums as there are bytes in the budget; the bound
leaves a few thousand in practice, because layers of one shape share their costs.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-12  # relative; bounds are sums of a few hundred float64 values, each rounded at 2^-53


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """What a layer may become: whole bytes of storage, and the loss in nats that this is predicted to cost."""

    n_bytes: int
    loss_nats: float

    def __post_init__(self) -> None:
        if self.n_bytes < 0 or not 0 <= self.loss_nats < np.inf:
            raise ValueError(f"{self}: expected bytes and a finite loss, neither negative")


class InfeasibleBudget(ValueError):
    """Even the smallest choice, of `least_bytes`, is above the budget."""

    def __init__(self, budget_bytes: int, least_bytes: int):
        super().__init__(f"a budget of {budget_bytes} bytes: the smallest choice takes {least_bytes}")
        self.least_bytes = least_bytes


def choose(layers: Sequence[Sequence[Option]], budget_bytes: int) -> tuple[int, ...]:
    """The index of every layer's option such that the bytes fit the budget and the sum of losses is least.

    Of equal options the first; an option that another one of its layer beats is never chosen. Raises `ValueError`
    for a layer without options, and `InfeasibleBudget`.

    >>> wide, narrow = Option(n_bytes=4, loss_nats=0.1), Option(n_bytes=2, loss_nats=0.5)
    >>> choose([[narrow, wide], [narrow, Option(n_bytes=4, loss_nats=0.4)]], 7)
    (1, 0)
    """
    kept = [undominated(options) for options in layers]
    cost = [np.array([layers[k][i].n_bytes for i in chosen], dtype=np.int64) for k, chosen in enumerate(kept)]
    loss = [np.array([layers[k][i].loss_nats for i in chosen]) for k, chosen in enumerate(kept)]
    least = sum(int(c[0]) for c in cost)
    if least > budget_bytes:
        raise InfeasibleBudget(budget_bytes, least)
    price, incumbent = _relax(cost, loss, budget_bytes)
    picked = _search(cost, loss, budget_bytes, price, incumbent)
    return tuple(chosen[i] for chosen, i in zip(kept, picked, strict=True))


def undominated(options: Sequence[Option]) -> list[int]:
    """Indices of the options that no other beats in bytes and loss, by rising bytes; of equal ones the first."""
    if not options:
        raise ValueError("a layer without options")
    found: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: (options[i].n_bytes, options[i].loss_nats, i)):
        if not found or options[i].loss_nats < options[found[-1]].loss_nats:
            found.append(i)
    return found


def choose_uniform(classes: Sequence[Sequence[int]], budget_bytes: int) -> tuple[int, ...]:
    """One option for each class of layers, from the bytes that each option takes over its whole class: the most bytes.

    Of equal sums the first. Raises `InfeasibleBudget`.

    >>> choose_uniform([[10, 20, 30]], 25)
    (1,)
    """
    best: tuple[int, ...] | None = None
    most = -1
    for picked in itertools.product(*(range(len(options)) for options in classes)):
        total = sum(options[i] for options, i in zip(classes, picked, strict=True))
        if most < total <= budget_bytes:
            best, most = picked, total
    if best is None:
        raise InfeasibleBudget(budget_bytes, sum(min(options) for options in classes))
    return best


def _relax(cost: list[np.ndarray], loss: list[np.ndarray], budget: int) -> tuple[float, float]:
    """The price of a byte at which the relaxed problem spends the budget, and the loss of a choice that fits.

    Steps along every layer's lower convex hull are taken by falling gain per byte: the first that no longer fits has
    the price; the later ones that still do are taken, as far as their layer has not missed one before.
    """
    steps: list[tuple[float, int, int, float]] = []
    for k, (c, x) in enumerate(zip(cost, loss, strict=True)):
        corners = _hull(c, x)
        for a, b in itertools.pairwise(corners):
            steps.append((-(x[a] - x[b]) / (c[b] - c[a]), k, int(c[b] - c[a]), float(x[a] - x[b])))
    left, total, price = budget - sum(int(c[0]) for c in cost), sum(float(x[0]) for x in loss), 0.0
    stopped: set[int] = set()
    for slope, k, extra, gain in sorted(steps, key=lambda step: step[0]):
        if extra <= left and k not in stopped:
            left, total = left - extra, total - gain
        else:
            price = price or -slope
            stopped.add(k)
    return price, total


def _hull(cost: np.ndarray, loss: np.ndarray) -> list[int]:
    """Corners of the lower convex hull of points of rising cost and falling loss."""
    corners: list[int] = []
    for i in range(len(cost)):
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (loss[b] - loss[a]) * (cost[i] - cost[a]) < (loss[i] - loss[a]) * (cost[b] - cost[a]):
                break
            corners.pop()
        corners.append(i)
    return corners


def _search(
    cost: list[np.ndarray], loss: list[np.ndarray], budget: int, price: float, incumbent: float
) -> tuple[int, ...]:
    """The best choice, by index, over all sums that neither exceed the budget nor the incumbent's loss."""
    least_left = np.cumsum([0, *(int(c[0]) for c in reversed(cost))])[::-1]
    bound_left = np.cumsum([0.0, *(float((x + price * c).min()) for c, x in zip(cost[::-1], loss[::-1], strict=True))])
    bound_left = bound_left[::-1]
    most = incumbent + price * budget
    most += _ROUNDING * (most + sum(float(x[0]) for x in loss))
    spent, lost = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    for k, (c, x) in enumerate(zip(cost, loss, strict=True)):
        all_spent, all_lost = (spent[:, None] + c).ravel(), (lost[:, None] + x).ravel()
        fits = (all_spent + least_left[k + 1] <= budget) & (all_lost + price * all_spent + bound_left[k + 1] <= most)
        places = np.flatnonzero(fits)
        places = places[np.lexsort((all_lost[places], all_spent[places]))]
        before = np.minimum.accumulate(np.concatenate([[np.inf], all_lost[places]]))[:-1]
        places = places[all_lost[places] < before]
        spent, lost = all_spent[places], all_lost[places]
        trail.append((places // len(c), places % len(c)))
    at, picked = len(spent) - 1, []  # losses fall as bytes rise: the last is the best
    for parents, choices in reversed(trail):
        picked.append(int(choices[at]))
        at = int(parents[at])
    return tuple(reversed(picked))
