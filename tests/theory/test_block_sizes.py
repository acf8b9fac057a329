import numpy as np
import pytest

from theory.experiment import Setting
from theory.grids.block_sizes import EXPERIMENT, by_block, gain_db
from theory.grids.measured import Outcome, matrix, rounded


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


def test_the_sentence_has_all_sources():
    points = EXPERIMENT.measure(Setting(effort=0.1))
    said = EXPERIMENT.sentence(points)
    assert all(name in said for name in ("Gaussian", "Laplacian", "Student's t of 3", "mlp.down_proj", "NVFP4"))
