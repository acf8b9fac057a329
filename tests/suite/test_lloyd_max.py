"""Lloyd-Max tables against the literature, and k-means against exhaustive search."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from suite.grids import GaussianTable, RealScale, Scaled
from suite.grids.lloyd_max import gaussian_mse, k_means, lloyd_max, uniform

# bits: least squared error of free levels and of equal steps on a unit Gaussian, and the best step (Max 1960,
# and an independent computation in float64)
KNOWN = {
    1: (3.633802e-1, 3.633802e-1, 1.595769), 2: (1.174818e-1, 1.188461e-1, 0.995687),
    3: (3.454776e-2, 3.743966e-2, 0.586019), 4: (9.501008e-3, 1.154288e-2, 0.335201),
    5: (2.504668e-3, 3.495211e-3, 0.188139), 6: (6.442397e-4, 1.040045e-3, 0.104063),
    7: (1.634782e-4, 3.043328e-4, 0.056868), 8: (4.118508e-5, 8.768619e-5, 0.030762),
}  # fmt: skip
widths = pytest.mark.parametrize("bits", KNOWN)


@widths
def test_errors_are_those_of_the_literature(bits):
    free, equal, step = KNOWN[bits]
    assert gaussian_mse(lloyd_max(2**bits)) == pytest.approx(free, rel=1e-6)
    assert gaussian_mse(uniform(2**bits)) == pytest.approx(equal, rel=1e-6)
    assert uniform(2**bits)[1] - uniform(2**bits)[0] == pytest.approx(step, rel=2e-5)


@widths
def test_levels_are_centroids_of_their_cells(bits):
    y = lloyd_max(2**bits)
    edges = np.concatenate([[-np.inf], (y[1:] + y[:-1]) / 2, [np.inf]])
    for low, high, level in list(zip(edges[:-1], edges[1:], y, strict=True))[:: max(1, 2**bits // 8)]:
        mass = quad(norm.pdf, low, high, epsabs=1e-14)[0]
        assert quad(lambda x: x * norm.pdf(x), low, high, epsabs=1e-14)[0] / mass == pytest.approx(level, abs=1e-7)
    assert np.array_equal(y, -y[::-1]) and (np.diff(y) > 0).all()


@widths
def test_the_closed_form_of_the_error_is_that_of_rounding(bits):
    x = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = GaussianTable(bits=bits).table()
    squares = (x - torch.tensor(table.levels, dtype=torch.float64)[table.encode(x).long()]).square()
    assert float(squares.mean()) == pytest.approx(
        gaussian_mse(lloyd_max(2**bits)), abs=5 * float(squares.std()) / 2**10
    )


@pytest.mark.parametrize(("table", "column"), [("free", 0), ("uniform", 1)])
@widths
def test_the_grid_has_the_error_of_the_table(bits, table, column):
    """Through the grid, on 2^20 quantiles, which end at 4.9 sigma."""
    quantiles = norm.ppf((np.arange(1 << 20) + 0.5) / (1 << 20))
    W = torch.from_numpy(quantiles).float().reshape(1024, 1024)
    grid = Scaled(element=GaussianTable(bits=bits, spacing=table), group="tensor",
                  scale=RealScale(statistic="rms", bits=32))  # fmt: skip
    fitted = grid.fit(W)
    found = float((W - fitted.decode(fitted.nearest(W))).double().square().mean())
    assert found == pytest.approx(KNOWN[bits][column], rel=0.01)


@pytest.mark.parametrize("bits", [0, 9, 2.0])
def test_widths_that_are_refused(bits):
    with pytest.raises(ValueError, match="tables take 1 to 8"):
        GaussianTable(bits=bits)


def squared_error(x, levels, weight):
    return float((weight * (x[:, None] - levels).square().amin(1)).sum())


@given(
    st.lists(st.floats(-10, 10, width=16), min_size=1, max_size=9),
    st.integers(1, 4),
    st.lists(st.floats(0.125, 8, width=16), min_size=9, max_size=9),
)
def test_k_means_is_the_best_of_all_partitions(values, n, weights):
    """Small sets have every value in a bin of its own, unless two differ by less than 2^-12 of the range."""
    x = torch.tensor(values, dtype=torch.float64).sort().values
    distinct = x.unique()
    if len(distinct) > 1 and float(distinct.diff().min()) < float(x[-1] - x[0]) / 500:
        return
    weight = torch.tensor(weights[: len(x)], dtype=torch.float64)
    found = k_means(x, n, weight)
    best = np.inf
    for cuts in combinations(range(1, len(x)), min(n, len(x)) - 1):
        edges = [0, *cuts, len(x)]
        parts = [slice(a, b) for a, b in pairwise(edges)]
        levels = torch.stack([(weight[p] * x[p]).sum() / weight[p].sum() for p in parts])
        best = min(best, squared_error(x, levels, weight))
    assert found.shape == (n,) and (found.diff() >= 0).all()
    assert squared_error(x, found, weight) <= best + 1e-9


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_k_means_of_a_gaussian_is_its_lloyd_max_table(n):
    x = torch.randn(1 << 18, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = k_means(x, n)
    assert gaussian_mse(found.numpy()) == pytest.approx(gaussian_mse(lloyd_max(n)), rel=2e-3)
    assert squared_error(x[:4096], found, torch.ones(4096)) > 0
    error = (x[:, None] - found).square().amin(1).mean()
    assert error <= (x[:, None] - torch.from_numpy(lloyd_max(n).copy())).square().amin(1).mean()
