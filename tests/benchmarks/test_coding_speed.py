"""Coders: against the bare library in turns, rates of all, and whether time and bytes grow as the sizes do.

Data are the codes of a 4-bit and of an 8-bit grid (N(0, 1) at steps of 1/3 and 1/32) and the exponents of bfloat16, as
bytes and as the 32-bit integers that constriction takes. "Bare" is what its user writes with a model at hand:
`encode_reverse(symbols, model)` and `get_compressed()`, or `decode(model, n)`, on 32-bit integers; "modeled" counts and
converts the symbols too, and makes the model. Ours does all that, and the checksum. Times are the processor's, which
other processes disturb less; all runs on one thread. Nothing is asserted about time:
`pytest tests/benchmarks/test_coding_speed.py --benchmark-only` prints it, BITFRONTIER_MIB=256 for sizes up to that.
"""

import math
import os
import statistics
import time
from collections.abc import Callable

import constriction
import numpy as np
import pytest

from suite.coding import Ans, Gzip, Huffman, Lzma, Zstd
from suite.coding.ans import costs, frequencies
from suite.coding.frame import tally

N = 4_000_000
ROUNDS = 15
SIZES_MIB = (1, 4, 16, 64, 256)
LARGEST_MIB = int(os.environ.get("BITFRONTIER_MIB", "16"))


def codes(n: int) -> np.ndarray:
    steps = np.random.default_rng(0).standard_normal(n, dtype=np.float32) * 3 + 8
    return steps.round().clip(0, 15).astype(np.uint8)


def wide_codes(n: int) -> np.ndarray:
    steps = np.random.default_rng(0).standard_normal(n, dtype=np.float32) * 32 + 128
    return steps.round().clip(0, 255).astype(np.uint8)


def exponents(n: int) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal(n, dtype=np.float32) * np.float32(0.02)
    return (values.view(np.uint32) >> 23 & 255).astype(np.uint8)


SOURCES = {"4-bit codes": codes, "8-bit codes": wide_codes, "exponents": exponents}


def in_turns(benchmark, contenders: dict[str, Callable[[], object]]) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Nanoseconds a symbol of each, the median over rounds in which they take turns."""
    seconds: dict[str, list[float]] = {what: [] for what in contenders}

    def turn() -> None:
        for what, run in contenders.items():
            begun = time.process_time()
            run()
            seconds[what].append(time.process_time() - begun)

    benchmark.pedantic(turn, rounds=ROUNDS, warmup_rounds=1)
    first = next(iter(contenders))
    for what in contenders:  # of each round, since a round's times move together
        ratios = [mine / its for mine, its in zip(seconds[first], seconds[what], strict=True)]
        benchmark.extra_info[f"{first} / {what}"] = round(statistics.median(ratios), 3)
    return {what: statistics.median(found) / N * 1e9 for what, found in seconds.items()}


@pytest.mark.parametrize("kind", ["uint8", "int32"])
@pytest.mark.parametrize("source", SOURCES)
def test_ans_against_the_bare_library(benchmark, source: str, kind: str, capsys) -> None:  # type: ignore[no-untyped-def]
    symbols = SOURCES[source](N).astype(kind)
    alphabet, counts = tally(symbols)
    places = alphabet.places(symbols, np.int32)
    coder, model = constriction.stream.stack.AnsCoder, constriction.stream.model.Categorical
    ready = model((frequencies(costs(counts)) - 1).astype(np.float64), perfect=False)

    def bare() -> np.ndarray:
        pushed = coder()
        pushed.encode_reverse(places, ready)
        return pushed.get_compressed()

    def modeled() -> tuple[int, np.ndarray, bytes]:
        lowest = int(symbols.min())
        above = symbols.astype(np.int32) - lowest
        occurs = np.bincount(above)
        pushed = coder()
        pushed.encode_reverse(above, model(occurs / N, perfect=False))
        return lowest, occurs, pushed.get_compressed().tobytes()

    words, stream = bare(), Ans().encode(symbols)
    assert len(stream) <= words.nbytes * 1.0001 + 1000  # the same model
    found = in_turns(benchmark, {
        "ours": lambda: Ans().encode(symbols),
        "bare": bare,
        "modeled": modeled,
        "our decoder": lambda: Ans().decode(stream),
        "bare decoder": lambda: coder(words).decode(ready, N),
    })  # fmt: skip
    encode, decode = found["ours"] / found["bare"], found["our decoder"] / found["bare decoder"]
    both = (found["ours"] + found["our decoder"]) / (found["bare"] + found["bare decoder"])
    benchmark.extra_info.update({"encode": encode, "decode": decode, "both": both})
    with capsys.disabled():
        print(f"\n{source}, {kind}: " + ", ".join(f"{what} {ns:.2f}" for what, ns in found.items()) + " ns a symbol")
        print(f"  ours / bare: encode {encode:.3f}, decode {decode:.3f}, both {both:.3f}; "
              f"ours / modeled {found['ours'] / found['modeled']:.3f}")  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("coder", [Huffman(), Ans(), Gzip(), Zstd(), Lzma()], ids=lambda coder: coder.name)
def test_rates(benchmark, coder: Huffman, source: str, capsys) -> None:  # type: ignore[no-untyped-def]
    n = N if isinstance(coder, (Huffman, Ans)) else 1 << 20
    symbols = SOURCES[source](n)
    begun = time.process_time()
    stream = coder.encode(symbols)
    encoded = time.process_time() - begun
    decoding = math.inf

    def decode() -> None:
        nonlocal decoding
        begun = time.process_time()
        decoded = coder.decode(stream)
        decoding = min(decoding, time.process_time() - begun)
        assert (decoded == symbols).all()

    benchmark.pedantic(decode, rounds=3, warmup_rounds=1)
    rates = {"encode": n / encoded / 1e6, "decode": n / decoding / 1e6}
    benchmark.extra_info.update({**rates, "bits": 8 * len(stream) / n})
    with capsys.disabled():
        print(f"\n{coder.name}, {source}: {8 * len(stream) / n:.4f} bits a symbol, encode {rates['encode']:.1f}, "
              f"decode {rates['decode']:.1f} million symbols a second")  # fmt: skip


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("coder", [Huffman(), Ans()], ids=lambda coder: coder.name)
def test_time_and_bytes_grow_as_the_size(benchmark, coder: Huffman, source: str, capsys) -> None:  # type: ignore[no-untyped-def]
    sizes = [mib for mib in SIZES_MIB if mib <= LARGEST_MIB]
    all_symbols = np.tile(SOURCES[source](1 << 20), LARGEST_MIB)  # to coders of order 0 as good as new ones
    rows = []
    np.empty(2 * all_symbols.size, dtype=np.int32).fill(1)  # virtual machines are slow to give memory a first time

    def all_sizes() -> None:
        for mib in sizes:
            symbols = all_symbols[: mib << 20]
            at = time.process_time()
            stream = coder.encode(symbols)
            encoded = time.process_time() - at
            decoded = coder.decode(stream)
            rows.append((mib, encoded, time.process_time() - at - encoded, 8 * len(stream) / symbols.size))
            assert (decoded == symbols).all()

    benchmark.pedantic(all_sizes, rounds=1)
    with capsys.disabled():
        print(f"\n{coder.name}, {source}, one byte a symbol:")
        for mib, encoded, decoded, bits in rows:
            mega = (mib << 20) / 1e6
            benchmark.extra_info[f"{mib} MiB"] = [encoded, decoded, bits]
            print(f"  {mib:4d} MiB: encode {encoded:.3f} s ({mega / encoded:.0f} MB/s), "
                  f"decode {decoded:.3f} s ({mega / decoded:.0f} MB/s), {bits:.5f} bits")  # fmt: skip
