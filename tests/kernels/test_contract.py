import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import triton

from kernels import machine_code
from kernels.check import excess_of, excess_of_kernel, outputs
from kernels.compiler import ARCHITECTURES, SHARED_LIMIT
from kernels.kernel import Kernel, Size
from kernels.table import KERNELS, kernel_named

BY_NAME = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)


def test_names_are_unique_and_found() -> None:
    assert max(Counter(kernel.name for kernel in KERNELS).values()) == 1
    assert all(kernel_named(kernel.name) is kernel for kernel in KERNELS)
    with pytest.raises(ValueError, match=r"no kernel 'w5a16'; there are w4a16-gemv, "):
        kernel_named("w5a16")


@BY_NAME
def test_inputs_depend_on_the_seed_alone(kernel: Kernel) -> None:
    state = torch.get_rng_state()
    first, again, other = (kernel.inputs(kernel.check[0], seed, "cpu") for seed in (3, 3, 4))
    assert torch.equal(state, torch.get_rng_state())
    wanted = outputs(kernel.reference(*first))
    assert all(map(torch.equal, wanted, outputs(kernel.reference(*again))))
    assert not any(map(torch.equal, wanted, outputs(kernel.reference(*other))))


@BY_NAME
def test_a_plan_runs_again_leaves_its_inputs_alone_and_a_wrong_weight_is_seen(kernel: Kernel) -> None:
    """The check can fail: inputs of another seed are far outside what it allows."""
    size = kernel.check[1]
    inputs, others = kernel.inputs(size, 0, "cpu"), kernel.inputs(size, 1, "cpu")
    before, launch = outputs(kernel.reference(*inputs)), kernel.plan(*inputs)
    first = [output.clone() for output in outputs(launch.run())]
    assert all(map(torch.equal, first, outputs(launch.run())))
    assert all(map(torch.equal, before, outputs(kernel.reference(*inputs))))
    assert excess_of_kernel(kernel, kernel.kernel(*inputs), kernel.reference(*others)) > 50


def test_what_is_never_written_is_seen() -> None:
    assert excess_of(torch.tensor([1.0, float("nan")]), torch.ones(2), 1e-4) == float("inf")


def _guarded(*names: str) -> subprocess.CompletedProcess[str]:
    program = Path(__file__).with_name("guard_pages.py")
    return subprocess.run([sys.executable, str(program), *names], capture_output=True, text=True)


def test_nothing_is_read_or_written_out_of_bounds() -> None:
    run = _guarded()
    assert run.returncode == 0 and run.stdout.endswith("done\n"), (run.stdout.splitlines()[-1:], run.stderr[-2000:])


def test_an_access_out_of_bounds_would_be_seen() -> None:
    assert _guarded("stray").returncode == -signal.SIGSEGV


def _complaints(row: dict) -> list[str]:
    """What is wrong with the machine code of a row of the table."""
    rules = {
        "spills to local memory": row["local_accesses"] == 0 and row["stack_bytes"] == 0,
        "too much shared memory": row["shared_bytes"] <= SHARED_LIMIT,
        "converts integers in the loop": row["loop_conversions"] == 0,
        "weights not loaded 16 bytes at a time": row["loop_wide_loads"] * 16 >= row["loop_bytes_per_thread"] > 0,
        "no matrix instructions": row["loop_matrix"] > 0 or not _multiplies(row),
    }
    return [f"{row['kernel']} {row['size']} {row['dtype']} sm_{row['architecture']}: {rule}"
            for rule, kept in rules.items() if not kept]  # fmt: skip


def _multiplies(row: dict) -> bool:
    """Whether the row is of a product with rows enough for a matrix instruction."""
    return isinstance(kernel_named(row["kernel"]).bench[0], Size) and int(row["size"].split(" ")[0]) >= 16


def _planner(kernel: Kernel) -> object:
    return getattr(kernel.plan, "func", kernel.plan)


def _is_kept(rows: list[dict]) -> None:
    """The kept table, if it was made with the same Triton, has these very rows."""
    kept = machine_code.kept()
    if kept[0]["triton"] != triton.__version__:
        pytest.skip(f"the kept table is of another Triton than {triton.__version__}")
    changed = [fresh for row in rows if (fresh := {name: str(value) for name, value in row.items()}) not in kept]
    assert not changed, "machine code changed: look, then `bitfrontier kernels --compile --keep`"


def test_machine_code_of_one_kernel_of_each_kind() -> None:
    """Compiled at one size for chips that are not here."""
    rows = machine_code.table(brief=True)
    assert not [complaint for row in rows for complaint in _complaints(row)]
    compiled = {(_planner(kernel_named(row["kernel"])), row["architecture"]) for row in rows}
    assert compiled == {(_planner(kernel), architecture) for kernel in KERNELS for architecture in ARCHITECTURES}
    _is_kept(rows)


@pytest.mark.slow
def test_machine_code_of_every_launch() -> None:
    """Compiled at all sizes, for all types of activations."""
    rows = machine_code.table()
    assert not [complaint for row in rows for complaint in _complaints(row)]
    _is_kept(rows)
    assert len(rows) == len(machine_code.kept())


def test_kept_machine_code_is_without_blemish() -> None:
    numbers = {"local_accesses", "stack_bytes", "shared_bytes", "loop_conversions", "loop_wide_loads", "loop_matrix"}
    for row in machine_code.kept():
        exact = {name: int(value) if name in numbers else value for name, value in row.items()}
        assert not _complaints(exact | {"loop_bytes_per_thread": float(row["loop_bytes_per_thread"])})
    assert {row["kernel"] for row in machine_code.kept()} == {kernel.name for kernel in KERNELS}
