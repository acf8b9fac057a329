"""Viterbi's search in weights a second and pass, what it costs over four sizes, and the ratio to the release.

`BITFRONTIER_QTIP` names a checkout of Cornell-RelaxML/qtip (commit e90c6688 was measured), whose bitshift.py is run as
it is, but that `torch.compile` does nothing; the two take turns in one process. Nothing is asserted about time:
`pytest tests/benchmarks --benchmark-only` prints it.
"""

import importlib.util
import os
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from suite.grids import Trellis
from suite.grids.viterbi import tail_biting, viterbi
from suite.quantize import quantize_matrix

ROUNDS = 5
SIZES = (256, 512, 1024, 2048)  # rows of matrices of 256 columns
CASES = [("1mad", 12, 2), ("1mad", 16, 2), ("1mad", 16, 4), ("3inst", 16, 2), ("hyb", 16, 2), ("hyb", 16, 4)]


@pytest.fixture(autouse=True, params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def problem(code: str, L: int, bits: int, sequences: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Gaussian sequences of 256 as steps, a table and k."""
    V = 2 if code == "hyb" else 1
    table = Trellis(code=code, L=L, V=V).fit(torch.ones(1, 1)).values  # type: ignore[arg-type]
    x = torch.randn(sequences, 256 // V, V, generator=torch.Generator().manual_seed(0))
    return x, table, bits * V


@pytest.mark.parametrize(("code", "L", "bits"), CASES, ids=str)
def test_viterbi_weights_per_second(benchmark, capsys, code: str, L: int, bits: int, threads: int) -> None:  # type: ignore[no-untyped-def]
    x, table, k = problem(code, L, bits, 256 if L == 12 else 32)
    states, _ = benchmark.pedantic(viterbi, (x, table, k), rounds=ROUNDS, warmup_rounds=1)
    assert states.shape == x.shape[:2]
    if benchmark.stats is None:  # not asked to measure
        return
    speeds = sorted(round(x.numel() / seconds) for seconds in benchmark.stats.stats.data)
    benchmark.extra_info["weights per second and pass"] = speeds
    with capsys.disabled():
        print(f"\n{code}, L = {L}, {bits} bits, {threads} threads: {speeds} weights/s and pass")


def test_cost_is_linear_in_the_weights(benchmark, capsys, threads: int) -> None:  # type: ignore[no-untyped-def]
    """Seconds of whole matrices over four numbers of rows, and the exponent that fits them."""
    H, seconds = torch.eye(256, dtype=torch.float64), dict.fromkeys(SIZES, float("inf"))

    def all_sizes() -> None:
        for rows in SIZES:
            W = torch.randn(rows, 256, generator=torch.Generator().manual_seed(rows))
            begun = time.perf_counter()
            quantize_matrix(W, method="qtip", bits=2, H=H, L=12)
            seconds[rows] = min(seconds[rows], time.perf_counter() - begun)

    benchmark.pedantic(all_sizes, rounds=ROUNDS, warmup_rounds=1)
    exponent = float(np.polyfit(np.log(SIZES), np.log([seconds[rows] for rows in SIZES]), 1)[0])
    benchmark.extra_info["seconds"], benchmark.extra_info["exponent"] = seconds, round(exponent, 3)
    assert len(seconds) == 4
    with capsys.disabled():
        print(f"\nL = 12, {threads} threads, rows x 256: {seconds}, seconds grow by the power {exponent:.3f}")


@pytest.fixture
def release(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    place = os.environ.get("BITFRONTIER_QTIP")
    if not place:
        pytest.skip("BITFRONTIER_QTIP does not name a checkout of Cornell-RelaxML/qtip")
    monkeypatch.setattr(torch, "compile", lambda function: function)
    parts: dict[str, dict[str, object]] = {
        "lib": {}, "lib.codebook": {"kdict": {}}, "lib.utils": {}, "lib.utils.kernel_check": {"has_kernel": None},
        "lib.utils.kernel_decompress": {"decode_compressed": None},
        "lib.utils.matmul_had": {"matmul_hadU_cuda": None, "matmul_hadUt_cuda": None},
    }  # fmt: skip
    for name, members in parts.items():  # what it imports and the search does not use
        module = types.ModuleType(name)
        module.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("bitshift", Path(place) / "lib" / "codebook" / "bitshift.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("L", "sequences"), [(12, 128), (16, 8)])
def test_both_passes_against_the_release(  # type: ignore[no-untyped-def]
    benchmark, capsys, L: int, sequences: int, release: types.ModuleType, threads: int
) -> None:
    x, table, k = problem("1mad", L, 2, sequences)
    theirs = release.bitshift_codebook(L=L, K=2, V=1, tlut_bits=0, decode_mode="1mad")
    ratios, found = [], {}

    def timed(name: str, search: Callable[[], torch.Tensor]) -> float:
        begun = time.perf_counter()
        found[name] = search()
        return time.perf_counter() - begun

    def take_turns() -> None:
        ours = timed("ours", lambda: tail_biting(x, table, k))
        ratios.append(timed("release", lambda: theirs.quantize(x[:, :, 0])[1]) / ours)

    benchmark.pedantic(take_turns, rounds=ROUNDS, warmup_rounds=1)
    errors = {name: float((table[states.long()] - x).square().mean()) for name, states in found.items()}
    assert errors["ours"] <= 1.01 * errors["release"]
    benchmark.extra_info["times as fast"] = sorted(round(ratio, 1) for ratio in ratios)
    with capsys.disabled():
        print(f"\nL = {L}, {threads} threads: release / ours {benchmark.extra_info['times as fast']}, "
              f"median {statistics.median(ratios):.1f}")  # fmt: skip
