import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.bounds.instances import dispersed, power_law, rounded
from theory.bounds.pivots import factored
from theory.expansion.saab_2026_intrinsic import after_the_fact, intrinsic, stiffest, stored


def instance(seed, n=12):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((6, n)), power_law(n, rng.uniform(0, 2), rng)


def error(E, H):
    return np.sum((E @ H) * E)


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_a_branch_takes_the_stiffest_directions_off_the_problem(seed, rank):
    E, H = instance(seed)
    V, rest = stiffest(H, rank)
    A, B = intrinsic(E, V)
    assert error(E - B @ A, H) == pytest.approx(error(E, rest), abs=1e-9 * error(E, H))
    assert np.trace(rest) == pytest.approx(np.trace(H) - np.sort(np.linalg.eigvalsh(H))[-rank:].sum(), abs=1e-9)
    assert pytest.approx(0, abs=1e-9) == rest @ V


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_branch_after_the_fact_is_the_best_of_its_rank(seed, rank):
    E, H = instance(seed)
    A, B = after_the_fact(E, H, rank)
    singular = np.linalg.svd(E @ np.linalg.cholesky(H), compute_uv=False)
    assert A.shape == (rank, 12) and B.shape == (6, rank)
    assert error(E - B @ A, H) == pytest.approx(np.sum(singular[rank:] ** 2), abs=1e-9 * error(E, H))
    known = intrinsic(E, stiffest(H, rank)[0])
    assert error(E - B @ A, H) <= error(E - known[1] @ known[0], H) * (1 + 1e-9)


@pytest.mark.parametrize("rank", [1, 4])
def test_feedback_that_knows_of_the_branch_meets_its_closed_form_and_bound(rank):
    rng, step, damping, rows = np.random.default_rng(1), 0.25, 1e-3, 2000
    H, W = power_law(32, 1.5, rng), dispersed(rows, 32, step, rng)
    rest = stiffest(H, rank)[1]
    E = W - rounded(W, rest, step, damping=damping)
    found = factored(rest, damping=damping)
    missed = E @ found.R / np.diag(found.R)
    assert np.mean(missed**2) == pytest.approx(step**2 / 12, abs=4 * step**2 * np.sqrt(1 / 180 / missed.size))
    per_row = np.sum((E @ rest) * E, axis=1)
    assert per_row.mean() <= step**2 / 12 * found.d.sum() + 4 * per_row.std() / np.sqrt(rows)
    assert found.d.sum() <= np.trace(rest) * (1 + damping) * (1 + 1e-12)


def test_a_stored_branch_is_charged_and_rounded_once():
    A, B = np.full((2, 8), 1 / 3), np.ones((5, 2))
    product, bits = stored(A, B)
    assert bits == 16 * (16 + 10)
    assert product == pytest.approx(B @ A.astype(np.float16).astype(float), rel=1e-12)


@pytest.mark.parametrize("rank", [0, 13])
def test_a_rank_that_there_is_not_is_named(rank):
    with pytest.raises(ValueError, match=f"rank {rank}: expected 1 to 12"):
        stiffest(np.eye(12), rank)
