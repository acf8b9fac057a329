from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.transforms.cayley import cayley, descend, direction, fixed_point, length, polar

EPS = torch.finfo(torch.float64).eps

seeds = st.integers(0, 2**32)
sizes = st.integers(2, 24)
rates = st.floats(1e-3, 10)

# The release (facebookresearch/SpinQuant@8f47aa3, train_utils/optimizer.py, SGDG without its random QR) from the
# identity on |B X - C|^2 / 2 of `procrustes(8)`, in float64: tr(X C^T) and tr(X B^T) by rate and step.
RELEASE = {
    (1.5, 1): (3.437855679680059, 1.3105149266772869),
    (1.5, 10): (2.8737298755084963, 2.7702437738941867),
    (1.5, 100): (3.437936731151978, 2.0488737790800173),
    (0.05, 1): (2.022088055605303, 1.079951096548728),
    (0.05, 10): (4.297746251363147, 1.5718530004917652),
    (0.05, 100): (3.154986481104877, 2.5529210047951962),
}


def drawn(seed, n, dtype=torch.float64):
    """An orthogonal matrix and a gradient, (n, n)."""
    generator = torch.Generator().manual_seed(seed)
    A, G = torch.randn(2, n, n, generator=generator, dtype=dtype)
    return torch.linalg.qr(A)[0], G


def procrustes(n):
    """B and C (n, n) of the problem min |B X - C|^2 / 2 over orthogonal X, and its gradient."""
    k = torch.arange(n * n, dtype=torch.float64).reshape(n, n)
    B, C = torch.sin(k + 1), torch.cos(3 * k)
    return B, C, lambda X: B.T @ (B @ X - C)


def drift(X):
    return float((X @ X.T - torch.eye(len(X), dtype=X.dtype)).abs().max())


@given(seeds, sizes)
def test_the_transform_of_a_skew_matrix_is_a_rotation(seed, n):
    X, G = drawn(seed, n)
    R = cayley(direction(X, G))
    assert drift(R) < 100 * n * EPS  # a solve with a matrix of condition sqrt(1 + |A|^2 / 4)
    assert float(torch.linalg.det(R)) == pytest.approx(1)


@given(seeds, sizes, rates)
def test_a_step_stays_orthogonal(seed, n, rate):
    X, G = drawn(seed, n)
    assert drift(descend(X, G, rate)) < 100 * n * EPS


def test_hundreds_of_steps_stay_orthogonal():
    X, _ = drawn(0, 64)
    generator = torch.Generator().manual_seed(1)
    for _ in range(400):
        X = descend(X, torch.randn(64, 64, generator=generator, dtype=torch.float64), 1.5)
    assert drift(X) < 1e-12


@given(seeds, sizes)
def test_a_small_step_is_the_riemannian_gradient(seed, n):
    X, G = drawn(seed, n)
    projected = (G - X @ G.T @ X) / 2  # of G to the tangent space at X, {X S: S skew}
    A = direction(X, G)
    assert torch.equal(A, -A.T)
    assert torch.allclose(X @ A, projected, atol=1e-12)
    size = float(torch.linalg.matrix_norm(A, 2))
    for t in (1e-2 / size, 1e-4 / size):
        gap = float(torch.linalg.matrix_norm(descend(X, G, t) - (X - t * projected), 2))
        assert gap <= 0.51 * (t * size) ** 2  # |cayley(S) - I - S| = |S^2/2 (I - S/2)^-1| <= |S|^2 / 2


@given(seeds, sizes, st.floats(1e-3, 1e3))
def test_the_cap_makes_the_iteration_a_contraction_by_a_half(seed, n, rate):
    A = direction(*drawn(seed, n))
    t = length(A, rate)
    assert 0 < t <= rate
    assert t / 2 * float(torch.linalg.matrix_norm(A, 2)) <= 0.5 + 1e-12


def test_without_a_gradient_nothing_moves():
    X, _ = drawn(0, 5)
    assert torch.allclose(descend(X, torch.zeros_like(X), 1.5), X, rtol=0, atol=4 * EPS)
    assert torch.allclose(descend(X, X, 1.5), X, rtol=0, atol=40 * EPS)  # a gradient X S, S symmetric, points outward


@given(seeds, sizes, rates)
def test_the_iteration_converges_to_the_exact_step(seed, n, rate):
    X, G = drawn(seed, n)
    exact = descend(X, G, rate)
    start = float(torch.linalg.matrix_norm(fixed_point(X, G, rate, 0) - exact, 2))
    for iterations in (5, 20, 60):
        gap = float(torch.linalg.matrix_norm(fixed_point(X, G, rate, iterations) - exact, 2))
        assert gap <= start / 2**iterations + 2e-8  # what normalizing rows by their norm and 1e-8 takes away, twice


@pytest.mark.parametrize("rate", [1.5, 0.05])
def test_fixed_point_is_the_release(rate):
    B, C, gradient = procrustes(8)
    X = torch.eye(8, dtype=torch.float64)
    for step in range(1, 101):
        X = fixed_point(X, gradient(X), rate)
        if (rate, step) in RELEASE:
            assert (float((X * C).sum()), float((X * B).sum())) == pytest.approx(RELEASE[rate, step], abs=1e-10)


def test_the_release_drifts_by_about_1e_5_and_polar_undoes_it():
    X, _ = drawn(0, 64, torch.float32)
    X, generator = X.double(), torch.Generator().manual_seed(1)
    for _ in range(100):
        X = fixed_point(X, torch.randn(64, 64, generator=generator, dtype=torch.float64), 1.5)
    assert 1e-6 < drift(X) < 1e-4
    near = polar(X)
    assert drift(near) < 1e-13
    assert float((near - X).abs().max()) < drift(X)


@settings(max_examples=20)
@given(seeds)
def test_descent_ends_at_the_known_optimum(seed):
    start, noise = drawn(seed, 12)
    Q, G = drawn(seed + 1, 12)
    turned = start @ cayley(direction(start, G) / 4)  # a path keeps the determinant, and so must the optimum
    C = Q @ turned + 0.01 * noise
    best = polar(Q.T @ C)  # of |Q X - C|^2 / 2 (Schoenemann 1966)
    losses, X = [], start
    for _ in range(300):
        losses.append(float(((Q @ X - C) ** 2).sum()) / 2)
        X = descend(X, Q.T @ (Q @ X - C), 0.5)
    assert all(after <= before + 1e-12 for before, after in pairwise(losses))
    assert torch.allclose(X, best, rtol=0, atol=1e-8)
