"""How many of a weight's 32 bits are noise to the next token: mantissa bits that may be drawn anew.

The k lowest of FP32's 23 mantissa bits are replaced by random ones in every linear layer. With x = 2^e (1 + f), f in
[0, 1), the old and the new low bits are independent and uniform over 2^(k - 23), so that the squared error of a weight
is 2^(2e) 4^(k - 23) / 6 in the mean, and of the matrix

    NMSE = 4^(k - 23) / 6 * E 2^(2e) / E x^2.

Where the divergence is proportional to the NMSE it rises by a factor of 4 a bit: interpolated in its logarithm, the
number of bits at a given divergence is a real number. With uniform mantissas E 2^(2e) / E x^2 is 3/7.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from theory.entropy.divergence import base_of, rounded
from theory.entropy.weights import check_kept_in_fp32, trained
from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of

if TYPE_CHECKING:
    import torch

MANTISSA = 23
_TOKENS = 1024
_MEASURED = (11, 13, 15, 17, 19)
_MARGINS = (0.01, 1.0)  # of the divergence that 8-bit codes make


def randomized(W: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """`W` in float32 with the lowest `k` mantissa bits of every value drawn anew; `ValueError` for k not 0 to 23."""
    if not 0 <= k <= MANTISSA:
        raise ValueError(f"{k} mantissa bits: FP32 has 0 to {MANTISSA}")
    mask = np.uint32((1 << k) - 1)
    bits = np.ascontiguousarray(W, dtype=np.float32).view(np.uint32)
    fresh = rng.integers(1 << 32, size=W.shape, dtype=np.uint32)
    return ((bits & ~mask) | (fresh & mask)).view(np.float32)


def predicted_nmse(W: np.ndarray, k: int) -> float:
    """The NMSE of `randomized`, its mean over uniform low bits."""
    x = W[W != 0].astype(np.float64)
    power = np.square(np.exp2(np.floor(np.log2(np.abs(x)))))
    return float(4.0 ** (k - MANTISSA) / 6 * power.sum() / np.square(x).sum())


def divergences(setting: Setting, seed: int, ks: Sequence[int] = _MEASURED) -> tuple[dict[int, float], float]:
    """KL in nats by number of random bits, and that of 8-bit RTN in groups of 128; the seed draws bits and rows."""
    import torch

    base, rng = base_of(setting.model, round(_TOKENS * setting.effort), seed), np.random.default_rng(seed)

    def drawn(k: int) -> "dict[str, torch.Tensor]":
        return {name: torch.from_numpy(randomized(W, k, rng)) for name, W in trained(setting.model).items()}

    return {k: base.nats(drawn(k)) for k in ks}, base.nats(rounded(setting.model, 8))


def bits_at(found: Mapping[int, float], nats: float) -> float:
    """The number of bits whose divergence is `nats`: linear in its logarithm, and by 4 a bit beyond the ends.

    >>> bits_at({10: 1e-6, 12: 16e-6}, 4e-6)
    11.0
    """
    k, y = np.array(sorted(found)), np.log2([max(found[k], 1e-300) for k in sorted(found)])
    want = np.log2(nats)
    if want < y[0] or want > y[-1]:
        end = 0 if want < y[0] else -1
        return float(k[end] + (want - y[end]) / 2)
    return float(np.interp(want, y, k))


def free_bits(setting: Setting) -> Mapping[str, float]:
    """N6: how many bits can be random until the divergence is a hundredth of that of 8-bit codes, and as large."""
    check_kept_in_fp32(setting.model)
    found, eight = divergences(setting, setting.seed)
    return {f"bits at {_said(share)}": bits_at(found, share * eight) for share in _MARGINS} | {
        "nats, 8-bit codes": eight} | {f"nats, {k} bits": nats for k, nats in found.items()}  # fmt: skip


def _said(share: float) -> str:
    return f"{100 * share:g}% of 8-bit codes' divergence"


def _measure(setting: Setting) -> list[Point]:
    found = [divergences(setting, seed, (9, *_MEASURED, 21, 23)) for seed in seeds_of(setting)]
    eight = [nats for _, nats in found]
    points = [replicated("random mantissa bits", k, [one[k] for one, _ in found]) for k in found[0][0]]
    level = float(np.mean(eight))
    for share in _MARGINS:
        points += [Point(series=_said(share), x=x, y=share * level, predicted=True) for x in (9, 23)]
    anchor = next(p.y for p in points if p.x == 15)
    points += [Point(series="times 4 a bit", x=k, y=anchor * 4.0 ** (k - 15), predicted=True) for k in (9, 23)]
    return points


def _sentence(points: Sequence[Point]) -> str:
    found = {round(p.x): p.y for p in points if p.series == "random mantissa bits"}
    level = next(p.y for p in points if p.series == _said(1.0))
    rows = [f"{bits_at(found, share * level):.1f} bits at {_said(share)}" for share in _MARGINS]
    return f"Of an FP32 weight's 23 mantissa bits as many can be random: {', '.join(rows)} ({level:.3g} nats)."


EXPERIMENT = Experiment(
    name="entropy-mantissa-noise",
    title="Divergence by random mantissa bits of all linear weights",
    source="derivation of the module",
    x="lowest mantissa bits drawn anew",
    y="KL, nats per token",
    measure=_measure,
    sentence=_sentence,
    log="y",
    interval=INTERVAL,
    on_model=True,
)
