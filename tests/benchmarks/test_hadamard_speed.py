"""The fast Hadamard product on CPU, against the dense product and against a clone of the same tensor, in turns.

4,096 rows of float32, two threads. A clone reads and writes every value once; it is the least that any product with a
new result does. Times are the wall's, since the threads wait for each other; ratios are taken within a round, whose
times move together, and given as their median and quartiles. Nothing is asserted about time:
`pytest tests/benchmarks/test_hadamard_speed.py --benchmark-only -s` prints it.
"""

import statistics
import time

import pytest
import torch

from kernels.hadamard import hadamard, hadamard_transform

ROWS = 4096
ROUNDS = 15
SIZES = (256, 512, 1024, 2048, 4096, 8192)
OF_MODELS = (172, 768, 8960, 11008, 14336)  # stories260k, the reference, Llama 2 and 3, one expanded


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_turns(benchmark, contenders, rounds=ROUNDS):  # type: ignore[no-untyped-def]
    """Seconds of each, by round; the fast product's ratio to each of the others goes into the benchmark's record."""
    seconds = {what: [] for what in contenders}

    def turn() -> None:
        for what, run in contenders.items():
            begun = time.perf_counter()
            run()
            seconds[what].append(time.perf_counter() - begun)

    benchmark.pedantic(turn, rounds=rounds, warmup_rounds=1)
    seconds = {what: found[1:] for what, found in seconds.items()}  # without the warmup
    for what in list(contenders)[1:]:
        ratios = [mine / its for mine, its in zip(seconds["fast"], seconds[what], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        benchmark.extra_info[f"fast / {what}"] = f"{middle:.3g} ({low:.3g} to {high:.3g})"
    return seconds


@pytest.mark.parametrize("n", [*SIZES, *OF_MODELS])
def test_against_a_clone(benchmark, n, two_threads, capsys):  # type: ignore[no-untyped-def]
    x = torch.randn(ROWS, n, generator=torch.Generator().manual_seed(0))
    in_turns(benchmark, {"fast": lambda: hadamard_transform(x), "clone": x.clone})
    with capsys.disabled():
        print(f"\n{n}: {benchmark.extra_info['fast / clone']} clones")


@pytest.mark.parametrize("n", [1024, 4096])
def test_against_the_dense_product(benchmark, n, two_threads, capsys):  # type: ignore[no-untyped-def]
    x = torch.randn(ROWS, n, generator=torch.Generator().manual_seed(0))
    H = hadamard(n) / n**0.5
    in_turns(benchmark, {"fast": lambda: hadamard_transform(x), "dense": lambda: x @ H}, rounds=5)
    with capsys.disabled():
        print(f"\n{n}: {benchmark.extra_info['fast / dense']} dense products")
