"""A run killed at any moment and started again ends with the same store as one that was never killed."""

import os
import random
import shlex
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from suite import engine
from suite.store import VOLATILE, Store

METHODS, BITS = "rtn,gptq,awq,hqq,smoothquant,gptq-stochastic", "1,3,4"
N_CELLS = 18
PATIENCE = 120.0  # seconds for anything to happen on a machine that is busy with other things
ORPHANS = 15.0  # seconds that workers may take to notice that they are alone

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes through /proc")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Large enough for a cell to take a good part of a second."""
    options = {"hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 4}
    return tiny.save(tiny.model_of("llama", **options), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens")
    calibration = tiny.save_tokens(path / "calibration.npy", 128, tiny.CONTEXT, 1)
    evaluation = tiny.save_tokens(path / "evaluation.npy", 64, tiny.CONTEXT, 2)
    return {"calibration": str(calibration), "evaluation": str(evaluation)}


@pytest.fixture(scope="module")
def undisturbed(model, tokens, tmp_path_factory):
    """What a run in one go stores."""
    path = tmp_path_factory.mktemp("undisturbed") / "s.db"
    engine.run(
        str(model), methods=METHODS.split(","), bits=[int(b) for b in BITS.split(",")], jobs=1, store=path, **tokens
    )
    return contents(path)


def contents(path):
    """Everything in a store but what may differ from run to run, and how it was asked for."""
    drop = {name: None for name in VOLATILE} | {"started": "", "command": ""}
    with Store(path, create=False) as store:
        records = store.records()
        spectra = [(s.layer, s.n_out, s.variance, s.energy, s.eigenvalues.tobytes()) for s in store.spectra(records[0])]
        return [(replace(r, **drop), tuple(store.layers(r))) for r in records], spectra


class Runs:
    """Starts the same command again and again, in a folder and with a cache of its own."""

    def __init__(self, model, tokens, jobs, folder):
        self.arguments = ["run", str(model), "--methods", METHODS, "--bits", BITS, "--jobs", str(jobs),
                          "--store", "s.db", "--calibration", tokens["calibration"],
                          "--evaluation", tokens["evaluation"]]  # fmt: skip
        self.folder, self.store, self.mark = folder, folder / "s.db", uuid.uuid4().hex
        self.environment = os.environ | {"BITFRONTIER_CACHE": str(folder / "cache"), "BITFRONTIER_MARK": self.mark}

    def start(self):
        code = "from suite.commands.main import main; main()"
        return subprocess.Popen([sys.executable, "-c", code, *self.arguments], cwd=self.folder, env=self.environment,
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip

    def finished(self):
        """How many records are in the store."""
        try:
            with Store(self.store, create=False) as store:
                return len(store.records())
        except ValueError:
            return 0

    def alive(self):
        """The processes that this test has started, their children included."""
        found = []
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"BITFRONTIER_MARK={self.mark}".encode() in environ.read_bytes():
                    found.append(int(environ.parent.name))
            except OSError:
                continue  # it has just ended
        return found


def wait_for(what, seconds):
    end = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_and_started_again_ends_as_one_that_was_not(
    kills, jobs, model, tokens, undisturbed, tmp_path
):
    chance = random.Random(1000 * jobs + kills)
    runs = Runs(model, tokens, jobs, tmp_path)
    # each kill waits for so many records and then a moment; the first falls anywhere from the start of Python on
    waits = [0, *sorted(chance.sample(range(1, N_CELLS), kills - 1))]
    left, lonely = [], []
    for wanted in waits:
        process = runs.start()
        if wanted:
            assert wait_for(lambda n=wanted, p=process: runs.finished() >= n or p.poll() is not None, PATIENCE)
        time.sleep(chance.uniform(0, 0.3 if wanted else 8.0))
        os.kill(process.pid, signal.SIGKILL)
        begun = time.monotonic()
        killed = process.wait() == -signal.SIGKILL
        process.stderr.close()
        assert killed or runs.finished() == N_CELLS
        assert wait_for(lambda: not runs.alive(), ORPHANS), f"still running: {runs.alive()}"
        lonely.append(time.monotonic() - begun)
        left.append(runs.finished() if killed else None)
    print(f"{jobs} jobs: killed with {left} of {N_CELLS} records stored; workers gone after {max(lonely):.2f} s")
    assert sum(n is not None for n in left) > kills / 2  # most kills hit a living run
    process = runs.start()
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    assert contents(runs.store) == undisturbed
    with Store(runs.store, create=False) as store:
        assert {r.command for r in store.records()} == {shlex.join(["bitfrontier", *runs.arguments])}
    assert {path.name for path in tmp_path.iterdir()} == {"s.db", "cache"}  # no log of the store is left


def test_the_undisturbed_run_has_all_cells(undisturbed):
    records, spectra = undisturbed
    assert len(records) == N_CELLS and len(spectra) == 4 * 7
    assert {record.status for record, _ in records} == {"ok", "skipped"}
