"""Maps of input channels: the layer's output stays, weights come back, and what is stored restores them."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.hadamard import hadamard, is_hadamard_size
from suite.transforms import MAPS, map_from, map_header
from suite.transforms.greedy import rotation, swapped
from suite.transforms.maps import GreedyRotation, Hadamard, HeadHadamard, Permutation, Scale

EPS = {torch.float64: 2.0**-52, torch.float32: 2.0**-23}
SIZES = [n for n in range(1, 65) if is_hadamard_size(n)]


def gaussian(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


scales = st.integers(0, 10**6).map(lambda seed: Scale.stored(gaussian(seed, 12).exp()))
permutations = (
    st.integers(1, 40).flatmap(lambda n: st.permutations(range(n))).map(lambda p: Permutation(order=tuple(p)))
)
hadamards = st.tuples(st.sampled_from(SIZES), st.integers(0, 40)).map(
    lambda found: Hadamard(n_in=max(1, found[0] - found[1]), n_out=found[0])
)
across = st.builds(HeadHadamard, heads=st.sampled_from([1, 2, 4, 12, 20]), head_dim=st.integers(1, 9))


@st.composite
def greedy(draw):
    block = draw(st.integers(1, 16))
    exchanges = draw(st.lists(st.integers(0, block - 1), max_size=6)) if block > 1 else []
    n_in, seed = block * draw(st.integers(1, 4)), draw(st.integers(0, 2**63 - 1))
    exchange = draw(st.sampled_from(["column", "release"]))
    return GreedyRotation(n_in=n_in, block=block, seed=seed, exchanges=tuple(exchanges), exchange=exchange)


maps = st.one_of(scales, permutations, hadamards, across, greedy())
types = st.sampled_from(list(EPS))


def matrix(m):
    """B (n_in, n_out) with x' = x B."""
    return m.forward(torch.eye(m.n_in, dtype=torch.float64))


def slack(m, dtype):
    """Roundings of one value: sums of `n_out` terms for each factor, of at most 6 steps in a greedy rotation."""
    return 8 * m.n_out * EPS[dtype]


@settings(deadline=None)
@given(maps, types, st.integers(0, 10**6))
def test_the_output_stays_and_the_weights_come_back(m, dtype, seed):
    x, W = gaussian(seed, 2, 3, m.n_in, dtype=dtype), gaussian(seed + 1, 5, m.n_in, dtype=dtype)
    mapped, weights = m.forward(x), m.to_weights(W)
    assert mapped.shape == (2, 3, m.n_out) and weights.shape == (5, m.n_out)
    assert mapped.dtype == weights.dtype == m.from_weights(weights).dtype == dtype
    sizes = x.norm(dim=-1, keepdim=True) * W.norm(dim=-1)
    assert bool(((mapped @ weights.T - x @ W.T).abs() <= slack(m, dtype) * sizes).all())
    assert bool(((m.from_weights(weights) - W).abs() <= slack(m, dtype) * W.norm(dim=-1, keepdim=True)).all())


@settings(deadline=None)
@given(maps)
def test_rows_are_orthonormal_but_for_scales(m):
    B = matrix(m)
    assert B.shape == (m.n_in, m.n_out)
    if isinstance(m, Scale):
        assert torch.equal(B, torch.diag(1 / m.scale.double()))
        return
    error = (B @ B.T - torch.eye(m.n_in, dtype=torch.float64)).abs().max()
    assert float(error) <= slack(m, torch.float64)


@settings(deadline=None)
@given(maps, st.integers(0, 10**6))
def test_a_map_is_restored_from_its_text_bit_for_bit(m, seed):
    text = json.dumps(map_header(m))
    back = map_from(json.loads(text))
    assert back == m and type(back) is type(m) and hash(back) == hash(m) and back.n_bits == m.n_bits
    x = gaussian(seed, 3, m.n_in)
    assert torch.equal(back.forward(x), m.forward(x))


def test_a_rotation_is_the_same_when_it_is_built_again():
    m = GreedyRotation(n_in=64, block=32, seed=7, exchanges=(3, 0, 31, 3))
    before = m.matrix.clone()
    assert not torch.equal(replace(m, seed=8).matrix, before)  # whose draws take the place of those kept
    assert not torch.equal(replace(m, exchange="release").matrix, before)
    assert torch.equal(rotation(32, 7, (3, 0, 31, 3), "column"), before)


@settings(deadline=None)
@given(maps)
def test_the_bits_are_those_of_what_is_stored(m):
    if isinstance(m, Scale):
        expected = 16 * m.n_in
    elif isinstance(m, Permutation):  # the least whole number of bits that tells n channels apart
        expected = m.n_in * next(width for width in range(8) if 2**width >= m.n_in)
    elif isinstance(m, GreedyRotation):
        width = next(width for width in range(8) if 2**width >= m.block)
        expected = 63 + width * len(m.exchanges) if m.exchanges else 0
    else:
        expected = 0
    assert m.n_bits == expected and isinstance(m.n_bits, int)


def test_every_kind_has_been_looked_at():
    assert {Scale, Permutation, Hadamard, HeadHadamard, GreedyRotation} == set(MAPS)


# --- each against its definition


@pytest.mark.parametrize(("n_in", "n_out"), [(12, 12), (12, 20), (7, 8), (1, 1), (172, 192)])
def test_hadamard_is_zeros_and_a_dense_product(n_in, n_out):
    x = gaussian(0, 4, n_in)
    padded = torch.cat([x, torch.zeros(4, n_out - n_in, dtype=x.dtype)], dim=1)
    dense = padded @ hadamard(n_out, torch.float64) / n_out**0.5
    m = Hadamard(n_in=n_in, n_out=n_out)
    torch.testing.assert_close(m.forward(x), dense, rtol=0, atol=float(n_out * EPS[torch.float64] * x.norm()))


@pytest.mark.parametrize(("heads", "head_dim"), [(12, 5), (8, 8), (1, 4)])
def test_hadamard_across_heads_is_a_kronecker_product(heads, head_dim):
    x = gaussian(0, 4, heads * head_dim)
    K = torch.kron(hadamard(heads, torch.float64), torch.eye(head_dim, dtype=torch.float64)) / heads**0.5
    found = HeadHadamard(heads=heads, head_dim=head_dim).forward(x)
    torch.testing.assert_close(found, x @ K, rtol=0, atol=float(heads * EPS[torch.float64] * x.norm()))


def test_across_and_within_heads_is_one_hadamard_matrix():
    x = gaussian(0, 4, 256)
    within = x.unflatten(-1, (8, 32)) @ hadamard(32, torch.float64) / 32**0.5
    found = HeadHadamard(heads=8, head_dim=32).forward(within.flatten(-2))
    whole = Hadamard(n_in=256, n_out=256).forward(x)
    torch.testing.assert_close(found, whole, rtol=0, atol=float(256 * EPS[torch.float64] * x.norm()))


def test_permutation_takes_channels_in_order():
    x = torch.tensor([[10.0, 11.0, 12.0]])
    m = Permutation(order=(2, 0, 1))
    assert m.forward(x).tolist() == [[12.0, 10.0, 11.0]]
    assert m.from_weights(m.to_weights(x)).tolist() == x.tolist()


def test_greedy_rotation_is_one_matrix_for_every_block():
    m = GreedyRotation(n_in=24, block=8, seed=1, exchanges=(5, 2))
    x = gaussian(0, 3, 24)
    whole = torch.block_diag(m.matrix, m.matrix, m.matrix)
    torch.testing.assert_close(m.forward(x), x @ whole, rtol=0, atol=float(8 * EPS[torch.float64] * x.norm()))


def test_a_scale_is_what_float16_holds():
    s = torch.tensor([1e-9, 0.1, 1.0, 1e9], dtype=torch.float64)
    m = Scale.stored(s)
    assert m.scale.tolist() == [2.0**-14, float(torch.tensor(0.1).half()), 1.0, 65504.0]
    x = gaussian(0, 2, 4, dtype=torch.float32)
    assert torch.equal(m.forward(x), x / m.scale) and torch.equal(m.to_weights(x), x * m.scale)


@given(st.integers(2, 12), st.data())
def test_swapping_is_on_both_sides(n, data):
    R, d = gaussian(n, n, n), data.draw(st.integers(0, n - 1))
    E = torch.eye(n, dtype=torch.float64)
    E[[0, d]] = E[[d, 0]]
    assert torch.equal(swapped(R, d), E @ R @ E)


# --- what is refused


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hadamard(n_in=12, n_out=11), "n_in 12, n_out 11"),
        (lambda: Hadamard(n_in=0, n_out=12), "n_in 0"),
        (lambda: Hadamard(n_in=90, n_out=92), "n_in 90, n_out 92"),
        (lambda: HeadHadamard(heads=14, head_dim=64), "heads 14"),
        (lambda: Permutation(order=(0, 0, 1)), "order of 3 channels"),
        (lambda: Permutation(order=(1, 2)), "order of 2 channels"),
        (lambda: Scale(halves=(0,)), "positive finite float16"),
        (lambda: Scale(halves=(0x7C00,)), "positive finite float16"),
        (lambda: GreedyRotation(n_in=12, block=8, seed=0, exchanges=()), "a block that divides n_in"),
        (lambda: GreedyRotation(n_in=8, block=8, seed=0, exchanges=(8,)), "channels of the block"),
        (lambda: GreedyRotation(n_in=8, block=8, seed=-1, exchanges=()), "seed -1"),
        (lambda: GreedyRotation(n_in=8, block=8, seed=0, exchanges=(), exchange="row"), "exchange 'row'"),
        (lambda: map_from({"kind": "Rotation"}), "map 'Rotation': expected one of Scale"),
        (lambda: map_from({"kind": "Permutation", "places": [0]}), "map Permutation: "),
        (lambda: map_from({}), "map None"),
    ],
)
def test_what_makes_no_map_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
