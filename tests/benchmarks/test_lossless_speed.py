"""Lossless coding of BF16 weights: bits a weight, and how many megabytes of BF16 are coded and decoded in a second.

The peer, ZipNN (C, as many threads as it likes), takes turns with ours (NumPy, one thread) in one process, on the same
buffers. Sizes above 64 MB only with LOSSLESS_MEGABYTES=256 in the environment. Nothing is asserted about time;
`pytest tests/benchmarks/test_lossless_speed.py --benchmark-only` prints it.
"""

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch

from suite.coding import Exponents
from suite.models.checkpoint import load_model

try:
    from zipnn import ZipNN
except ImportError:  # ours alone
    ZipNN = None

MOST = int(os.environ.get("LOSSLESS_MEGABYTES", "64"))
SIZES = [megabytes for megabytes in (1, 4, 16, 64, 128, 256) if megabytes <= MOST]


def patterns(values: torch.Tensor) -> np.ndarray:
    return values.to(torch.bfloat16).contiguous().view(torch.int16).numpy().reshape(-1).view(np.uint16)


def gaussian(megabytes: int) -> np.ndarray:
    n = megabytes * 500_000
    return patterns(torch.randn(n, generator=torch.Generator().manual_seed(0)) * 0.02)


def reference() -> np.ndarray:
    stored = (values for _, values in load_model("reference").stored("") if values.ndim == 2)
    return np.concatenate([patterns(values) for values in stored])


def seconds(work: Callable[[], object]) -> tuple[float, object]:
    begun = time.perf_counter()
    found = work()
    return time.perf_counter() - begun, found


def measured(benchmark, capsys, symbols: np.ndarray, name: str) -> None:  # type: ignore[no-untyped-def]
    coder, plain = Exponents(), symbols.tobytes()
    peer = ZipNN(bytearray_dtype="bfloat16") if ZipNN else None
    taken: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}

    def take_turns() -> None:
        spent, stream = seconds(lambda: coder.encode(symbols))
        taken.setdefault("encode", []).append(spent)
        spent, back = seconds(lambda: coder.decode(stream))
        taken.setdefault("decode", []).append(spent)
        sizes["ours"] = len(stream)
        assert np.array_equal(back, symbols)
        if peer is not None:
            buffer = bytearray(plain)  # which it changes
            spent, stream = seconds(lambda: peer.compress(buffer))
            taken.setdefault("zipnn encode", []).append(spent)
            spent, back = seconds(lambda: peer.decompress(stream))
            taken.setdefault("zipnn decode", []).append(spent)
            sizes["zipnn"] = len(stream)
            assert bytes(back) == plain

    benchmark.pedantic(take_turns, rounds=3 if symbols.nbytes > 1 << 25 else 5, warmup_rounds=1)
    shown = [f"{who} {8 * size / symbols.size:.4f} bits" for who, size in sizes.items()]
    for what, times in taken.items():
        rates = sorted(symbols.nbytes / 1e6 / spent for spent in times[1:])
        benchmark.extra_info[f"{what}, MB/s"] = round(statistics.median(rates), 1)
        shown.append(f"{what} {statistics.median(rates):.0f} ({rates[0]:.0f}-{rates[-1]:.0f}) MB/s")
    with capsys.disabled():
        print(f"\n{name}: {'; '.join(shown)}")


@pytest.mark.parametrize("megabytes", SIZES)
def test_gaussian_weights(benchmark, megabytes: int, capsys) -> None:  # type: ignore[no-untyped-def]
    measured(benchmark, capsys, gaussian(megabytes), f"N(0, 0.02^2), {megabytes} MB")


def test_the_reference_model(benchmark, capsys) -> None:  # type: ignore[no-untyped-def]
    symbols = reference()
    measured(benchmark, capsys, symbols, f"the reference model's matrices, {symbols.nbytes / 1e6:.1f} MB")
