import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bounds.instances import dispersed, rounded
from theory.bounds.pivots import factored
from theory.expansion.franco_2025_null_space import (
    CONSTRUCTIONS,
    Instance,
    Spread,
    gains,
    null_basis,
    pivots,
    share_of_rows,
    shares,
    stiff_basis,
)

SIZES = {8: (8, 12, 16), 12: (12, 16, 20, 24), 16: (16, 20, 24, 28, 32)}  # orders of Hadamard matrices above each width


@st.composite
def expansions(draw, least=0):
    """X (tokens, narrow), W (rows, narrow), T (narrow, wide), and the generator."""
    narrow = draw(st.sampled_from(sorted(SIZES)))
    wide = draw(st.sampled_from([n for n in SIZES[narrow] if n >= narrow + least]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scales = 10.0 ** rng.uniform(-1, 1, narrow)
    X, W = rng.standard_normal((narrow + 20, narrow)) * scales, rng.standard_normal((5, narrow))
    return X, W, CONSTRUCTIONS[draw(st.sampled_from(sorted(CONSTRUCTIONS)))](narrow, wide, rng), rng


@given(expansions())
def test_rows_are_orthonormal_and_outputs_stay(instance):
    X, W, T, _ = instance
    assert pytest.approx(np.eye(len(T)), abs=1e-12) == T @ T.T
    assert (X @ T) @ (W @ T).T == pytest.approx(X @ W.T, abs=1e-11 * np.abs(X).max())


@given(expansions())
def test_as_many_pivots_vanish_as_channels_were_added(instance):
    X, _, T, _ = instance
    d = pivots(X @ T)
    # QR is exact for a matrix within n eps |X| of the one it is given (Higham 2002, theorem 19.4); random columns of a
    # well-posed X leave nothing else as small, which the gap of ten thousand says
    rounding = (X.size * np.finfo(float).eps * np.linalg.norm(X)) ** 2 / len(X)
    assert (d <= rounding).sum() == T.shape[1] - T.shape[0]
    assert (d <= 1e4 * rounding).sum() == T.shape[1] - T.shape[0]


@given(expansions(), st.floats(-6, 0))
def test_pivots_by_qr_are_those_of_feedback(instance, exponent):
    X, _, T, _ = instance
    wide, damping = X @ T, 10.0**exponent
    H = wide.T @ wide / len(wide)
    # Cholesky squares the condition number, at most wide / damping
    assert pivots(wide, damping) == pytest.approx(factored(H, damping=damping).d, rel=1e-12 * len(H) ** 2 / damping)


@given(expansions())
def test_the_trace_stays_and_the_sum_of_pivots_is_below_it(instance):
    X, _, T, _ = instance
    energy = np.sum(X**2) / len(X)
    assert np.sum((X @ T) ** 2) / len(X) == pytest.approx(energy, rel=1e-12)
    assert pivots(X @ T).sum() <= energy * (1 + 1e-12)


@given(expansions(least=1), st.floats(-4, 0), st.floats(0.01, 1))
def test_closed_forms_of_the_error_are_one_another(instance, exponent, scale):
    X, _, T, _ = instance
    wide, damping = scale * X @ T, 10.0**exponent
    H = wide.T @ wide / len(wide)
    spread = Spread.of_feedback(H, damping)
    lam = damping * np.mean(np.diag(H))
    d = factored(H, damping=damping).d
    assert spread.output_error == pytest.approx(d.sum() - lam * np.trace(spread.C), abs=1e-9 * d.sum() / damping)
    shares = spread.share_in(null_basis(T)), spread.share_in(T.T)
    assert sum(shares) == pytest.approx(1, abs=1e-9)


@given(expansions(least=1))
def test_chance_is_the_share_of_an_error_that_knows_no_direction(instance):
    X, _, T, _ = instance
    H = T.T @ (X.T @ X) @ T
    share = Spread(np.eye(len(H)), H).share_in(null_basis(T))
    assert share == pytest.approx((T.shape[1] - T.shape[0]) / T.shape[1], rel=1e-12)
    assert pytest.approx(0, abs=1e-12) == T @ null_basis(T)


@settings(max_examples=20, deadline=None)
@given(expansions(least=1))
def test_the_error_of_feedback_is_the_sum_over_pivots(instance):
    X, W, T, _ = instance
    wide, step, damping = X @ T, 0.25, 1e-3
    H = wide.T @ wide / len(wide)
    E = W @ T - rounded(W @ T, H, step, damping=damping)
    found = factored(H, damping=damping)
    missed = E @ found.R / np.diag(found.R)
    lam = damping * np.mean(np.diag(H))
    assert (np.abs(missed) <= step / 2 * (1 + 1e-9)).all()
    outputs = np.sum((E @ H) * E)  # which is what the narrow inputs see of Q T^T
    assert outputs + lam * np.sum(E**2) == pytest.approx(np.sum(missed**2 * found.d), rel=1e-9)
    narrow = E @ T.T
    assert outputs == pytest.approx(np.sum((X @ narrow.T) ** 2) / len(X), rel=1e-9)


@pytest.mark.parametrize("damping", [1e-4, 1e-1])
def test_predicted_shares_and_errors_are_those_of_dispersed_weights(damping):
    instance, rows, step = Instance.draw(1.5, "random basis", 3), 2000, 0.25
    W = dispersed(rows, 64, step, np.random.default_rng(0)) @ instance.T
    _, H = instance.wide
    E = W - rounded(W, H, step, damping=damping)
    spread = Spread.of_feedback(H, damping)
    per_row = np.sum((E @ H) * E, axis=1)
    mean = step**2 / 12 * spread.output_error
    assert per_row.mean() == pytest.approx(mean, abs=4 * per_row.std() / np.sqrt(rows))
    # the share of a row is one of as many numbers as rows: the mean's error is below their deviation over the root
    basis = null_basis(instance.T)
    inside, total = np.sum((E @ basis) ** 2, axis=1), np.sum(E**2, axis=1)
    predicted = spread.share_in(basis)
    sigma = np.std(inside - predicted * total) / total.mean() / np.sqrt(rows)
    assert share_of_rows(E, basis) == pytest.approx(predicted, abs=4 * sigma)
    nearest = W - rounded(W, None, step)
    assert share_of_rows(nearest, basis) == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 5 / nearest.size * 2))


def test_feedback_finds_the_null_space_and_rounding_to_nearest_does_not():
    found = [shares(seed, 1.125, 1e-4) for seed in range(3)]
    for each in found:
        assert each["chance"] == pytest.approx(1 / 9)
        assert each["error feedback"] > 0.5 > 0.2 > each["to nearest"]
        assert each["error feedback"] == pytest.approx(each["feedback, predicted"], abs=0.05)
    assert found[0] == shares(0, 1.125, 1e-4)  # a seed says everything


def test_damping_empties_the_null_space_again():
    found = [shares(0, 1.5, damping)["feedback, predicted"] for damping in (1e-6, 1e-3, 1e-1, 10.0)]
    assert found == sorted(found, reverse=True) and found[-1] == pytest.approx(1 / 3, abs=0.05)


def test_stiff_directions_are_spared_with_and_without_expansion():
    for ratio in (1.0, 1.5):
        found = shares(0, ratio, 1e-2, stiff=True)
        assert found["error feedback"] < 0.3 * found["chance"]
        assert found["to nearest"] == pytest.approx(found["chance"], rel=0.25)


@pytest.mark.parametrize("construction", sorted(CONSTRUCTIONS))
def test_gains_are_the_sum_of_pivots(construction):
    found = gains(0, 1.5, construction)
    assert found["error feedback"] == pytest.approx(found["sum of pivots"], rel=0.1)
    alike = construction == "duplicated"  # half of the channels, whose two copies are rounded alike
    assert found["to nearest"] == pytest.approx(1.5 if alike else 1, abs=0.15)


def test_stiff_directions_are_eigenvectors():
    H = np.diag([3.0, 1.0, 2.0])
    assert np.abs(stiff_basis(H, 2)) == pytest.approx(np.array([[0, 1], [0, 0], [1, 0]]))


def test_what_cannot_be_had_is_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="17 channels of 8: expected at most each of them twice"):
        CONSTRUCTIONS["duplicated"](8, 17, rng)
    with pytest.raises(ValueError, match="21"):
        CONSTRUCTIONS["Hadamard"](8, 21, rng)
