"""Sentences on trained cells: what 4 bits cost, what 2 bits heal, how far weights move; none without such cells."""

from math import exp, isfinite, log1p, sqrt

from reports.frontier import listed
from reports.training import Cell, Excess, Trained

COST = 0.02  # of the control's perplexity: what a sentence asks of 4 bits
HEALED = 0.5  # of GPTQ's excess: what a sentence asks of 2 bits
# How far ParetoQ's authors see weights move, |W' - W| over |W|: from 3 bits on, and up to 2 bits (Liu et al. 2025,
# arXiv:2502.02631). "About 40%" is taken for nearer to that than to the most from 3 bits on.
ADJUSTED, REBUILT = (0.10, 0.20), 0.40
_SURE = 2  # standard errors


def training_verdicts(trained: Trained) -> list[str]:
    """The span of the excesses, what 4 bits cost, what 2 bits heal, how far weights move: what there are cells of."""
    made = (_span(trained), cost_verdict(trained), healing_verdict(trained), *distance_verdicts(trained))
    return [sentence for sentence in made if sentence]


def _span(trained: Trained) -> str:
    found = sorted((cell.excess for cell in trained.cells if isfinite(cell.excess.nats)), key=lambda e: e.nats)
    if not found:
        return ""
    if len(found) == 1:
        return f"there is one trained cell: {_nats(found[0])} over its control."
    return f"{len(found)} trained cells; over their controls from {_nats(found[0])} to {_nats(found[-1])}."


def cost_verdict(trained: Trained) -> str:
    """Whether training at 4 bits costs at most `COST` of the control's perplexity; empty without such cells."""
    found = [c.excess for c in trained.cells if c.bits == 4 and isfinite(c.excess.nats)]
    if not found:
        return ""
    words = []
    for e in found:
        off = e.nats - log1p(COST)
        kept = "within" if off <= 0 else "not within"
        error = f" ± {exp(e.nats) * 100 * e.error:.1g}" if isfinite(e.error) else ""
        words.append(f"{e.label} {e.percent:+.2g}{error}%, {kept} {100 * COST:g}%{_doubt(off, e.error)}")
    return f"perplexity at 4 bits over the control's: {'; '.join(words)}."


def healing_verdict(trained: Trained) -> str:
    """Whether the excess at 2 bits is below `HEALED` of GPTQ's; empty without cells of both.

    GPTQ's is over the original, and of several the least.
    """
    found = [c.excess for c in trained.cells if c.bits == 2 and isfinite(c.excess.nats)]
    against = [e for e in trained.untrained if e.record.method == "gptq" and e.record.bits == 2 and e.nats > 0]
    if not found or not against:
        return ""
    least = min(against, key=lambda e: e.nats)
    words = []
    for e in found:
        below = "below" if e.nats < HEALED * least.nats else "not below"
        error = sqrt(e.error**2 + (HEALED * least.error) ** 2)  # the same tokens: what they share would make it less
        words.append(f"{_nats(e)}, {below} half{_doubt(e.nats - HEALED * least.nats, error)}")
    return f"at 2 bits, where {_nats(least)} over the original is GPTQ's, over their controls: {'; '.join(words)}."


def distance_verdicts(trained: Trained) -> list[str]:
    """How far weights moved from 3 bits on and up to 2, against what ParetoQ's authors print, method by method.

    Only of methods that have cells on both sides, and no cells from scratch.
    """
    made = []
    for method in trained.methods:
        own = [c for c in trained.cells if c.record.method == method and isfinite(c.distance)]
        wide, narrow = [c for c in own if c.bits >= 3], [c for c in own if c.bits <= 2]
        if wide and narrow:
            made.append(_distances(method, wide, narrow))
    return made


def _distances(method: str, wide: list[Cell], narrow: list[Cell]) -> str:
    low, high = ADJUSTED
    adjusts = all(low <= c.distance <= high for c in wide)
    rebuilds = all(c.distance >= (high + REBUILT) / 2 for c in narrow)
    seen = {(True, True): "both as claimed", (True, False): "as claimed from 3 bits on, not up to 2",
            (False, True): "as claimed up to 2 bits, not from 3 on", (False, False): "neither as claimed"}  # fmt: skip
    controls = sorted({c.distance_control for c in (*wide, *narrow) if isfinite(c.distance_control)})
    own = f", their controls' {listed([_percent(d) for d in controls])}" if controls else ""
    return (
        f"{method}'s weights moved, ‖W′−W‖ over ‖W‖, by {_at_bits(wide)} bits and by {_at_bits(narrow)}{own}; "
        f"ParetoQ's authors have {100 * low:g} to {100 * high:g}% from 3 bits on and about {100 * REBUILT:g}% up to 2: "
        f"{seen[adjusts, rebuilds]}."
    )


def _at_bits(cells: list[Cell]) -> str:
    return listed([f"{_percent(c.distance)} at {c.bits:g}" for c in sorted(cells, key=lambda c: -c.bits)])


def _nats(e: Excess) -> str:
    error = f" ± {e.error:.1g}" if isfinite(e.error) else ""
    return f"{e.label} at {e.bpw:.3g} bits {e.nats:.3g}{error} nats"


def _doubt(difference: float, error: float) -> str:
    return f" (by less than {_SURE} standard errors)" if abs(difference) < _SURE * error else ""


def _percent(share: float) -> str:
    return f"{100 * share:.3g}%"
