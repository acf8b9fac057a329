"""What a cell costs beyond quantizing and evaluating: reading blocks, loading statistics, sizes, hashes, the store.

Measured on the five-block stories260K checkpoint, where it is: every call that quantizes or evaluates is timed from
outside, and the rest of the cell, including its transaction, is the overhead.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suite import blockwise, engine, measure
from suite.cells import picks
from suite.methods import method_named
from suite.models.checkpoint import Checkpoint
from suite.store import Store

STORIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "stories260k"


def test_overhead_of_a_cell(benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    if not STORIES.is_dir():
        pytest.skip("the stories260K checkpoint is not beside this checkout")
    spent = [0.0]

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            begun = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                spent[0] += time.perf_counter() - begun

        return call

    for module, name in ((measure, "quantize_block"), (measure, "compare"), (measure, "summarize")):
        monkeypatch.setattr(module, name, timed(getattr(module, name)))
    monkeypatch.setattr(Checkpoint, "embed", timed(Checkpoint.embed))
    inner = Checkpoint.run
    monkeypatch.setattr(blockwise, "gather", lambda *a: pytest.fail("RTN asks for no quantized inputs"))
    monkeypatch.setattr(Checkpoint, "run", timed(inner))
    setting = engine.Setting(model=str(STORIES), calibration=str(STORIES / "calibration_tokens.npy"),
                             evaluation=str(STORIES / "evaluation_tokens.npy"), calibration_tokens=1 << 12,
                             evaluation_tokens=1 << 13)  # fmt: skip
    pick = picks([method_named("rtn")], [4])[0]
    engine.run_cell(setting, 0, pick)  # statistics and the unquantized model's states are there from now on
    overheads = []

    def cell() -> None:
        spent[0], begun = 0.0, time.perf_counter()
        outcome = engine.run_cell(setting, 0, pick)
        with Store(tmp_path / "store.db") as store:
            store.put(outcome.record, outcome.layers)
        overheads.append(time.perf_counter() - begun - spent[0])

    benchmark.pedantic(cell, rounds=10, warmup_rounds=1)
    benchmark.extra_info["overhead, ms"] = sorted(round(1000 * seconds, 1) for seconds in overheads)
    print(f"\noverhead of a cell, ms: {benchmark.extra_info['overhead, ms']}")
