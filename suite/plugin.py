"""The suite under pytest: `pytest suite --models reference --methods rtn,gptq --bits 4` runs the cells, one test each.

The same engine as the command line: cells with a finished record pass at once, new ones are measured and stored. Under
pytest-xdist (`-n 2`) the workers write to one store. Imports nothing heavy, since every pytest run here loads it.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from suite.cells import Pick


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the contract."""
    group = parser.getgroup("bitfrontier", "cells of the benchmark suite")
    group.addoption("--models", default="reference", help="models, separated by commas")
    group.addoption("--methods", default=None, help="methods, separated by commas; all by default")
    group.addoption("--bits", default=None, help="widths, separated by commas; the tier's by default")
    group.addoption("--tier", default="smoke", choices=["smoke", "default", "full"])
    group.addoption("--store", default="bitfrontier.db", help="the result store")
    group.addoption(
        "--device", default="cpu", choices=["cpu", "cuda"], help="cuda: from packed weights, by our kernels"
    )
    group.addoption("--seed", default=None, type=int)


def pytest_configure(config: pytest.Config) -> None:
    """Refuse, in one line, a GPU that is not there."""
    if config.getoption("--device") != "cpu":
        from suite.runtime.model import device_named

        try:
            device_named(config.getoption("--device"))
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for every cell that the options ask for."""
    if "bitfrontier_cell" not in metafunc.fixturenames:
        return
    from suite.cells import TIERS, picks
    from suite.engine import Setting
    from suite.methods import METHODS, method_named

    option = metafunc.config.getoption
    device = option("--device")
    product = None if device == "cpu" else "kernel"
    tier = TIERS[option("--tier")]
    try:
        names = option("--methods")
        untrained = [method for method in METHODS if method.needs != "training"]
        chosen = untrained if names is None else [method_named(name) for name in names.split(",")]
        bits = tier.bits if option("--bits") is None else [int(part) for part in option("--bits").split(",")]
        wanted = picks(chosen, bits, strict=names is not None and option("--bits") is not None)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from error
    seeds = tier.seeds if option("--seed") is None else (option("--seed"),)
    cells: list[tuple[Setting, int, Pick]] = []
    for model in option("--models").split(","):
        setting = Setting(model=model, calibration_tokens=tier.calibration_tokens,
                          evaluation_tokens=tier.evaluation_tokens, device=device, product=product,
                          command="pytest suite")  # fmt: skip
        cells += [(setting, seed, pick) for seed in seeds for pick in wanted]
    ids = [f"{s.model}-{p.method}-{p.bits}bit-seed{seed}" for s, seed, p in cells]
    metafunc.parametrize("bitfrontier_cell", cells, ids=ids)


@pytest.fixture
def bitfrontier_record(bitfrontier_cell: Any, request: pytest.FixtureRequest) -> Any:
    """The record of the cell: from the store if it is finished there, else measured now and stored."""
    from suite.engine import Plan, execute, plan

    setting, seed, pick = bitfrontier_cell
    store = Path(request.config.getoption("--store"))
    planned: Plan = plan(setting, [pick], (seed,), store)
    return execute(planned, store, jobs=1)[0]
