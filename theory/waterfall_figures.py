"""The waterfall drawn: terms over widths for GPTQ and round-to-nearest, and the distance of every method that has one.

In the quick tier of the model's first block; with more effort of all of them, and then with the network's own term.
Imports no torch.
"""

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from theory.bounds.malinovskii_2025_linearity import EXPERIMENT as LINEARITY
from theory.experiment import Experiment, Point, Setting
from theory.waterfall import HIGH_RATE, TERMS, Split, pooled, splits_of

_BITS = (2, 3, 4, 6, 8)
_METHOD_BITS = (2, 3, 4)
_METHODS = ("rtn", "gptq", "gptq-stochastic", "hqq", "lloyd-max", "nf4", "mxfp4", "nvfp4", "fp4", "q2_k", "q3_k",
            "q4_k", "residual-binary", "ecsq", "watersic")  # fmt: skip
_TOKENS = 8192  # ten for each input of the widest layer of the shipped model
_MARGIN_BITS = 0.05  # how large what high-rate theory takes for 0 may be where it is said to hold
_ARMS = {"gptq": "GPTQ", "rtn": "nearest"}  # in `LINEARITY`'s points
_PREDICTED = "by high-rate theory"


@lru_cache(maxsize=2)
def waterfalls(setting: Setting, picks: tuple[tuple[str, float], ...]) -> dict[tuple[str, float], list[Split]]:
    """The splits of all layers that the setting has time for, by method and width."""
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint = load_model(setting.model)
    told, asked = (load_tokens(None, part, checkpoint, min(256, checkpoint.context)).draw(_TOKENS, setting.seed)
                   for part in ("calibration", "validation"))  # fmt: skip
    found: dict[tuple[str, float], list[Split]] = {pick: [] for pick in picks}
    blocks = 1 if setting.effort <= 1 else None
    for pick, split in splits_of(setting.model, picks, told, asked, seed=setting.seed, blocks=blocks):
        found[pick].append(split)
    return found


def predicted_bits(means: dict[str, float]) -> float:
    """The distance on the text that it was rounded by, without the terms that high-rate theory takes for 0."""
    return means["distance"] - means["calibration"] - sum(means[name] for name in HIGH_RATE)


def _measure(method: str, setting: Setting) -> list[Point]:
    picks = tuple((name, bits) for name in _ARMS for bits in _BITS)
    means = {bits: pooled(splits) for (name, bits), splits in waterfalls(setting, picks).items() if name == method}
    points = [Point(series=name, x=bits, y=found[name]) for name in ("distance", *TERMS)
              for bits, found in means.items()]  # fmt: skip
    points += [Point(series=_PREDICTED, x=bits, y=predicted_bits(found), predicted=True)
               for bits, found in means.items()]  # fmt: skip
    if setting.effort > 1:
        points += _network(_ARMS[method], setting)
    return points


def _network(arm: str, setting: Setting) -> list[Point]:
    """Half the log of KL over the KL that is linear in the errors of outputs."""
    found = LINEARITY.measure(setting)
    kl = {p.x: p.y for p in found if p.series == arm}
    linear = {p.x: p.y for p in found if p.series == f"{arm}: predicted by outputs"}
    return [Point(series="network", x=bits, y=float(np.log2(kl[bits] / linear[bits])) / 2) for bits in kl
            if kl[bits] > 0]  # fmt: skip


def _sentence(points: Sequence[Point]) -> str:
    named = {(p.series, p.x): p.y for p in points}
    bits = sorted({p.x for p in points if p.series == "distance"})
    told = bits[len(bits) // 2]
    terms = sorted((name for name in (*TERMS, "network") if (name, told) in named), key=lambda n: -abs(named[n, told]))
    off = {b: sum(named[name, b] for name in HIGH_RATE) for b in bits}
    apart = {b: max(abs(named[name, b]) for name in HIGH_RATE) for b in bits}
    holds = [b for b in bits if all(apart[c] <= _MARGIN_BITS for c in bits if c >= b)]
    said = (f"at {told:g} bits the layers are {named['distance', told]:.2f} bits from the limit: "
            + ", ".join(f"{name} {named[name, told]:+.2f}" for name in terms))  # fmt: skip
    where = f"from {holds[0]:g} bits on" if holds else f"at none of these widths up to {bits[-1]:g} bits"
    low = f"at {bits[0]:g} bits they add up to {off[bits[0]]:+.2f} and the largest is {apart[bits[0]]:.2f}"
    return f"{said}. Every term that high-rate theory takes for 0 is within {_MARGIN_BITS:g} bit {where}; {low}."


def _measure_methods(setting: Setting) -> list[Point]:
    from suite.methods import method_named

    picks = tuple((name, bits) for name in _METHODS for bits in _METHOD_BITS if bits in method_named(name).bits)
    found = waterfalls(setting, picks)
    return [Point(series=name, x=means["stored"], y=means["distance"])
            for (name, _), splits in found.items() for means in [pooled(splits)]]  # fmt: skip


def _sentence_methods(points: Sequence[Point]) -> str:
    nearest, farthest = (pick(points, key=lambda p: p.y) for pick in (min, max))
    below = sorted({p.series for p in points if p.y < 0})
    return (f"Of {len(points)} cells {nearest.series} at {nearest.x:.2f} stored bits is nearest to the limit of "
            f"Gaussian rows, {nearest.y:.2f} bits away, and {farthest.series} at {farthest.x:.2f} is farthest, "
            f"{farthest.y:.2f}; {', '.join(below) or 'none'} lies below it.")  # fmt: skip


def _experiment(method: str, name: str) -> Experiment:
    return Experiment(name=f"waterfall-{method}", title=f"From stored bits to the limit: {name}, term by term",
                      source="theory/waterfall.py; reverse water-filling: Kolmogorov 1956", x="bits of a code",
                      y="bits per weight", measure=partial(_measure, method), sentence=_sentence,
                      on_model=True)  # fmt: skip


EXPERIMENTS = (
    _experiment("gptq", "GPTQ"),
    _experiment("rtn", "round to nearest"),
    Experiment(name="waterfall-methods", title="Distance from reverse water-filling, method by method",
               source="theory/waterfall.py; reverse water-filling: Kolmogorov 1956", x="stored bits per weight",
               y="bits above the limit", measure=_measure_methods, sentence=_sentence_methods, on_model=True),
)  # fmt: skip
