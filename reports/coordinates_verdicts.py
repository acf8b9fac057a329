"""What the curves of doses and the rows of outliers say, in words: a sentence for each claim that they bear on."""

from statistics import median

import numpy as np

from reports.coordinates import ROTATIONS, Curve, Dosed, Doses, Measured, both, optimum, shares
from reports.frontier import listed
from suite.models.doses import Dose

PLAIN = "rtn"
CLAIM_DOSE = Dose("linear", 64)
CLAIM_RATIO = 0.5  # "each rotation method's KL below half of plain's"
_WHY_NOT = (
    "A rotation deals the errors of rounded weights out evenly over a layer's inputs, the larger ones among them; "
    "plain rounding, whose columns there are as many times smaller, can lose what they hold and no more. What "
    "rotations save on rounded inputs is more than that only where these are the coarser of the two."
)


def ratio(above: Dosed, below: Dosed) -> tuple[float, float]:
    """KL over KL, and its standard error as if the two were independent: on the same tokens it is less."""
    value = above.kl / below.kl
    return value, value * float(np.hypot(above.error / above.kl, below.error / below.kl))


def dose_verdicts(doses: Doses) -> list[str]:
    """What the curves say of the claims about doses, a sentence for each that they say anything of."""
    said = (_linear_claim, _norm_claim, _plain_rise, _learned_against_random)
    return [sentence for width in doses.widths for say in said if (sentence := say(doses, width))]


def _curve(doses: Doses, width: str, method: str) -> Curve | None:
    return next((c for c in doses.curves if (c.width, c.method) == (width, method)), None)


def _linear_claim(doses: Doses, width: str) -> str:
    dose, plain = CLAIM_DOSE, _curve(doses, width, PLAIN)
    base = plain.at(dose.kind, dose.factor) if plain else None
    if base is None or not base.kl > 0:
        return ""
    below, others = [], []
    for method in ROTATIONS:
        curve = _curve(doses, width, method)
        point = curve.at(dose.kind, dose.factor) if curve else None
        if point is not None and point.kl > 0:
            value, error = ratio(point, base)
            (below if value < CLAIM_RATIO else others).append(f"{method}'s is {value:.2g} ± {error:.1g} times that")
    if not below + others:
        return ""
    text = f"{width}, {dose.factor}-fold outliers of kind {dose.kind}: plain rounding's KL is {base.kl:.3g}"
    text += f"; {listed(below)}, less than half" if below else ""
    return text + (f"; {listed(others)}, not below half. {_WHY_NOT}" if others else ".")


def _norm_claim(doses: Doses, width: str) -> str:
    kept, moved = [], []
    for method in ROTATIONS:
        curve = _curve(doses, width, method)
        first, *others = (curve.of("norm") if curve else []) or [None]
        if first is None or not others or not first.kl > 0:
            continue
        furthest = max(others, key=lambda d: abs(d.kl - first.kl))
        apart, noise = abs(furthest.kl - first.kl), float(np.hypot(furthest.error, first.error))
        errors = f" ({apart / noise:.2g} standard errors)" if noise else ""
        (moved if apart else kept).append(
            f"{method} by up to {100 * apart / first.kl:.2g}%{errors}" if apart else method
        )
    if not kept + moved:
        return ""
    text = f"{width}, kind norm, which folding of the gain undoes: "
    said = [f"it leaves {listed(kept)} at the very same KL at every dose"] if kept else []
    said += [f"it moves the KL of {listed(moved)}"] if moved else []
    return f"{text}{'; '.join(said)}."


def _plain_rise(doses: Doses, width: str) -> str:
    plain, rises = _curve(doses, width, PLAIN), []
    for kind in doses.kinds if plain else ():
        assert plain is not None
        found = plain.of(kind)
        if len(found) > 1 and found[0].factor == 1 and found[0].kl > 0:
            rises.append(f"{found[-1].kl / found[0].kl:.3g}-fold at {found[-1].factor}-fold {kind}")
    return f"{width}: plain rounding's own KL rises {listed(rises)}." if rises else ""


def _learned_against_random(doses: Doses, width: str) -> str:
    learned, random = _curve(doses, width, "spinquant"), _curve(doses, width, "quarot")
    pairs = [(a, b) for a in (learned.doses if learned else ()) for b in (random.doses if random else ())
             if (a.kind, a.factor) == (b.kind, b.factor)]  # fmt: skip
    if not pairs:
        return ""
    ahead = sum(a.kl < b.kl for a, b in pairs)
    return f"{width}: spinquant's KL is below quarot's at {ahead} of {len(pairs)} doses."


def outlier_verdict(found: Measured) -> str:
    """One sentence: what the inputs' figures are, and what they become."""
    if "none" not in found.coordinates:
        return ""
    size = sum(r.n_channels for r in found.outliers if (r.coordinates, r.tensor) == ("none", "inputs"))
    text = (f"of {size:,} input channels {found.channels('none', 'normal')} hold normal outliers and "
            f"{found.channels('none', 'massive')} massive ones; the median over layers of the inputs' excess kurtosis "
            f"is {_median(found, 'none'):.3g}")  # fmt: skip
    rest = [f"{_median(found, c):.3g} by {c}" for c in found.coordinates if c != "none"]
    return f"{text}{', and becomes ' + listed(rest) if rest else ''}."


def _median(found: Measured, coordinates: str) -> float:
    values = found.figures(coordinates, "inputs", "kurtosis")
    return float(np.nanmedian(values)) if np.isfinite(values).any() else float("nan")


def smoothing_verdict(found: Measured) -> str:
    """One sentence: where the optima over alpha are."""
    said = []
    for name, value in (("range", both), ("output error", lambda r: r.error)):
        best = [o for rows in found.sites.values() if (o := optimum(rows, value))]
        if best:
            alphas = sorted(alpha for alpha, _ in best)
            said.append(f"the {name} of inputs and weights together is least inside the interval in "
                        f"{sum(interior for _, interior in best)} of {len(best)} sites, at a median alpha of "
                        f"{median(alphas):.3g} (from {alphas[0]:g} to {alphas[-1]:g})")  # fmt: skip
    return f"{'; '.join(said)}." if said else ""


def salience_verdict(found: Measured) -> str:
    """One sentence: the share of the error that the most salient hundredth captures."""
    said = []
    for criterion in dict.fromkeys(r.criterion for r in found.salience):
        own = shares(r for r in found.salience if (r.criterion, r.coordinates) == (criterion, "none"))
        if 0.01 in own:
            said.append(f"{100 * own[0.01]:.3g}% by {criterion}")
    bits = "/".join(sorted({str(r.bits) for r in found.salience}))
    return (
        f"one in a hundred kept as it is captures, of the output error at {bits} bits, {listed(said)}." if said else ""
    )
