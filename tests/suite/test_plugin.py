"""`pytest suite` runs the benchmark's cells, one test each, on the engine and the store of the command line."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from suite.plugin import pytest_generate_tests
from suite.store import VOLATILE, Store

ROOT = Path(__file__).parents[2]


def cells(llama, store, *arguments):
    """Run `pytest suite` on the small model: its exit status, each cell's outcome by id, and the output."""
    command = [sys.executable, "-m", "pytest", "suite", "-v", "-rs", "-p", "no:cacheprovider", "--models", str(llama),
               "--store", str(store), *arguments]  # fmt: skip
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    plain = re.findall(r"test_cell\[\S*-(\S+-\d+bit-seed\d+)\] (PASSED|FAILED|SKIPPED|ERROR)", ended.stdout)
    xdist = re.findall(r"(PASSED|FAILED|SKIPPED|ERROR) \S*test_cell\[\S*-(\S+-\d+bit-seed\d+)\]", ended.stdout)
    outcomes = dict(plain) | {name: outcome for outcome, name in xdist}
    return ended.returncode, outcomes, ended.stdout + ended.stderr


def stable(store):
    drop = {name: None for name in VOLATILE} | {"started": ""}
    with Store(store, create=False) as opened:
        return [replace(record, **drop) for record in opened.records()], [r.started for r in opened.records()]


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["one process", "two workers"])
def test_cells_are_tests_and_the_second_time_they_come_from_the_store(workers, llama, tmp_path):
    choice = ["--methods", "rtn,hqq", "--bits", "1,4"]
    status, outcomes, output = cells(llama, tmp_path / "s.db", *choice, *workers)
    assert status == 0, output
    assert outcomes == {
        f"{method}-{bits}bit-seed0": "SKIPPED" if bits == 1 else "PASSED"
        for method in ("rtn", "hqq")
        for bits in (1, 4)
    }
    assert "1-bit integers need half-integer levels" in output  # a skip says why
    first, started = stable(tmp_path / "s.db")
    assert len(first) == 4 and {record.command for record in first} == {"pytest suite"}
    if not workers:
        status, again, _ = cells(llama, tmp_path / "s.db", *choice)
        assert (status, again) == (0, outcomes)
        assert stable(tmp_path / "s.db") == (first, started)  # not one of them ran again


@pytest.mark.parametrize(
    "choice, message",
    [
        (["--methods", "gtpq"], "unknown method 'gtpq': did you mean gptq?"),
        (["--bits", "17"], "bits 17: rtn takes 1 to 8"),
    ],
)
def test_options_that_make_no_sense_are_a_usage_error(choice, message, llama, tmp_path):
    status, outcomes, output = cells(llama, tmp_path / "s.db", *choice)
    assert status not in (0, 1) and not outcomes and message in output
    assert not (tmp_path / "s.db").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing_is_a_usage_error(llama, tmp_path):
    status, outcomes, output = cells(llama, tmp_path / "s.db", "--methods", "rtn", "--bits", "4", "--device", "cuda")
    assert status not in (0, 1) and not outcomes and "ERROR: device cuda: there is no GPU that torch can use" in output
    assert not (tmp_path / "s.db").exists()


def test_the_device_reaches_the_cells_with_its_product():
    options = {"--models": "reference", "--methods": "rtn", "--bits": "4", "--tier": "smoke", "--seed": 0}
    taken = []
    for device in ("cpu", "cuda"):
        config = SimpleNamespace(getoption=(options | {"--device": device}).__getitem__)
        found = SimpleNamespace(fixturenames=["bitfrontier_cell"], config=config,
                                parametrize=lambda name, cells, ids: taken.extend(cells))  # fmt: skip
        pytest_generate_tests(found)
    assert [(setting.device, setting.product) for setting, *_ in taken] == [("cpu", None), ("cuda", "kernel")]
