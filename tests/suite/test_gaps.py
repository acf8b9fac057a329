"""How many times what a Gaussian's distortion-rate function allows is left by quantizers whose error is known exactly.

Left: mean square times 4^R, 1 at the limit. At high rates, entropy coded lattices leave 2 pi e G, with G the lattice's
normalized second moment (Gersho 1979; Conway and Sloane 1982), and levels at a fixed rate leave pi sqrt(3) / 2 (Panter
and Dite 1951).
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from suite.grids import ResidualBinary
from suite.grids.lattices import (
    SECOND_MOMENT_E8,
    SECOND_MOMENT_Z,
    nearest_d,
    nearest_e8,
    nearest_integer,
    second_moment_ball,
    second_moment_d,
)
from suite.grids.lloyd_max import gaussian_mse, lloyd_max
from theory.rate_distortion import ECSQ_GAP_BITS_HIGHRATE, ecsq_distortion, gaussian_distortion, panter_dite_highrate

SPHERE = 1 / (2 * math.pi * math.e)  # the limit of G as n grows


def left(distortion, rate):
    return float(distortion / gaussian_distortion(rate))


def bits_lost(moment):
    """What a lattice of this normalized second moment needs beyond the limit, at high rates."""
    return 0.5 * math.log2(moment / SPHERE)


def test_lattices_lie_between_steps_and_the_ball():
    """Integers lose .2546 bits, D4 .1939, E8 .1460; no lattice of eight dimensions loses less than the ball's .1335."""
    lost = [
        bits_lost(moment) for moment in (SECOND_MOMENT_Z, second_moment_d(4), SECOND_MOMENT_E8, second_moment_ball(8))
    ]
    assert lost == pytest.approx([0.254614, 0.193865, 0.145973, 0.13349], abs=1e-4)
    assert lost == sorted(lost, reverse=True) and lost[0] == pytest.approx(ECSQ_GAP_BITS_HIGHRATE)


@pytest.mark.parametrize("nearest, volume, moment, n", [(nearest_integer, 1, SECOND_MOMENT_Z, 8),
                                                        (nearest_d, 2, second_moment_d(4), 4),
                                                        (nearest_e8, 1, SECOND_MOMENT_E8, 8)])  # fmt: skip
def test_a_gaussian_on_a_fine_lattice_leaves_its_second_moment(nearest, volume, moment, n):
    """Cells a tenth of the deviation wide: the rate is h - log2(cell) / n, so that 2 pi e G is left, within 4 sigma."""
    step = 0.1
    x = torch.randn(200_000 // n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = (x - step * nearest(x / step)).square().mean(1)
    rate = 0.5 * math.log2(2 * math.pi * math.e) - math.log2(step) - math.log2(volume) / n
    found = left(errors.mean(), rate)
    assert found == pytest.approx(moment / SPHERE, rel=4 * float(errors.std() / errors.mean()) / len(errors) ** 0.5)
    assert found > 1


def test_fixed_levels_lose_more_with_every_bit_up_to_panter_and_dite():
    lloyd = [left(gaussian_mse(lloyd_max(2**bits)), bits) for bits in range(1, 9)]
    assert lloyd[:4] == pytest.approx([1.45352, 1.87971, 2.21106, 2.43226], abs=1e-5)
    assert lloyd == sorted(lloyd) and lloyd[-1] < left(panter_dite_highrate(8), 8)
    assert lloyd[-1] == pytest.approx(math.pi * math.sqrt(3) / 2, rel=0.01)


def test_entropy_coded_steps_lose_at_most_a_quarter_of_a_bit():
    coded = [left(ecsq_distortion(rate), rate) for rate in (0.5, 1, 2, 4, 8)]
    assert coded == sorted(coded) and coded[1] == pytest.approx(1.39336, abs=1e-5)
    assert coded[-1] == pytest.approx(2 * math.pi * math.e / 12, rel=1e-4)


def test_greedy_signs_fall_behind_without_end_and_refitted_ones_with_scalar_quantizers():
    """2.1 times at two bits and 23 at five, greedily; refitted at most half as much again as Lloyd and Max leave."""
    x = torch.from_numpy(norm.ppf((np.arange(1 << 15) + 0.5) / (1 << 15)))[None]
    found = {}
    for scales in ("greedy", "refitted"):
        fitted = [ResidualBinary(orders=k, group="row", scales=scales, scale_bits=32).fit(x) for k in range(1, 6)]
        errors = [float((x - f.decode(f.nearest(x))).square().mean()) for f in fitted]
        found[scales] = [left(error, k) for k, error in enumerate(errors, 1)]
    greedy, refitted = found["greedy"], found["refitted"]
    assert greedy[:3] == pytest.approx([1.45352, 2.08726, 3.73722], rel=2e-3)  # 1 - 2 / pi and integrals, times 4^k
    assert greedy[4] > 20 and greedy == sorted(greedy)
    lloyd = [left(gaussian_mse(lloyd_max(2**k)), k) for k in range(1, 6)]
    assert all(mine > 0.998 * best for mine, best in zip(refitted, lloyd, strict=True))  # the cells' missing tails
    assert all(mine < 1.5 * best for mine, best in zip(refitted, lloyd, strict=True))
