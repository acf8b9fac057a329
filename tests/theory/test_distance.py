import numpy as np
import pytest

from theory.experiment import Point
from theory.grids.distance import (
    EXPERIMENTS,
    e8_against,
    exact_gain_db,
    grids,
    lattice_gain_db,
    net_gain_db,
    outcome,
)
from theory.grids.measured import SOURCES, matrix, rounded
from theory.rate_distortion import SHAPING_GAIN_DB_UPPER, ecsq_point, gaussian_distortion
from theory.sources import shannon_lower

QUICK = [name for name in grids() if name not in ("E8P", "trellis", "ECSQ")]


@pytest.mark.parametrize("name", QUICK)
def test_no_grid_is_below_the_limit_of_its_source(name):
    for source, law in SOURCES.items():
        if source == "Student's t of 3":  # 16,384 samples do not have its variance
            continue
        for bits in grids()[name]:
            found = outcome(source, name, bits, 0)
            # of a Gaussian the mean square of n samples deviates by the root of 2 / n, of a Laplacian by that of 5 / n
            slack = 1 - 4 * np.sqrt((5 if source == "Laplacian" else 2) / 16384)
            assert found.error >= slack * shannon_lower(law, found.bits) / law.variance


def test_the_best_scalars_leave_what_closed_forms_say():
    n = 16384
    two = outcome("Gaussian", "Lloyd-Max", 2, 0)
    assert two.error == pytest.approx(0.1174818, rel=4 * 2 / np.sqrt(n))
    assert two.bits == 2 + 16 / n
    coded = outcome("Gaussian", "entropy-coded steps", 3.0, 0)
    assert coded.bits <= 3 and coded.bits == pytest.approx(3, abs=0.01)
    assert coded.error == pytest.approx(ecsq_point(0.52243)[1], rel=0.05)  # tables and checksums: hundredths of a bit
    assert outcome("Gaussian", "best equal steps", 4, 0).error == pytest.approx(1.154288e-2, rel=4 * 2 / np.sqrt(n))


@pytest.mark.parametrize("lattice, gain", [("Z", 0.0), ("D4", 0.3657), ("E8", 0.6541)])
def test_shaping_gains_meet_their_closed_forms(lattice, gain):
    assert exact_gain_db(lattice) == pytest.approx(gain, abs=1e-4)
    # the second moment of a cell is a mean of 50,000 squares, of which none is more than twice the mean's own order
    assert lattice_gain_db(lattice, 0) == pytest.approx(gain, abs=4 * 10 / np.log(10) / np.sqrt(50_000))
    assert exact_gain_db(lattice) < SHAPING_GAIN_DB_UPPER


def test_net_gains_are_bounded_by_shapes():
    for name in QUICK:
        for bits in grids()[name]:
            assert net_gain_db("Gaussian", name, bits, 0) < SHAPING_GAIN_DB_UPPER
    assert net_gain_db("Gaussian", "entropy-coded steps", 3.0, 0) == pytest.approx(0, abs=0.1)
    assert net_gain_db("Gaussian", "Lloyd-Max", 4, 0) < -1


def test_e8_beats_fixed_rate_scalars_at_two_bits():
    gains = [e8_against("Lloyd-Max", 2, seed) for seed in range(2)]
    assert min(gains) > 0.9 and max(gains) < SHAPING_GAIN_DB_UPPER
    assert e8_against("Lloyd-Max", 2, 0) == gains[0]


def test_a_matrix_is_its_seeds():
    assert np.array_equal(matrix("Laplacian", (3, 4), "", 1), matrix("Laplacian", (3, 4), "", 1))
    x = matrix("Gaussian", (8, 64), "", 0)
    found = rounded(x, method="rtn", bits=4, group=64)
    assert found.over_gaussian == pytest.approx(found.error * 4**found.bits)
    assert found.snr_db == pytest.approx(-10 * np.log10(found.error))
    assert found.error > gaussian_distortion(found.bits)


def test_sentences_follow_the_points():
    limit = [Point(series="distortion-rate function", x=x, y=1.0, predicted=True) for x in (0.0, 6.0)]
    say = EXPERIMENTS[0].sentence
    above = Point(series="a grid", x=3.0, y=1.5, low=1.4, high=1.6)
    below = Point(series="a grid", x=2.0, y=0.5, low=0.4, high=0.6)
    assert "a grid 1.50 at 3.00 bits; 0 of 1" in say([*limit, above])
    assert "a grid 0.50 at 2.00 bits; 1 of 2" in say([*limit, above, below])
    shaping = EXPERIMENTS[3].sentence
    net = [Point(series="x: net at 2 bits", x=1, y=0.7, low=0.6, high=0.8), Point(series="Z, its cells", x=1, y=0.0)]
    assert "1 of 1 grids gain on entropy-coded cubes of their true rate on a Gaussian: x at 2 bits 0.70 dB" in shaping(
        net
    )
