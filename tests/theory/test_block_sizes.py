import numpy as np
import pytest

from theory.experiment import Point
from theory.grids.block_sizes import EXPERIMENT, by_block, gain_db
from theory.grids.measured import LAYER, SOURCES, Outcome, matrix, rounded


def test_formats_that_ship_are_among_them():
    found = by_block("Gaussian", "", 0)
    x = matrix("Gaussian", (64, 1024), "", 0)
    assert found["powers of two", 32] == rounded(x, method="mxfp4")
    assert found["E4M3", 16] == rounded(x, method="nvfp4")


def test_every_scale_is_charged():
    found = by_block("Laplacian", "", 0)
    values = 64 * 1024
    for n in (8, 16, 32, 64, 128):
        assert found["powers of two", n].bits == 4 + 8 / n
        assert found["E4M3", n].bits == 4 + 8 / n + 32 / values
        assert found["float16", n].bits == 4 + 16 / n
        # real scales put the largest value on the largest level: finer ones leave less error before they are paid for
        assert n == 8 or found["float16", n // 2].error < found["float16", n].error


def test_a_bit_is_worth_six_decibels():
    found = {("a", 16): Outcome(4.5, 0.01), ("a", 32): Outcome(4.0, 0.02)}
    assert gain_db(found, ("a", 16), ("a", 32)) == pytest.approx(10 * np.log10(2) - 10 * np.log10(2))
    assert gain_db(found, ("a", 32), ("a", 16)) == pytest.approx(0, abs=1e-12)


def test_the_sentence_follows_the_points():
    kinds, sizes = ("powers of two", "E4M3", "float16"), (8, 16, 32, 64, 128)
    points = [Point(series=f"{name}, {source}", x=n, y=2.0 if name == "E4M3" and n == 16 else 4.0)
              for name in kinds for source in (*SOURCES, LAYER) for n in sizes]  # fmt: skip
    said = EXPERIMENT.sentence(points)
    assert all(name in said for name in (*SOURCES, LAYER))
    assert (
        "Gaussian: NVFP4's over MXFP4's +3.01 dB, of which blocks of 16 over 32 +0.00 on powers of two, +3.01" in said
    )
    assert "best of all blocks of 16 on E4M3" in said
