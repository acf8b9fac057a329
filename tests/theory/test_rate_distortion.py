import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.integrate import quad
from scipy.stats import norm

from theory.rate_distortion import (
    ECSQ_GAP_BITS_HIGHRATE,
    ecsq_distortion,
    ecsq_point,
    gaussian_distortion,
    panter_dite_highrate,
    reverse_waterfilling,
    reverse_waterfilling_rate,
)

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
def test_entropy_coded_quantizer_meets_plain_integration(step):
    entropy = distortion = 0.0
    for k in range(-60, 61):
        a, b = (k - 0.5) * step, (k + 0.5) * step
        p = quad(norm.pdf, a, b)[0]
        if p > 1e-14:
            center = quad(lambda x: x * norm.pdf(x), a, b)[0] / p
            distortion += quad(lambda x, c=center: (x - c) ** 2 * norm.pdf(x), a, b)[0]
            entropy -= p * np.log2(p)
    assert ecsq_point(step) == pytest.approx((entropy, distortion), rel=1e-7)


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
