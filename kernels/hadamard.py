"""Hadamard matrices of the sizes that models have, and products with them in O(n sum of factors).

A Hadamard matrix H (n, n) has entries +-1 and H H^T = n I. Built here, and multiplied by one another as Kronecker
products (Sylvester 1867; doubling is the product with order 2):

- Paley 1933, "On orthogonal matrices", I: order q + 1 for a prime power q = 3 mod 4, and II: order 2 (q + 1) for a
  prime power q = 1 mod 4, from the quadratic character of the field of q elements;
- orders 116, 156 and 172, which neither gives, from four circulants in the array of Goethals and Seidel 1967,
  "Orthogonal matrices with zero diagonal". That there are such matrices was published by Baumert 1966 (116), by
  Baumert and Hall 1965 (156) and by Williamson 1944 (172); that these are some is checked by H H^T = n I.

`hadamard_transform` never forms H: it multiplies by the Kronecker factors, small ones gathered into dense products of
16 to 64 columns. Few of these matrices are symmetric, so H H is not n I in general: the inverse takes H^T.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import torch

# First rows of circulants A, B, C, D of order n / 4 with A A^T + B B^T + C C^T + D D^T = n I; all four are symmetric.
_BLOCKS = {
    116: (
        "++--+--+-+++-++++-+++-+--+--+",
        "++++-++-+---++++++---+-++-+++",
        "+-+---++--+-++++++-+--++---+-",
        "+++---++--+-+----+-+--++---++",
    ),
    156: (
        "+++--+-+-----+--++----++--+-----+-+--++",
        "++++---+--++----+-+--+-+----++--+---+++",
        "+++--++-+---+-+--+----+--+-+---+-++--++",
        "+---++-+-+-----+++-++-+++-----+-+-++---",
    ),
    172: (
        "+---++--++++-+-+++-++--++-+++-+-++++--++---",
        "++-++++++----+-+--++-++-++--+-+----++++++-+",
        "+++-+-++--+-+-++++-+----+-++++-+-+--++-+-++",
        "++---++++-+--+--++--------++--+--+-++++---+",
    ),
}

# What post-training model expansion takes for multiples of powers of two: the orders of QuaRot's tables, and 152.
_EXPANSION = (172, 156, 152, 140, 108, 60, 52, 40, 36, 28, 20, 12)

# What a dense product costs on a CPU beside its multiplications, in columns of it: the way through memory. On 4096 rows
# of 256 to 8192 values a product of 64 columns took about twice the time of one of 16, and one of 128 four times. So
# one matrix of order 108 is cheaper than three of order 12, and it is the one that published rotations take.
_PASS = 64


def is_hadamard_size(n: int) -> bool:
    """Whether this file builds a Hadamard matrix of order `n`: 1, 2, and most multiples of 4.

    Up to 512 the multiples of 4 that are missing are 92, 184, 188, 236, 260, 268, 292, 324, 356, 372, 376, 404, 412,
    428, 436, 452, 472, 476 and 508.

    >>> [is_hadamard_size(n) for n in (6, 12, 92, 172, 11008)]
    [False, True, False, True, True]
    """
    return n >= 1 and _factors(n) is not None


def next_sizes(n: int) -> Iterator[int]:
    """The sizes above `n` that expansion takes, ascending: v 2^k, v of a fixed list; powers of two are not among them.

    Franco, Monteagudo-Lago, Colbert, Fraser, Blott 2025, arXiv:2503.17513, where the `steps`-th is meant.

    >>> from itertools import islice
    >>> list(islice(next_sizes(8192), 7))
    [8960, 9216, 9728, 9984, 10240, 11008, 12288]
    """
    while True:
        n = min(v * 2 ** max(0, (n // v).bit_length()) for v in _EXPANSION)
        yield n


def hadamard(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A Hadamard matrix (n, n) of entries +-1, the one that `hadamard_transform` multiplies by.

    For powers of two it is Sylvester's. Raises `ValueError` for a size that cannot be built.

    >>> hadamard(4)
    tensor([[ 1.,  1.,  1.,  1.],
            [ 1., -1.,  1., -1.],
            [ 1.,  1., -1., -1.],
            [ 1., -1., -1.,  1.]])
    """
    return kronecker(factors(n)).to(dtype)


def hadamard_transform(x: torch.Tensor, inverse: bool = False) -> torch.Tensor:
    """Give x H / sqrt(n) along the last axis (..., n), or x H^T / sqrt(n), which undoes it. Differentiable.

    Raises `ValueError` for a size that `is_hadamard_size` does not claim.

    >>> hadamard_transform(torch.tensor([2.0, 0.0, 0.0, 0.0]))
    tensor([1., 1., 1., 1.])
    """
    n = x.shape[-1]
    after, y = n, x
    for orders in _passes(n):
        H = _orthonormal(orders).to(dtype=x.dtype, device=x.device)
        H = H.T if inverse else H
        after //= len(H)
        y = y.reshape(-1, len(H)) @ H if after == 1 else H.T @ y.reshape(-1, len(H), after)
    return y.reshape(x.shape)


def factors(n: int) -> tuple[int, ...]:
    """The orders, decreasing, whose Kronecker product `hadamard` is of order `n`. Raises `ValueError` where none is.

    >>> factors(14336)
    (28, 2, 2, 2, 2, 2, 2, 2, 2, 2)
    """
    found = _factors(n) if n >= 1 else None
    if found is None:
        raise ValueError(f"no Hadamard matrix of order {n} can be built: expected 1, 2 or a product of known orders")
    return found


def kronecker(orders: tuple[int, ...]) -> torch.Tensor:
    """The Kronecker product (n, n), int8, of matrices of these orders, taken from `factors`."""
    H = torch.ones(1, 1, dtype=torch.int8)
    for order in orders:
        H = torch.kron(H, _primitive(order))
    return H


@lru_cache(maxsize=512)
def _passes(n: int) -> tuple[tuple[int, ...], ...]:
    """The Kronecker factors gathered into dense products, in the cheapest way."""
    orders = factors(n)
    best: list[tuple[int, tuple[tuple[int, ...], ...]]] = [(0, ())]  # cost and products of the first so many factors
    for stop in range(1, len(orders) + 1):
        best.append(min(
            (cost + math.prod(orders[start:stop]) + _PASS, (*passes, orders[start:stop]))
            for start, (cost, passes) in enumerate(best)
        ))  # fmt: skip
    return best[-1][1]


@lru_cache(maxsize=64)
def _orthonormal(orders: tuple[int, ...]) -> torch.Tensor:
    H = kronecker(orders).double()
    return H / math.sqrt(len(H))


@lru_cache(maxsize=4096)
def _factors(n: int) -> tuple[int, ...] | None:
    """Orders of single constructions whose product is `n`, in the cheapest way, decreasing; None if there is none."""
    if n == 1:
        return ()
    best = (n,) if _is_primitive(n) else None
    for order in (2, *range(4, math.isqrt(n) + 1, 4)):
        rest = _factors(n // order) if n % order == 0 and n > order and _is_primitive(order) else None
        if rest is not None and (best is None or _cost((order, *rest)) < _cost(best)):
            best = (order, *rest)
    return None if best is None else tuple(sorted(best, reverse=True))


def _cost(orders: tuple[int, ...]) -> int:
    """Columns of their products, and a way through memory for each but doublings, which are gathered."""
    return sum(order + _PASS * (order != 2) for order in orders)


def _is_primitive(n: int) -> bool:
    """Whether one construction alone gives order `n`; powers of two are left to doubling."""
    if n & (n - 1) == 0 or n % 4:
        return n == 2
    return n in _BLOCKS or (_prime_power(n - 1) or _prime_power(_second(n))) is not None


def _second(n: int) -> int:
    """The q of Paley's second construction of order `n`, or 0 where q = 1 mod 4 does not hold."""
    return n // 2 - 1 if n % 8 == 4 else 0


def _primitive(n: int) -> torch.Tensor:
    """The Hadamard matrix (n, n), int8, of one construction."""
    if n == 2:
        return torch.tensor([[1, 1], [1, -1]], dtype=torch.int8)
    if n in _BLOCKS:
        return _goethals_seidel(*map(_circulant, _BLOCKS[n]))
    return _paley_one(n - 1) if _prime_power(n - 1) else _paley_two(_second(n))


def _paley_one(q: int) -> torch.Tensor:
    """I + S of order q + 1, where S is antisymmetric and S S^T = q I."""
    S = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    S[0, 1:], S[1:, 0], S[1:, 1:] = 1, -1, _jacobsthal(q)
    return S + torch.eye(q + 1, dtype=torch.int8)


def _paley_two(q: int) -> torch.Tensor:
    """S x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] of order 2 (q + 1), where S is symmetric and S S^T = q I."""
    S = torch.zeros(q + 1, q + 1, dtype=torch.int8)
    S[0, 1:], S[1:, 0], S[1:, 1:] = 1, 1, _jacobsthal(q)
    of_signs, of_zeros = torch.tensor([[[1, 1], [1, -1]], [[1, -1], [-1, -1]]], dtype=torch.int8)
    return torch.kron(S, of_signs) + torch.kron(torch.eye(q + 1, dtype=torch.int8), of_zeros)


def _jacobsthal(q: int) -> torch.Tensor:
    """chi(a - b) for all a, b of the field of `q` elements: 1 at squares, -1 elsewhere, 0 at 0; int8 (q, q)."""
    p, degree = _prime_power(q) or (0, 0)
    digits = torch.arange(q)[:, None] // p ** torch.arange(degree) % p  # a polynomial over Z_p, low coefficients first
    chi = torch.full((q,), -1, dtype=torch.int8)
    chi[_squares(digits, p)], chi[0] = 1, 0
    differences = (digits[:, None] - digits) % p
    return chi[(differences * p ** torch.arange(degree)).sum(-1)]


def _squares(digits: torch.Tensor, p: int) -> torch.Tensor:
    """The numbers of the squares among the polynomials `digits` (q, degree), modulo the first irreducible one.

    A ring of odd order is a field exactly if a^2 = b^2 for a = +-b alone: where u v = 0, ((u + v) / 2)^2 and
    ((u - v) / 2)^2 are equal. So the modulus is irreducible exactly if there are (q + 1) / 2 squares.
    """
    q, degree = digits.shape
    product = torch.zeros(q, 2 * degree - 1, dtype=torch.int64)
    for i in range(degree):
        product[:, i : i + degree] += digits[:, i : i + 1] * digits
    for low in digits:  # x^degree = -low
        reduced = product.clone()
        for i in reversed(range(degree, 2 * degree - 1)):
            reduced[:, i - degree : i] -= reduced[:, i : i + 1] * low
            reduced %= p
        squares = (reduced[:, :degree] % p * p ** torch.arange(degree)).sum(-1).unique()
        if len(squares) == (q + 1) // 2:
            return squares
    raise AssertionError(f"no irreducible polynomial of degree {degree} over {p}")


@lru_cache(maxsize=4096)
def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k for an odd prime p, or None."""
    p = next((d for d in range(2, math.isqrt(q) + 1) if q % d == 0), q) if q > 2 else 2
    degree = round(math.log(q, p)) if p > 2 else 0
    return (p, degree) if p > 2 and p**degree == q else None


def _circulant(row: str) -> torch.Tensor:
    signs = torch.tensor([1 if sign == "+" else -1 for sign in row], dtype=torch.int8)
    places = torch.arange(len(row))
    return signs[(places - places[:, None]) % len(row)]


def _goethals_seidel(A: torch.Tensor, B: torch.Tensor, C: torch.Tensor, D: torch.Tensor) -> torch.Tensor:
    """The array of four circulants (m, m): order 4 m, Hadamard where A A^T + B B^T + C C^T + D D^T = 4 m I."""
    b, c, d = (M.flip(1) for M in (B, C, D))  # times the reversal of columns
    bt, ct, dt = (M.T.flip(1) for M in (B, C, D))
    rows = ((A, b, c, d), (-b, A, dt, -ct), (-c, -dt, A, bt), (-d, ct, -bt, A))
    return torch.cat([torch.cat(row, dim=1) for row in rows])
