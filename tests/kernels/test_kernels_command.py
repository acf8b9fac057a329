import json

import pytest
import torch
from click.testing import CliRunner, Result

from kernels.command import kernels
from kernels.table import KERNELS

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def _run(*options: str) -> Result:
    return CliRunner().invoke(kernels, options)


def test_lists_every_kernel() -> None:
    rows = json.loads(_run("--json").stdout)["kernels"]
    assert [row["kernel"] for row in rows] == [kernel.name for kernel in KERNELS]


def test_checks_the_kernels_asked_for() -> None:
    rows = json.loads(_run("--check", "--only", "w2a16-gemv, w4a16-gemv", "--json").stdout)["check"]
    assert {row["kernel"] for row in rows} == {"w2a16-gemv", "w4a16-gemv"}
    assert all(row["passed"] and row["excess"] < 1 for row in rows)


def test_prints_a_table() -> None:
    said = _run("--check", "--only", "w4a16-gemv").stdout
    assert "w4a16-gemv" in said and "bfloat16" in said


def test_a_wrong_kernel_ends_with_status_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kernels.check.excess_of", lambda *_: 2.0)
    assert _run("--check", "--only", "w4a16-gemv", "--json").exit_code == 1


def test_compiles_without_a_gpu() -> None:
    rows = json.loads(_run("--compile", "--only", "w4a16-gemv", "--json").stdout)["compile"]
    assert {row["architecture"] for row in rows} == {90, 100}
    assert {row["dtype"] for row in rows} == {"float16", "bfloat16"}


@NO_GPU
def test_an_interpreter_is_never_timed() -> None:
    run = _run("--bench")
    assert run.exit_code == 1 and "--bench needs a CUDA device" in run.output  # click's own status; the program's is 2


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no kernel 'w5'"):
        CliRunner().invoke(kernels, ["--only", "w5"], catch_exceptions=False)
    assert "give --compile and no --only" in _run("--compile", "--keep", "--only", "w4a16-gemv").output
