import numpy as np
import pytest

from suite.grids.lloyd_max import gaussian_mse, lloyd_max
from theory.experiment import Point
from theory.grids.element_formats import EXPERIMENTS, e2m1_gain_db, four_bit_tables, gains, law, predicted_gain_db
from theory.histogram_source import Histogram
from theory.rate_distortion import ECSQ_FACTOR_HIGHRATE
from theory.sources import gaussian


def test_high_rate_theory_is_exact_for_a_uniform_density():
    box, n = Histogram(edges=(0.0, 3.0), masses=(1.0,)), 65_536
    x = box.draw(np.random.default_rng(0), (64, n // 64))
    exact = predicted_gain_db(box, 3.0)
    assert exact == pytest.approx(-10 * np.log10(49 * (1 / 144 + 1 / 36 + 1 / 9) / 3))
    # E2M1's squared error deviates by about one and a half of its mean, the integers' by 2 over the root of 5
    sigma_db = 10 / np.log(10) * np.sqrt((1.5**2 + 0.8) / n)
    assert e2m1_gain_db(x, "tensor") == pytest.approx(exact, abs=4 * sigma_db + 0.01)  # the largest is not quite 3


def test_what_counts_is_the_crest():
    by_crest = [predicted_gain_db(gaussian(), most) for most in (1.0, 2.0, 3.0, 4.0, 6.0)]
    assert by_crest == sorted(by_crest) and by_crest[0] < 0 < by_crest[-1]


def test_larger_groups_are_for_floats_on_a_gaussian():
    found = gains(0, 0.0)
    assert found[16] < found[32] < found[128] < found["tensor"]
    assert found[32] < 0 < found[128]
    assert found == gains(0, 0.0)


def test_heavy_tails_are_for_floats_in_blocks():
    assert gains(0, 1 / 3)[32] > 0 > gains(0, 0.0)[32]
    assert law(0.0) == gaussian() and law(0.25).variance == 1


def test_tables_of_sixteen_levels_keep_their_order():
    found = four_bit_tables(0)
    one = found["Lloyd-Max, one scale"]
    n = 256 * 1024
    assert one.error == pytest.approx(gaussian_mse(lloyd_max(16)), rel=4 * 2 / np.sqrt(n))
    assert found["best levels, blocks"].error < found["NF4, blocks"].error  # fitted to what NF4 was not made for
    assert found["NF4, blocks"].bits == 4.25 and found["best levels, blocks"].bits == 4.25 + 16 * 16 / n
    # the coder's tables take a few thousandths of a bit
    assert found["entropy-coded steps"].over_gaussian == pytest.approx(ECSQ_FACTOR_HIGHRATE, rel=0.02)


def test_sentences_follow_the_points():
    tails = (0.0, 0.2)
    points = [Point(series=series, x=x, y=y) for series in ("groups of 16", "groups of 32", "groups of 128",
              "one scale for a tensor") for x, y in zip(tails, (-1.0, 1.0), strict=True)]  # fmt: skip
    assert "groups of 32 from -1.00 dB (Gaussian) to +1.00 (t of 3), changing sign at 0.100" in EXPERIMENTS[0].sentence(
        points
    )
    tables = [Point(series="NF4, blocks", x=4.25, y=3.0, low=2.9, high=3.1), Point(series="x", x=4, y=2, low=2, high=2)]
    assert "1 of 1 others are below NF4 beyond their intervals, and NF4 is 0.79 bits" in EXPERIMENTS[1].sentence(tables)
