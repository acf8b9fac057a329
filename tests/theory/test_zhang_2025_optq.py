import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bounds import zhang_2025_optq as optq
from theory.bounds.instances import adversarial, dispersed, haar, power_law, rounded
from theory.bounds.pivots import ORDERS, factored
from theory.experiment import Setting

EPS = np.finfo(float).eps
STEP = 0.25


def awkward(n, rng):
    """A Gram matrix of one of six kinds, and how much damping it needs."""
    kind = rng.integers(6)
    if kind == 0:
        return power_law(n, float(rng.uniform(0, 3)), rng), 0.0
    if kind == 1:  # nearly parallel inputs
        X = 1 + 10.0 ** -rng.uniform(1, 4) * rng.standard_normal((3 * n, n))
        return X.T @ X / len(X), 0.0
    if kind == 2:  # fewer tokens than channels
        X = rng.standard_normal((max(1, n // 2), n))
        return X.T @ X / len(X), float(10 ** rng.uniform(-6, 0))
    if kind == 3:  # an outlier channel, and a dead one
        X = rng.standard_normal((2 * n, n)) * np.where(np.arange(n) == 0, 1e3, 1.0)
        X[:, -1] = 0
        return X.T @ X / len(X), float(10 ** rng.uniform(-4, 0))
    if kind == 4:  # channels that occur twice
        X = np.repeat(rng.standard_normal((2 * n, -(-n // 2))), 2, axis=1)[:, :n]
        return X.T @ X / len(X), 0.01
    spectrum = 10.0 ** rng.uniform(-8, 0, n)
    V = haar(n, rng)
    H = (V * spectrum) @ V.T
    return (H + H.T) / 2, 0.0


def instances(matrices, seed, rows):
    """Rows to be rounded under awkward Gram matrices, in some order: (W, H, order, damping)."""
    rng = np.random.default_rng(seed)
    for _ in range(matrices):
        n = int(rng.integers(1, 25))
        H, damping = awkward(n, rng)
        order = ORDERS[rng.integers(len(ORDERS))]
        found = factored(H, order, damping)
        unkind = [optq.attaining(found, STEP, rng) for _ in range(4)]
        W = np.concatenate([adversarial(n, STEP, rng), np.stack(unkind), dispersed(rows - 12, n, STEP, rng)])
        yield W, H, order, damping, found


def slack(E, damped):
    """What a quadratic form of n terms, and a factor that is backward stable, may be off by in float64."""
    n = len(damped)
    return 8 * n * EPS * (E**2).sum(1) * np.trace(damped)


def check(matrices, seed, rows=20):
    """Identity and bounds of every row; returns how many there were, and the largest share of each bound."""
    count, largest = 0, {False: 0.0, True: 0.0}
    for W, H, order, damping, found in instances(matrices, seed, rows):
        damped = H + damping * (np.diag(H).mean() or 1.0) * np.eye(len(H))
        for stochastic, constant in ((False, optq.NEAREST_UPPER), (True, optq.STOCHASTIC_UPPER)):
            E = W - rounded(W, H, STEP, order=order, damping=damping, stochastic=stochastic, seed=count)
            error, upper = (
                optq.error_rows(E, damped),
                optq.squared_error(constant, H, STEP, order=order, damping=damping),
            )
            most = upper * (1 + 1e-12) + slack(E, damped) + drift(W, E, found)
            assert (error <= most).all(), (order, damping, np.max(error - most))
            assert (optq.error_rows(E, H) <= most).all()
            largest[stochastic] = max(largest[stochastic], float((error / upper).max()))
        count += len(W)
    return count, largest


def drift(W, E, found):
    """Targets are sums of n terms, right to n eps of them: what that adds to (s e)^2 d for |e| <= 1, at most."""
    unit = np.abs(found.R / np.diag(found.R)).max()
    off = len(found.R) * EPS * (np.abs(W).max(1) + np.abs(E).max(1) * unit)
    return (2 * STEP * off + off**2) * found.d.sum()


def test_bounds_hold_for_rows_of_every_kind():
    count, largest = check(500, seed=0)
    assert count == 10_000
    assert largest[False] > 0.9999  # the bound is met: see `attaining`
    assert 0.25 < largest[True] < 1  # a draw goes farther than nearest rounding can


@pytest.mark.slow
def test_bounds_hold_for_ten_thousand_matrices():
    count, _ = check(10_000, seed=1)
    assert count == 200_000


@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.sampled_from(ORDERS), st.booleans(), st.floats(1e-3, 1))
@settings(max_examples=60)
def test_the_error_is_the_sum_of_pivots_times_squared_misses(seed, n, order, stochastic, damping):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((2 * n + 2, n)) @ rng.standard_normal((n, n))
    H = X.T @ X / len(X)
    damped = H + damping * np.diag(H).mean() * np.eye(n)
    W = dispersed(3, n, STEP, rng)
    E = W - rounded(W, H, STEP, order=order, damping=damping, stochastic=stochastic, seed=seed % 1000)
    misses = walked(W, E, damped, factored(H, order, damping).perm)
    assert optq.error_rows(E, damped) == pytest.approx((misses**2) @ factored(H, order, damping).by_channel, rel=1e-9)
    assert np.abs(misses).max() <= STEP * (1 if stochastic else 0.5) * (1 + 1e-9)


def walked(W, E, H, perm):
    """What each column was rounded from, less what it became, by least squares over the columns still to come.

    No factorization: given the errors before j, the error left is least where column j misses by nothing, at
    E_j = -E_{<j} C_{<j,j} / C_jj with C the Schur complement of the columns after j.
    """
    missed = np.empty_like(E)
    for place, j in enumerate(perm):
        before, after = perm[:place], perm[place + 1 :]
        C = H[np.ix_(perm[: place + 1], perm[: place + 1])]
        if len(after):
            B = H[np.ix_(perm[: place + 1], after)]
            C = C - B @ np.linalg.solve(H[np.ix_(after, after)], B.T)
        missed[:, j] = E[:, j] + E[:, before] @ C[:-1, -1] / C[-1, -1]
    return missed


@pytest.mark.parametrize("stochastic, mean, variance", [
    (False, optq.NEAREST_MEAN, optq.NEAREST_VARIANCE),
    (True, optq.STOCHASTIC_MEAN, optq.STOCHASTIC_VARIANCE),
])  # fmt: skip
@pytest.mark.parametrize("order", ORDERS)
def test_means_over_dispersed_weights_are_the_closed_forms(stochastic, mean, variance, order):
    rng, rows = np.random.default_rng(5), 4000
    H = power_law(16, 1.2, rng)
    found = factored(H, order)
    W = dispersed(rows, 16, STEP, rng)
    error = optq.error_rows(W - rounded(W, H, STEP, order=order, stochastic=stochastic), H)
    sigma = optq.standard_deviation(variance, found.d, STEP)
    assert error.mean() == pytest.approx(optq.squared_error(mean, H, STEP, order=order), abs=4 * sigma / rows**0.5)
    # the variance of a sample variance: kurtosis below 3, since squares of bounded misses are added up
    assert error.std() == pytest.approx(sigma, rel=4 * np.sqrt(3 / rows))


def test_without_feedback_the_mean_has_the_trace_in_place_of_the_pivots():
    rng, rows, n = np.random.default_rng(6), 4000, 16
    H = power_law(n, 1.2, rng)
    W = dispersed(rows, n, STEP, rng)
    error = optq.error_rows(W - rounded(W, None, STEP), H) / STEP**2
    variance = (np.diag(H) ** 2).sum() / 180 + 2 * ((H**2).sum() - (np.diag(H) ** 2).sum()) / 144
    assert error.mean() == pytest.approx(np.trace(H) / 12, abs=4 * np.sqrt(variance / rows))


@pytest.mark.parametrize("f", [0.5, 0.1, 0.02])
def test_stochastic_rounding_in_the_mean_over_draws(f):
    """One channel: E e^2 = s^2 f (1 - f), which no weight takes above s^2 / 4."""
    draws = 20_000
    W = np.full((draws, 1), STEP * (3 + f))
    error = (W - rounded(W, np.eye(1), STEP, stochastic=True))[:, 0] ** 2 / STEP**2
    sigma = abs(1 - 2 * f) * np.sqrt(f * (1 - f) / draws)
    assert error.mean() == pytest.approx(f * (1 - f), abs=4 * sigma + 1e-12)
    assert error.mean() <= optq.STOCHASTIC_MEAN_UPPER * (1 + 1e-12) + 4 * sigma


def test_attaining_rows_meet_the_bound():
    rng = np.random.default_rng(7)
    for order in ORDERS:
        H = power_law(24, 1.5, rng)
        w = optq.attaining(factored(H, order), STEP, rng, short=1e-6)[None]
        error = optq.error_rows(w - rounded(w, H, STEP, order=order), H)
        upper = optq.squared_error(optq.NEAREST_UPPER, H, STEP, order=order)
        assert error[0] == pytest.approx(upper * (1 - 2e-6) ** 2, rel=1e-9)


def test_a_step_for_each_column_and_row():
    H = power_law(4, 1.0, np.random.default_rng(8))
    steps = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    d = factored(H, "decreasing").by_channel
    found = optq.squared_error(1 / 4, H, steps, order="decreasing")
    assert found == pytest.approx([(d * [1, 4, 9, 16]).sum() / 4, d.sum() / 4])


def test_the_experiment_says_what_it_found():
    points = optq.EXPERIMENT.measure(Setting(effort=0.05))
    said = optq.EXPERIMENT.sentence(points)
    assert "0 of 10 worst rows are above theirs" in said
    moved = [p if p.series != "nearest, worst row" else p.__class__(series=p.series, x=p.x, y=0.3) for p in points]
    assert "5 of 10 worst rows are above theirs" in optq.EXPERIMENT.sentence(moved)
