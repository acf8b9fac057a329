"""E8P's encoder and QuIP# of whole matrices, in weights per second of one thread.

The encoder is timed against a look at the 1,366 points that are left once signs are folded into a pattern, for both
cosets, by a matrix product: the release's way, on the same values in the same round. QuIP# takes square matrices of
four sizes; the exponent of the time in the number of weights is fitted, as error feedback takes out * in^2 operations
where the encoder takes out * in. Seconds are the processor's, which on an idle machine are the clock's. Nothing is
asserted about time:
`pytest tests/benchmarks/test_lattice_speed.py --benchmark-only -s` prints it.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from suite.grids import E8P
from suite.grids.lattice_codebooks import e8p_points
from suite.quantize import quantize_matrix

ROUNDS = 7
SIZES = (128, 256, 512, 1024)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seconds(call: Callable[[], object]) -> float:
    begun = time.process_time()
    call()
    return time.process_time() - begun


def folded_points() -> torch.Tensor:
    """Points of D8 + 1/2 of which one value at most but the last is negative, and that one -1/2: (1366, 8)."""
    codes = torch.arange(1 << 16)
    points = e8p_points()[(codes.bitwise_and(255).apply_(lambda byte: byte.bit_count() % 2) == 1)] + 0.25
    few = ((points[:, :7] < 0).sum(1) <= 1) & (points[:, :7].amin(1) >= -0.5)
    return points[few]


def look_at_folded(x: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """The squared distance (n,) of each x (n, 8) to E8P: signs folded into the last value, then all that is left."""
    least = []
    for shift in (0.25, -0.25):
        y = x - shift
        folded = y.abs()
        folded[:, 7] *= 1 - 2.0 * ((y < 0).sum(1) % 2)
        score = (2 * folded @ points.T - points.square().sum(1)).amax(1)
        least.append(y.square().sum(1) - score)
    return torch.minimum(*least)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_encoding(benchmark, bits: int, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    W = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    fitted, points = E8P(bits=bits, tries=1 if bits == 2 else 4).fit(W), folded_points()
    few = (W[:64] / fitted.scale).reshape(-1, 8)
    assert len(points) == 1366
    if bits == 2:  # both find the same distances
        mine = ((few - fitted.snap(W[:64])[1].reshape(-1, 8) / fitted.scale) ** 2).sum(1)
        assert torch.allclose(mine, look_at_folded(few, points), rtol=0, atol=1e-4)
    ours, theirs = [], []
    fitted.nearest(W[:8])  # compiles
    for _ in range(ROUNDS):
        ours.append(W.numel() / seconds(lambda: fitted.nearest(W)))
        theirs.append(few.numel() / seconds(lambda: look_at_folded(few, points)))
    benchmark.pedantic(fitted.nearest, (W,), rounds=3)
    with capsys.disabled():
        print(f"\n{bits} bits: {statistics.median(ours) / 1e6:.2f} million weights/s, best {max(ours) / 1e6:.2f}"
              f"; a matrix product over 1,366 points twice: {statistics.median(theirs) / 1e6:.2f}")  # fmt: skip


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_quip_sharp(benchmark, bits: int, capsys: pytest.CaptureFixture) -> None:  # type: ignore[no-untyped-def]
    times = []
    for n in SIZES:
        generator = torch.Generator().manual_seed(n)
        W = torch.randn(n, n, generator=generator)
        X = torch.randn(2 * n, n, generator=generator, dtype=torch.float64)
        H = X.T @ X / len(X)

        def once(W: torch.Tensor = W, H: torch.Tensor = H) -> object:
            return quantize_matrix(W, method="quip-sharp", bits=bits, H=H)

        once()
        times.append(min(seconds(once) for _ in range(2)))
    benchmark.pedantic(once, rounds=1)
    slope = np.polyfit([2 * math.log(n) for n in SIZES], np.log(times), 1)[0]
    with capsys.disabled():
        timed = ", ".join(f"{n}: {t:.2f} s" for n, t in zip(SIZES, times, strict=True))
        print(f"\nQuIP# at {bits} bits, square matrices of {timed}; time as weights to the power {slope:.2f}")
