import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.bounds import chee_2023_incoherence as quip
from theory.bounds.instances import haar, power_law, rounded
from theory.bounds.pivots import ORDERS, factored
from theory.experiment import Setting


@given(st.integers(0, 2**32 - 1), st.integers(1, 16), st.floats(0, 4), st.sampled_from(ORDERS))
@settings(max_examples=200)
def test_the_lemma_holds_in_every_order(seed, n, exponent, order):
    H = power_law(n, exponent, np.random.default_rng(seed))
    assert factored(H, order).d.sum() <= quip.pivot_sum_upper(H) * (1 + 1e-9)
    mu = quip.incoherence(H)
    assert 1 - 1e-9 <= mu <= np.sqrt(n) * (1 + 1e-9)
    assert quip.pivot_sum_upper(H) == pytest.approx(mu**2 / n * np.sqrt(np.linalg.eigvalsh(H)).sum() ** 2, rel=1e-6)


def test_the_lemma_is_met_with_equality_by_a_constant_diagonal():
    assert quip.pivot_sum_upper(np.array([[1.0]])) == 1
    H = quip.hadamard_rotated(quip.outliers(8, 0.0), np.random.default_rng(0))
    assert factored(H).d.sum() == pytest.approx(8)  # the identity again: sum d = 8, and (tr H^1/2)^2 / 8 = 8


def test_a_hadamard_matrix_is_as_incoherent_as_can_be_and_keeps_the_spectrum():
    H = quip.outliers(16, 1.5)
    turned = quip.hadamard_rotated(H, np.random.default_rng(1))
    assert quip.incoherence(H) == pytest.approx(4)  # channels are eigenvectors
    assert quip.incoherence(turned) == pytest.approx(1)
    assert np.linalg.eigvalsh(turned) == pytest.approx(np.linalg.eigvalsh(H))
    assert factored(turned).d.sum() < factored(H).d.sum() == pytest.approx(16)


@given(st.integers(0, 2**32 - 1), st.integers(1, 10), st.floats(-1, 1))
@settings(max_examples=100)
def test_no_feedback_is_better_than_ldlqs(seed, n, size):
    rng = np.random.default_rng(seed)
    H = power_law(n, 1.0, rng)
    A = quip.best_feedback(H)
    other = A + size * np.triu(rng.standard_normal((n, n)), 1)
    best = quip.feedback_error(A, H)
    assert best == pytest.approx(factored(H).d.sum(), rel=1e-9)
    assert quip.feedback_error(other, H) >= best * (1 - 1e-9)
    assert quip.feedback_error(np.zeros((n, n)), H) == pytest.approx(np.trace(H), rel=1e-9)


def test_feedback_by_another_matrix_makes_the_error_it_says():
    """A sweep of one's own with feedback A, over weights whose misses are uniform."""
    rng, n, rows = np.random.default_rng(3), 6, 20_000
    H, A = power_law(n, 1.0, rng), np.triu(rng.standard_normal((n, n)), 1) / 2
    W = rng.uniform(-32, 32, (rows, n))
    E = np.zeros_like(W)
    for j in range(n):
        E[:, j] = W[:, j] - np.rint(W[:, j] + E[:, :j] @ A[:j, j])
    error = np.einsum("ij,jk,ik->i", E, H, E)
    assert error.mean() == pytest.approx(quip.feedback_error(A, H) / 12, abs=4 * error.std() / rows**0.5)


def test_error_feedback_can_lose_on_single_rows_but_seldom_does():
    rng = np.random.default_rng(4)
    turn = haar(16, rng)
    H = turn @ quip.outliers(16, 0.5) @ turn.T
    W = rng.standard_normal((400, 16))
    wins = []
    for bits in (2, 8):
        fed, alone = (np.einsum("ij,jk,ik->i", E, H, E) for E in
                      (W - quip.clipped_rows(W, gram, bits) for gram in (H, None)))  # fmt: skip
        wins.append((fed > alone).mean())
    assert 0 < wins[1] < 0.5 and 0 < wins[0] < 0.5


def test_on_a_grid_with_ends_feedback_loses_the_bad_case_by_a_factor_that_grows():
    lost = []
    for n in (32, 64, 128):
        w, H = quip.bad_case(n, top=15.0)
        fed, alone, free = (w - q[0] for q in (quip.clipped_rows(w[None], H, 4, "asymmetric"),
                                               quip.clipped_rows(w[None], None, 4, "asymmetric"),
                                               rounded(w[None], H, 1.0)))  # fmt: skip
        assert free @ H @ free < alone @ H @ alone  # without ends it wins
        lost.append((fed @ H @ fed) / (alone @ H @ alone))
    assert lost == pytest.approx([26.3, 58.3, 122.5], rel=0.01)  # about n, by the definition with a dense Cholesky


def test_the_experiments_say_what_they_found():
    incoherence, clipped = quip.EXPERIMENTS
    assert "of the incoherence bound" in incoherence.sentence(incoherence.measure(Setting(effort=0.3)))
    assert "at 2 bits" in clipped.sentence(clipped.measure(Setting(effort=0.2)))
