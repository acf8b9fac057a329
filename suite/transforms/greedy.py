"""DuQuant's greedy rotation: aim an even row of an orthogonal block at the largest outlier, again and again.

Lin, Xu, Wu, Cui, Zhang, Mou, Song, Sun, Wei 2024, "DuQuant: Distributing Outliers via Dual Transformation Makes
Stronger Quantized LLMs", arXiv:2406.01721, section 3.2. One step is E_d R Q E_d: R (B, B) is orthogonal with a first
row of equal entries, Q = diag(1, Q') randomizes all columns of R but the first, and E_d exchanges channels 0 and d,
where d holds the largest value. All blocks of a row share the matrix. Steps multiply up, and the prefix that leaves
the smallest peak, max - min as in the release, is kept: no step at all if none lowers it.

R is Helmert's matrix with its first and last rows and columns exchanged, which is what the release multiplies up from
plane rotations. `exchange="release"` follows the release where it leaves the paper: it draws Q' once per search
instead of at every step, and takes for d the *row* of the largest value, modulo B, instead of its column.
"""

from collections.abc import Iterator
from functools import lru_cache
from itertools import count, islice
from typing import Literal

import torch

Exchange = Literal["column", "release"]
EXCHANGES: tuple[str, ...] = Exchange.__args__  # type: ignore[attr-defined]


def random_orthogonal(n: int, generator: torch.Generator) -> torch.Tensor:
    """A Haar random orthogonal matrix (n, n), float64: QR of a Gaussian one, with the signs of R's diagonal put in Q.

    Mezzadri 2007, "How to generate random matrices from the classical compact groups", arXiv:math-ph/0609050, for the
    signs, without which Q is not uniform. Gaussian numbers are drawn in float32, four times as fast; Q is orthogonal to
    the rounding of float64 all the same.
    """
    Q, R = torch.linalg.qr(torch.randn(n, n, generator=generator).double())
    return Q * torch.where(R.diagonal() < 0, -1.0, 1.0)


def even_row(block: int) -> torch.Tensor:
    """An orthogonal matrix (block, block), float64, whose first row is 1 / sqrt(block) throughout."""
    i = torch.arange(block, dtype=torch.float64)[:, None]
    j = torch.arange(block)
    R = torch.where(j <= i, ((i + 1) * (i + 2)) ** -0.5, 0.0)  # Helmert's contrasts, each against the one that follows
    R = torch.where(j == i + 1, -(((i + 1) / (i + 2)) ** 0.5), R)
    R[-1] = block**-0.5
    return swapped(R, block - 1)


def swapped(R: torch.Tensor, d: int) -> torch.Tensor:
    """E_d R E_d: rows 0 and d of `R` (block, block) exchanged, and so the columns."""
    order = torch.arange(len(R))
    order[0], order[d] = d, 0
    return R[order][:, order]


def draws(block: int, seed: int, exchange: str) -> Iterator[torch.Tensor]:
    """R Q (block, block), float64, of one step after the other, which follow from the seed alone."""
    done, more = _drawn(block, seed, exchange)
    for i in count():
        if i == len(done):
            done.append(next(more))
        yield done[i]


@lru_cache(maxsize=1)  # 32 MiB at the published sizes: the map that is restored next is the one just searched for
def _drawn(block: int, seed: int, exchange: str) -> tuple[list[torch.Tensor], Iterator[torch.Tensor]]:
    return [], _drawing(block, torch.Generator().manual_seed(seed), exchange)


def _drawing(block: int, generator: torch.Generator, exchange: str) -> Iterator[torch.Tensor]:
    R = even_row(block)
    while True:
        drawn = torch.cat([R[:, :1], R[:, 1:] @ random_orthogonal(block - 1, generator)], dim=1)
        yield drawn
        while exchange == "release":
            yield drawn


def rotation(block: int, seed: int, exchanges: tuple[int, ...], exchange: str) -> torch.Tensor:
    """The product (block, block), float64, of the steps that exchange channel 0 with each of `exchanges` in turn."""
    R = torch.eye(block, dtype=torch.float64)
    for d, drawn in zip(exchanges, draws(block, seed, exchange), strict=False):
        R = R @ swapped(drawn, d)
    return R


def search(X: torch.Tensor, block: int, steps: int, seed: int, exchange: str) -> tuple[int, ...]:
    """The channels to exchange, of the prefix of `steps` greedy steps with the smallest peak of `X` (n, in).

    `block` divides `in`. Where the largest values of both signs tie it is the negative one's channel, as in the
    release, and the first of channels that tie; of prefixes that tie the shortest is kept.
    """
    x, exchanges = X.reshape(-1, block), list[int]()
    along = 1 if exchange == "release" else 0
    low, high = x.amin(along), x.amax(along)  # of every channel, or of every row
    peaks = [float(high.max() - low.min())]
    for drawn in islice(draws(block, seed, exchange), steps if block > 1 else 0):
        place = high.argmax() if high.max() > -low.min() else low.argmin()
        exchanges.append(int(place) % block)
        x = x @ swapped(drawn, exchanges[-1]).to(x)
        low, high = x.amin(along), x.amax(along)
        peaks.append(float(high.max() - low.min()))
    return tuple(exchanges[: peaks.index(min(peaks))])
