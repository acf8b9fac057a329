"""Two-part description length against width: the bits of a model, and those of the text given the model.

Rissanen 1978, Modeling by shortest data description; Hinton and van Camp 1993, Keeping neural networks simple. Of n
tokens and P weights of b bits, up to the text's length under the unquantized model, which does not depend on b,

    L(b) = P b + n KL(b) / ln 2   bits.

Where KL = c 4^-b nats, the law of high rate, L'(b) = P - 2 n c 4^-b: the least is at

    b* = log2(2 n c / P) / 2,    L* = P (b* + 1 / (2 ln 2)),

so that the data part is 0.721 bits a weight at every optimum, and b* rises by one bit for fourfold text. Only n / P
matters, the tokens for each weight; scales add the same to every width. Widths between whole ones are read off a cubic
spline of log2 KL.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar

from theory.entropy.divergence import base_of, rounded
from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

WIDTHS = (1, 2, 3, 4, 5, 6, 7, 8)
_TOKENS = 1024
_LAW = (5, 6, 7, 8)  # where c is taken from, as in the ledger's elbow of quality against bits
_TOKENS_PER_WEIGHT = (3.0, 20.0)  # the shipped model's own text about, and Chinchilla's rule (Hoffmann et al. 2022)
_ABOVE, _BELOW = (4.0, 7.0), (1.5, 3.5)  # widths of the minimum within which its rise is measured
_TEXTS = 4.0 ** np.arange(-2.0, 9.01, 0.25)  # tokens for each weight


def best_width(c: float, tokens_per_weight: float) -> float:
    """b* = log2(2 n c / P) / 2 in bits, of KL = c 4^-b nats.

    >>> best_width(c=2.0, tokens_per_weight=4.0)
    2.0
    """
    return float(np.log2(2 * tokens_per_weight * c) / 2)


def length(width: float, nats: float, tokens_per_weight: float) -> float:
    """L / P in bits per weight, less the text under the unquantized model."""
    return float(width + tokens_per_weight * nats / np.log(2))


def least(nats: Mapping[int, float], tokens_per_weight: float) -> float:
    """The width of the least L between the narrowest and the widest, by a cubic spline of log2 KL; may be an end.

    >>> round(least({b: 4.0**-b for b in range(1, 9)}, 128.0), 3)
    4.0
    """
    known = sorted(nats)
    spline = CubicSpline(known, np.log2([nats[b] for b in known]))

    def at(b: float) -> float:
        return length(b, float(np.exp2(spline(b))), tokens_per_weight)

    grid = np.linspace(known[0], known[-1], 141)
    k = int(np.argmin([at(b) for b in grid]))
    if k in (0, len(grid) - 1):
        return float(grid[k])
    return float(minimize_scalar(at, bounds=(grid[k - 1], grid[k + 1]), method="bounded", options={"xatol": 1e-6}).x)


def constant(nats: Mapping[int, float]) -> float:
    """The c of KL = c 4^-b: the geometric mean over widths of 5 to 8 bits."""
    return float(np.exp(np.mean([np.log(nats[b] * 4.0**b) for b in _LAW])))


def rise(nats: Mapping[int, float], within: tuple[float, float]) -> float:
    """Bits that the minimum's width rises with four times the text, by least squares where it is `within` two widths.

    NaN where fewer than three of the texts have it there.
    """
    found = [(np.log2(n) / 2, least(nats, float(n))) for n in _TEXTS]
    kept = np.array([pair for pair in found if within[0] <= pair[1] <= within[1]])
    return float(np.polyfit(kept[:, 0], kept[:, 1], 1)[0]) if len(kept) > 2 else float("nan")


def divergences(setting: Setting, seed: int) -> dict[int, float]:
    """KL in nats of RTN in groups of 128, by width, on rows that the seed draws."""
    base = base_of(setting.model, round(_TOKENS * setting.effort), seed)
    return {b: base.nats(rounded(setting.model, b)) for b in WIDTHS}


def two_parts(setting: Setting) -> Mapping[str, float]:
    """N8: what the narrowest and the widest codes take beyond the best inside, and the rise of the minimum."""
    nats = divergences(setting, setting.seed)
    found = {"bits per fourfold text, 4 to 7 bits": rise(nats, _ABOVE),
             "bits per fourfold text, 1.5 to 3.5 bits": rise(nats, _BELOW), "c": constant(nats)}  # fmt: skip
    for n in _TOKENS_PER_WEIGHT:
        by = {b: length(b, nats[b], n) for b in WIDTHS}
        inside = min(by[b] for b in WIDTHS[1:-1])
        found |= {f"bits beyond the best, narrowest, {n:g} tokens a weight": by[WIDTHS[0]] - inside,
                  f"bits beyond the best, widest, {n:g} tokens a weight": by[WIDTHS[-1]] - inside,
                  f"width of the minimum, {n:g} tokens a weight": least(nats, n),
                  f"width by the law, {n:g} tokens a weight": best_width(constant(nats), n)}  # fmt: skip
    return found


def _measure(setting: Setting) -> list[Point]:
    found = [divergences(setting, seed) for seed in seeds_of(setting)]
    c = float(np.exp(np.mean([np.log(constant(nats)) for nats in found])))
    points = []
    for n in _TEXTS[::2]:
        widths = [least(nats, float(n)) for nats in found]
        if min(widths) > WIDTHS[0] and max(widths) < WIDTHS[-1]:
            points.append(replicated("measured", float(n), widths))
    ends = [p.x for p in points]
    points += [Point(series="by KL = c / 4^b", x=n, y=best_width(c, n), predicted=True) for n in (min(ends), max(ends))]
    return points


def _sentence(points: Sequence[Point]) -> str:
    law = [p for p in points if p.predicted]
    line = [p for p in points if not p.predicted and _ABOVE[0] <= p.y <= _ABOVE[1]]
    slope = float(np.polyfit(np.log2([p.x for p in line]) / 2, [p.y for p in line], 1)[0])
    few = min((p for p in points if not p.predicted), key=lambda p: p.x)
    gap = few.y - law[0].y
    return (
        f"From 4 to 7 bits the width of the least description rises {slope:.3f} bits for four times the text; with "
        f"{few.x:.3g} tokens for each weight it is {few.y:.2f} bits, {gap:+.2f} of what the law of high rate has."
    )


def _curves(setting: Setting) -> list[Point]:
    nats = [divergences(setting, seed) for seed in seeds_of(setting)]
    c, points = float(np.mean([constant(one) for one in nats])), []
    for n in (*_TOKENS_PER_WEIGHT, 1280.0):
        name = f"{n:g} tokens a weight"
        points += [replicated(name, b, [length(b, one[b], n) for one in nats]) for b in WIDTHS]
        points += [Point(series=f"{name}, by KL = c / 4^b", x=float(b), y=length(b, c * 4.0**-b, n), predicted=True)
                   for b in np.linspace(2, 8, 25)]  # fmt: skip
    return points


def _of_curves(points: Sequence[Point]) -> str:
    rows = []
    for series in dict.fromkeys(p.series for p in points if not p.predicted):
        best = min((p for p in points if p.series == series), key=lambda p: p.y)
        rows.append(f"{best.y:.2f} bits a weight at {best.x:g} bits ({series})")
    return f"The least description beyond the unquantized model's text: {', '.join(rows)}."


EXPERIMENTS = (
    Experiment(name="entropy-description-length", title="Two-part description length against width, RTN",
               source="Rissanen 1978; derivation of the module", x="bits of a weight",
               y="description, bits per weight", measure=_curves, sentence=_of_curves, log="y", interval=INTERVAL,
               tier="full", on_model=True),
    Experiment(name="entropy-best-width", title="The width of the least description against the text's length",
               source="Rissanen 1978; derivation of the module", x="tokens for each weight",
               y="width of the least description, bits", measure=_measure, sentence=_sentence, log="x",
               tier="full", interval=INTERVAL, on_model=True),
)  # fmt: skip
