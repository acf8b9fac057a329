import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import triton

from kernels import machine_code
from kernels.check import excess_of
from kernels.compiler import SHARED_LIMIT
from kernels.kernel import Kernel
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
    assert torch.equal(kernel.reference(*first), kernel.reference(*again))
    assert not torch.equal(kernel.reference(*first), kernel.reference(*other))
    assert kernel.reference(*first).dtype == torch.float64


@BY_NAME
def test_inputs_are_left_as_they_were(kernel: Kernel) -> None:
    inputs = kernel.inputs(kernel.check[1], 0, "cpu")
    before = kernel.reference(*inputs)
    kernel.kernel(*inputs)
    assert torch.equal(before, kernel.reference(*inputs))


@BY_NAME
def test_a_plan_runs_again(kernel: Kernel) -> None:
    launch = kernel.plan(*kernel.inputs(kernel.check[-1], 0, "cpu"))
    first = launch.run().clone()
    assert torch.equal(first, launch.run())


@BY_NAME
def test_a_wrong_weight_is_seen(kernel: Kernel) -> None:
    """The check can fail: activations of another seed are far outside what it allows."""
    size = kernel.check[-1]
    inputs, others = kernel.inputs(size, 0, "cpu"), kernel.inputs(size, 1, "cpu")
    assert excess_of(kernel.kernel(*inputs), kernel.reference(*others), kernel.tolerance) > 50


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
        "no matrix instructions": row["loop_matrix"] > 0 or int(re.match(r"\d+", row["size"])[0]) < 16,
    }
    return [f"{row['kernel']} {row['size']} {row['dtype']} sm_{row['architecture']}: {rule}"
            for rule, kept in rules.items() if not kept]  # fmt: skip


def test_machine_code() -> None:
    """Compiled for chips that are not here; the kept table, made with the same Triton, says the same."""
    rows = machine_code.table()
    assert not [complaint for row in rows for complaint in _complaints(row)]
    assert {row["kernel"] for row in rows} == {kernel.name for kernel in KERNELS}
    if machine_code.kept()[0]["triton"] != triton.__version__:
        pytest.skip(f"the kept table is of another Triton than {triton.__version__}")
    fresh = [{name: str(value) for name, value in row.items()} for row in rows]
    assert fresh == machine_code.kept(), "machine code changed: look, then `bitfrontier kernels --compile --keep`"
