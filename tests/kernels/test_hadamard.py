"""Hadamard matrices of every claimed order up to 512, and the fast product against the dense one."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.hadamard import hadamard, hadamard_transform, is_hadamard_size, next_sizes

CLAIMED = [n for n in range(1, 513) if is_hadamard_size(n)]
MISSING = (92, 184, 188, 236, 260, 268, 292, 324, 356, 372, 376, 404, 412, 428, 436, 452, 472, 476, 508)
# of models: Llama 2 and 3, Qwen 2.5, Gemma; 1536 to 29568
LARGE = (1536, 2304, 3584, 4864, 8960, 11008, 13824, 14336, 18944, 28672, 29568)
EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23}

orders = st.sampled_from(CLAIMED)
types = st.sampled_from(list(EPS))


def gaussian(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tolerance(x):
    """Of a product with an orthonormal matrix, per value.

    Every factor is a sum of its order's terms, rounded once a term and once for the matrix entry, on vectors of the
    same length |x|; the factors of the orders used add up to n at most, those of one value to far less than |x|.
    """
    n = x.shape[-1]
    return n * EPS[x.dtype] * x.norm(dim=-1, keepdim=True)


def test_every_claimed_order_is_hadamard():
    for n in CLAIMED:
        H = hadamard(n, torch.float64)
        assert torch.equal(H.abs(), torch.ones_like(H))
        assert torch.equal(H @ H.T, n * torch.eye(n, dtype=torch.float64)), n  # sums of integers: exact


def test_what_is_claimed_is_what_the_constructions_give():
    assert [n for n in range(1, 513) if n < 3 or n % 4 == 0] == sorted([*CLAIMED, *MISSING])
    assert {116, 156, 172, 232, 312, 344}.issubset(CLAIMED)  # four blocks, and twice those
    assert {28, 244, 344}.issubset(CLAIMED) and {20, 52, 100, 340}.issubset(CLAIMED)  # Paley over prime powers


@pytest.mark.parametrize("n", [0, -4, 3, 6, 92, 428])
def test_other_sizes_are_refused(n):
    assert not is_hadamard_size(n)
    with pytest.raises(ValueError, match=f"order {n} can be built"):
        hadamard(n)
    if n >= 0:
        with pytest.raises(ValueError, match=f"order {n} can be built"):
            hadamard_transform(torch.zeros(2, n))


def test_powers_of_two_are_sylvesters():
    H = torch.ones(1, 1)
    for k in range(1, 10):
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
        assert torch.equal(hadamard(2**k), H)


def test_a_matrix_is_the_callers_own():
    hadamard(12).zero_()
    hadamard(12, torch.int8).zero_()
    assert float(hadamard(12).abs().sum()) == 144
    assert hadamard_transform(torch.eye(12)).abs().allclose(torch.full((12, 12), 12**-0.5))


def test_fast_is_dense_for_every_claimed_order():
    for n in CLAIMED:
        x, H = gaussian(n, 3, n), hadamard(n, torch.float64) / n**0.5
        for inverse in (False, True):
            dense = x @ (H.T if inverse else H)
            assert bool(((hadamard_transform(x, inverse) - dense).abs() <= tolerance(x)).all()), n


@pytest.mark.parametrize("n", LARGE)
def test_fast_is_dense_for_large_products(n):
    rows = torch.tensor([0, 1, n // 2, n - 1])
    x = torch.zeros(len(rows), n, dtype=torch.float64)
    x[torch.arange(len(rows)), rows] = 1
    found = hadamard_transform(x) * n**0.5  # rows of H
    assert bool((found.abs() - 1).abs().max() <= 8 * EPS[torch.float64])  # one product of a value for every factor
    assert torch.equal(found.sign() @ found.sign().T, n * torch.eye(len(rows), dtype=torch.float64))
    if n < 4000:
        assert torch.equal(found.sign(), hadamard(n, torch.float64)[rows])
    y = gaussian(n, 2, n)
    assert bool(((hadamard_transform(hadamard_transform(y), inverse=True) - y).abs() <= 2 * tolerance(y)).all())


@settings(deadline=None)
@given(orders, types, st.integers(0, 10**6))
def test_the_inverse_undoes_it_and_lengths_stay(n, dtype, seed):
    x = gaussian(seed, 2, 3, n, dtype=dtype)
    y = hadamard_transform(x)
    assert y.shape == x.shape and y.dtype == dtype
    for back in (hadamard_transform(y, inverse=True), hadamard_transform(hadamard_transform(x, inverse=True))):
        assert bool(((back - x).abs() <= 2 * tolerance(x)).all())
    assert bool(((y.norm(dim=-1) - x.norm(dim=-1)).abs() <= tolerance(x)[..., 0]).all())


@settings(deadline=None)
@given(orders, st.integers(0, 10**6))
def test_no_channel_gets_more_than_an_even_share(n, seed):
    """max |x H| / sqrt(n) <= |x|_1 / sqrt(n), with equality for one channel alone."""
    x = gaussian(seed, n)
    limit = float(x.abs().sum()) / n**0.5 + float(tolerance(x))
    assert float(hadamard_transform(x).abs().max()) <= limit
    one = torch.zeros(n, dtype=torch.float64)
    one[seed % n] = 1
    torch.testing.assert_close(hadamard_transform(one).abs(), torch.full_like(one, n**-0.5), rtol=2.0**-49, atol=0)


@pytest.mark.parametrize("n", [12, 24, 172])
def test_gradients_are_those_of_the_dense_product(n):
    x = gaussian(0, 2, n).requires_grad_()
    assert torch.autograd.gradcheck(hadamard_transform, (x,))
    g = gaussian(1, 2, n)
    (found,) = torch.autograd.grad(hadamard_transform(x), x, g)
    assert bool(((found - hadamard_transform(g, inverse=True)).abs() <= 2 * tolerance(g)).all())


def test_empty_batches_and_strided_inputs():
    assert hadamard_transform(torch.empty(0, 24)).shape == (0, 24)
    x = gaussian(0, 24, 5).T
    assert torch.equal(hadamard_transform(x), hadamard_transform(x.contiguous()))


# v 2^k with v of the reference's list (Brevitas, brevitas.graph.hadamard.find_closest_hadamard_number), by hand
@pytest.mark.parametrize(
    ("n", "steps"),
    [
        (8192, {1: 8960, 3: 9728, 5: 10240, 7: 12288}),
        (11008, {1: 12288, 3: 13824, 5: 15360, 7: 18432}),
        (14336, {1: 15360, 3: 18432, 5: 19968, 7: 22016}),
        (64, {1: 72, 2: 80, 3: 96}),
        (172, {1: 192, 2: 208, 3: 216}),
        (768, {1: 832, 2: 864, 3: 896}),
        (1, {1: 12, 2: 20, 3: 24, 4: 28}),
    ],
)  # fmt: skip
def test_expansion_takes_the_sizes_of_the_reference(n, steps):
    sizes = list(islice(next_sizes(n), 7))
    assert {step: sizes[step - 1] for step in steps} == steps


@given(st.integers(1, 30000))
def test_sizes_of_expansion_ascend_and_can_be_built(n):
    sizes = list(islice(next_sizes(n), 12))
    assert sizes == sorted(set(sizes)) and sizes[0] > n
    multiples = {v * 2**k for v in (172, 156, 152, 140, 108, 60, 52, 40, 36, 28, 20, 12) for k in range(14)}
    assert sizes == sorted(m for m in multiples if n < m <= sizes[-1])  # none is left out
    assert all(is_hadamard_size(size) for size in sizes)
