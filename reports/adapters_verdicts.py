"""Sentences on adapters: what they cost, whether LoftQ's start is kept, what entropy buys, what a merge rounds off."""

from math import isfinite

from reports.adapters import Adapted, Cell, Difference, Series, difference


def adapter_verdicts(adapted: Adapted) -> list[str]:
    """What there are series of, in the order above."""
    made = (_span(adapted), *start_verdicts(adapted), *entropy_verdicts(adapted), rounding_verdict(adapted))
    return [sentence for sentence in made if sentence]


def _span(adapted: Adapted) -> str:
    found = sorted((s for s in adapted.series if isfinite(s.excess)), key=lambda s: s.excess)
    if not found:
        return ""
    if len(found) == 1:
        return f"there is one series of adapters: {_nats(found[0])} over full-precision LoRA."
    return f"{len(found)} series of adapters; over full-precision LoRA from {_nats(found[0])} to {_nats(found[-1])}."


def start_verdicts(adapted: Adapted) -> list[str]:
    """LoftQ less QLoRA before training and after it, at every width that has one series of each."""
    made = []
    for bits, one, other in _pairs(adapted, "loftq", "qlora"):
        before = difference(one, other, lambda cell: cell.nats_start)
        after = difference(one, other, lambda cell: cell.nats)
        if after is not None:
            began = "" if before is None else f" begins {_changed(before, 'nats')} and"
            made.append(f"LoftQ at {bits:g} bits{began} ends {_changed(after, 'nats')} from QLoRA"
                        f"{_seeds(after)}.")  # fmt: skip
    return made


def entropy_verdicts(adapted: Adapted) -> list[str]:
    """IR-QLoRA less QLoRA, entropy of codes and loss, at every width that has one series of each."""
    made = []
    for bits, one, other in _pairs(adapted, "ir-qlora", "qlora"):
        entropy = difference(one, other, lambda cell: cell.entropy)
        loss = difference(one, other, lambda cell: cell.nats)
        if entropy is not None and loss is not None:
            more = one.bpw - other.bpw
            made.append(
                f"IR-QLoRA's codes at {bits:g} bits have {_changed(entropy, 'bits')} of entropy against QLoRA's, its "
                f"loss {_changed(loss, 'nats')}, with {more:.2g} true bits more{_seeds(loss)}."
            )
    return made


def rounding_verdict(adapted: Adapted) -> str:
    """What float16 zero points round off merged adapters; empty without QA-LoRA."""
    found = {f"{s.bits:g}": s.mean(_rounding) for s in adapted.series if s.method == "qa-lora"}
    words = [f"{share:.2g} at {bits} bits" for bits, share in found.items() if isfinite(share)]
    if not words:
        return ""
    return f"QA-LoRA merges exactly but for its zero points' float16, which move |W|² by a share of {', '.join(words)}."


def _rounding(cell: Cell) -> float:
    return float("nan") if cell.row.rounding is None else cell.row.rounding


def _pairs(adapted: Adapted, method: str, other: str) -> list[tuple[float, Series, Series]]:
    found = []
    for bits in sorted({s.bits for s in adapted.series if s.method == method and isfinite(s.bits)}):
        one, two = adapted.of(method, bits), adapted.of(other, bits)
        if len(one) == len(two) == 1:
            found.append((bits, one[0], two[0]))
    return found


def _changed(found: Difference, unit: str) -> str:
    text = f"{found.mean:+.3g}".replace("-", "−")
    if found.n == 1:
        return f"{text} {unit}"
    return f"{text} [{found.low:.3g}, {found.high:.3g}] {unit}".replace("-", "−")


def _seeds(found: Difference) -> str:
    if found.n == 1:
        return ", one seed, no interval"
    return f", 95% intervals over {found.n} seeds" + ("" if found.sure else ", and 0 is within the last")


def _nats(s: Series) -> str:
    error = f" ± {s.excess_error:.1g}" if isfinite(s.excess_error) else ""
    return f"{s.label} at {s.bpw:.3g} bits {s.excess:.3g}{error} nats"
