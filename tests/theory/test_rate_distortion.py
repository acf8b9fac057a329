import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.special import beta
from scipy.stats import norm

from suite.grids.lattices import second_moment_ball
from suite.grids.lloyd_max import gaussian_mse, lloyd_max
from theory.rate_distortion import (
    ECSQ_FACTOR_HIGHRATE,
    ECSQ_GAP_BITS_HIGHRATE,
    PANTER_DITE_FACTOR_HIGHRATE,
    SECOND_MOMENT_LOWER,
    SHAPING_GAIN_DB_UPPER,
    ecsq_distortion,
    ecsq_point,
    gaussian_distortion,
    gaussian_vector_distortion,
    panter_dite_factor,
    panter_dite_highrate,
    reverse_waterfilling,
    reverse_waterfilling_rate,
)
from theory.sources import GaussianMixture, Laplace, Student, gaussian, shannon_lower

rates = st.floats(0, 12)
variances = arrays(float, st.integers(1, 12), elements=st.one_of(st.just(0.0), st.floats(1e-6, 1e6)))

# (rate, step, squared error) computed independently, six digits of the error and five of the step
ECSQ_TABLE = [
    (0.25, 4.23232, 0.789446),
    (0.5, 3.45618, 0.617337),
    (1, 2.42162, 0.348339),
    (1.5, 1.61010, 0.177703),
    (2, 1.08245, 0.0889412),
    (3, 0.52243, 0.0222388),
    (4, 0.25902, 5.55972e-3),
    (5, 0.12924, 1.38993e-3),
    (6, 0.06459, 3.47483e-4),
    (8, 0.01614, 2.17177e-5),
]


@pytest.mark.parametrize("rate, step, distortion", ECSQ_TABLE)
def test_entropy_coded_quantizer_meets_the_published_table(rate, step, distortion):
    assert ecsq_distortion(rate) == pytest.approx(distortion, rel=2e-6)  # the table's last digit
    if step > 0.02:  # below, five decimals of the step say too little
        assert ecsq_point(step)[0] == pytest.approx(rate, abs=1e-3)


@pytest.mark.parametrize("step", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("density, source", [(norm.pdf, gaussian()), (Laplace().density, Laplace())])
def test_entropy_coded_quantizer_meets_plain_integration(step, density, source):
    entropy = distortion = 0.0
    for k in range(-60, 61):
        a, b = (k - 0.5) * step, (k + 0.5) * step
        corner = {"points": [0.0]} if k == 0 else {}
        p = quad(density, a, b, **corner)[0]
        if p > 1e-14:
            center = quad(lambda x: x * density(x), a, b, **corner)[0] / p
            distortion += quad(lambda x, c=center: (x - c) ** 2 * density(x), a, b, **corner)[0]
            entropy -= p * np.log2(p)
    assert ecsq_point(step, source) == pytest.approx((entropy, distortion), rel=1e-7)


def test_the_best_fixed_rate_quantizer_comes_to_its_asymptote_from_below():
    ratios = [gaussian_mse(lloyd_max(2**b)) * 4**b / PANTER_DITE_FACTOR_HIGHRATE for b in range(1, 9)]
    assert np.all(np.diff(ratios) > 0) and 0.99 < ratios[-1] < 1
    # the distance is of the order of 1 / levels, so that it halves with every bit
    assert np.diff(np.log2(1 - np.array(ratios)))[-3:] == pytest.approx(-1, abs=0.1)


def test_the_floors_are_one_another():
    assert pytest.approx(1.423289, abs=1e-6) == ECSQ_FACTOR_HIGHRATE
    assert pytest.approx(1.532931, abs=1e-6) == SHAPING_GAIN_DB_UPPER
    assert pytest.approx(2.720699, abs=1e-6) == PANTER_DITE_FACTOR_HIGHRATE
    assert pytest.approx(1 / 12, rel=1e-12) == ECSQ_FACTOR_HIGHRATE * SECOND_MOMENT_LOWER
    assert SHAPING_GAIN_DB_UPPER == pytest.approx(20 * np.log10(2) * ECSQ_GAP_BITS_HIGHRATE)
    # a ball's second moment is above its limit by about log(pi n) / n, by Stirling's formula
    ball = second_moment_ball(10**6)
    assert SECOND_MOMENT_LOWER < ball < SECOND_MOMENT_LOWER * (1 + 2 * np.log(np.pi * 10**6) / 10**6)


def test_levels_as_dense_as_the_cube_root_meet_the_closed_forms():
    assert panter_dite_factor(gaussian(3.0)) == pytest.approx(3 * PANTER_DITE_FACTOR_HIGHRATE, rel=1e-8)
    assert panter_dite_factor(Laplace(variance=0.5)) == pytest.approx(4.5 / 2, rel=1e-8)
    n, t = 5, np.sqrt(3 / 5)  # int (1 + z^2 / n)^(-(n + 1) / 6) dz = sqrt(n) B(1 / 2, (n + 1) / 6 - 1 / 2)
    integral = np.sqrt(n) * beta(0.5, (n + 1) / 6 - 0.5) / (np.sqrt(n) * beta(n / 2, 0.5)) ** (1 / 3)
    assert panter_dite_factor(Student(degrees=n)) == pytest.approx(t**2 * integral**3 / 12, rel=1e-7)


@pytest.mark.parametrize(
    "source", [Laplace(), Student(degrees=3), GaussianMixture(weights=(0.5, 0.5), variances=(1, 9))]
)
def test_entropy_coding_ends_at_the_same_distance_from_every_limit(source):
    rates = np.array([2.0, 4.0, 6.0])
    gap_bits = np.log2(ecsq_distortion(rates, source) / shannon_lower(source, rates)) / 2
    off = np.abs(gap_bits - ECSQ_GAP_BITS_HIGHRATE)
    # where the density has a corner, and so in the logarithm of D, by the order of the step squared: 4^-R
    assert (gap_bits > 0).all() and (off < 4.0 ** (1 - rates)).all()
    assert ecsq_distortion(0, source) == source.variance


def test_a_correlated_gaussian_is_coded_in_its_eigenvectors():
    rng = np.random.default_rng(0)
    A = rng.standard_normal((6, 6))
    C = A @ A.T
    rate = np.array([0.0, 0.7, 8.0])
    found = gaussian_vector_distortion(C, rate)
    assert found[0] == pytest.approx(np.trace(C) / 6)
    assert found == pytest.approx(reverse_waterfilling(np.linalg.eigvalsh(C), rate) / 6)
    assert found[2] == pytest.approx(np.linalg.det(C) ** (1 / 6) * 4**-8.0, rel=1e-9)
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    assert gaussian_vector_distortion(turn @ C @ turn.T, rate) == pytest.approx(found)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_a_long_markov_gaussian_meets_kolmogorovs_integral(rho):
    n, R = 400, 2.5  # at this rate no frequency is under water: D = (1 - rho^2) 4^-R, the variance of what is new
    C = rho ** np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    assert (1 - rho**2) * 4**-R < ((1 - rho) / (1 + rho))  # the least of the spectral density
    # det C = (1 - rho^2)^(n - 1), one factor less than n
    assert gaussian_vector_distortion(C, R) == pytest.approx((1 - rho**2) ** (1 - 1 / n) * 4**-R, rel=1e-9)


def test_a_vector_quantizer_by_eigenvectors_reaches_what_is_said_of_it():
    C, R, n = np.array([[1.0, 0.8], [0.8, 1.0]]), 5.0, 200_000
    v = np.linalg.eigvalsh(C)
    x = np.random.default_rng(1).standard_normal((n, 2)) * np.sqrt(v)  # in eigenvectors already
    theta = gaussian_vector_distortion(C, R)  # no component is under water
    assert theta < v[0]
    step = np.sqrt(12 * theta)
    errors = ((x - step * np.round(x / step)) ** 2).mean(axis=1)  # of vectors; turning back changes no norm
    assert errors.mean() == pytest.approx(theta, abs=4 * errors.std() / np.sqrt(n))
    entropy = np.mean([ecsq_point(step, gaussian(one))[0] for one in v])
    assert entropy == pytest.approx(R + ECSQ_GAP_BITS_HIGHRATE, abs=2e-3)  # a step of a quarter of a deviation


@pytest.mark.parametrize(
    "C, message",
    [
        (np.ones((2, 3)), r"symmetric covariance, got shape \(2, 3\)"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), "symmetric covariance"),
        (np.array([[1.0, 2.0], [2.0, 1.0]]), "negative eigenvalues, got one of -1"),
    ],
)
def test_what_is_no_covariance_is_named(C, message):
    with pytest.raises(ValueError, match=message):
        gaussian_vector_distortion(C, 1)


def test_entropy_coded_quantizer_ends_a_quarter_bit_above_the_limit():
    gap_bits = np.log2(ecsq_distortion(8) / gaussian_distortion(8)) / 2
    assert gap_bits == pytest.approx(0.254614, abs=1e-6)
    assert pytest.approx(0.254614, abs=1e-6) == ECSQ_GAP_BITS_HIGHRATE
    below, above = ecsq_distortion([9 - 1e-9, 9])
    assert below == pytest.approx(above, rel=1e-8)  # no step where the asymptote takes over


@given(rates, rates)
def test_entropy_coded_quantizer_never_beats_the_limit_and_never_rises(a, b):
    low, high = sorted((a, b))
    assert ecsq_distortion(high) >= gaussian_distortion(high)
    assert ecsq_distortion(high) <= ecsq_distortion(low) * (1 + 1e-9)


def test_rate_zero_gives_the_variance():
    assert gaussian_distortion(0) == 1
    assert ecsq_distortion(0) == 1
    assert ecsq_distortion(1e-15) == pytest.approx(1)


def test_fixed_rate_asymptote_meets_the_table():
    assert panter_dite_highrate([1, 4]) == pytest.approx([0.68017, 1.06277e-2], rel=1e-5)


def test_shapes_follow_the_rate():
    grid = np.ones((2, 3))
    assert gaussian_distortion(grid).shape == ecsq_distortion(grid).shape == grid.shape
    assert reverse_waterfilling([1.0, 2.0], grid).shape == grid.shape
    assert reverse_waterfilling([0.0], grid).shape == grid.shape


@given(st.integers(1, 9), st.floats(1e-6, 1e6), rates)
def test_equal_variances_meet_the_closed_form(n, variance, rate):
    assert reverse_waterfilling(np.full(n, variance), rate) == pytest.approx(n * variance * 4**-rate, rel=1e-9)


@given(variances)
def test_rate_zero_gives_the_sum_of_variances(v):
    assert reverse_waterfilling(v, 0) == pytest.approx(v.sum(), rel=1e-12)


@given(variances, rates, rates)
def test_water_filling_is_nonincreasing_and_convex(v, a, b):
    ends, middle = reverse_waterfilling(v, sorted((a, b))), reverse_waterfilling(v, (a + b) / 2)
    slack = 1e-9 * v.sum()
    assert ends[1] <= ends[0] + slack
    assert middle <= ends.mean() + slack


@given(variances, rates)
def test_the_water_level_spends_the_whole_rate(v, rate):
    distortion = float(reverse_waterfilling(v, rate))
    wet = v[v > 0]
    if not len(wet):
        assert distortion == 0
        return
    low, high = 1e-300, v.max()
    for _ in range(100):  # bisection for the level at which the error is `distortion`
        theta = np.sqrt(low) * np.sqrt(high)
        low, high = (theta, high) if np.minimum(theta, v).sum() < distortion else (low, theta)
    bits = np.maximum(0, np.log2(wet / high) / 2).sum()
    assert bits == pytest.approx(rate * len(v), abs=1e-5)


@given(arrays(float, 5, elements=st.floats(0.1, 10)), st.floats(4, 12))
def test_high_rates_meet_the_geometric_mean(v, rate):
    assert reverse_waterfilling(v, rate) == pytest.approx(5 * np.exp(np.log(v).mean()) * 4**-rate, rel=1e-9)


@given(arrays(float, 4, elements=st.floats(0, 10)), arrays(int, 4, elements=st.integers(0, 5)), rates)
def test_a_weight_is_a_multiplicity(v, w, rate):
    assert reverse_waterfilling(v, rate, w) == pytest.approx(reverse_waterfilling(np.repeat(v, w), rate), rel=1e-9)


@given(variances, rates)
def test_no_spectrum_is_harder_than_a_flat_one(v, rate):
    assert reverse_waterfilling(v, rate) <= v.sum() * 4**-rate * (1 + 1e-9)


@given(arrays(float, 5, elements=st.floats(1e-3, 1e3)), arrays(int, 5, elements=st.integers(1, 9)), st.floats(0, 8))
def test_rate_and_distortion_of_the_water_are_inverse(v, w, rate):
    distortion = reverse_waterfilling(v, rate, w) / w.sum()
    assert reverse_waterfilling_rate(v, distortion, w) == pytest.approx(rate, abs=1e-7)


def test_errors_above_the_variance_need_no_bits():
    assert reverse_waterfilling_rate([1.0, 3.0], [2.0, 5.0], [1, 1]).tolist() == [0, 0]
    with pytest.raises(ValueError, match="distortion must be positive"):
        reverse_waterfilling_rate([1.0], [1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="two vectors of one length"):
        reverse_waterfilling_rate([1.0, 2.0], 1.0, [1.0])


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_bad_numbers_are_named(bad):
    with pytest.raises(ValueError, match=f"rate must be finite and not negative, got {bad}"):
        gaussian_distortion([1.0, bad])
    with pytest.raises(ValueError, match="every variance"):
        reverse_waterfilling([1.0, bad], 1)
    with pytest.raises(ValueError, match="the step must be positive, got 0"):
        ecsq_point(0)
    with pytest.raises(ValueError, match=r"one length, got \(2,\) and \(1,\)"):
        reverse_waterfilling([1.0, 2.0], 1, [1.0])
