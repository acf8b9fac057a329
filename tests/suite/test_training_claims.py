"""What training with few bits must reach on the shipped model, against its own control (slow: five trainings).

Each method's training takes about seven minutes on two cores, and so does the control that they share. GPTQ at 2 bits
is the standard of what goes without training: its excess over the original model, in nats, which training must halve.
"""

import math

import pytest

from suite import run
from suite.rows import TrainingRow
from suite.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("claims") / "store.db"


def trained(store, method, bits):
    """The record and the row against the control of one cell of the default tier."""
    (record,) = run(methods=[method], bits=[bits], store=store, jobs=1, threads=2)
    assert record.status == "ok", record.reason
    with Store(store, create=False) as opened:
        (row,) = (row for row in opened.rows(TrainingRow) if row.cell == record.cell)
    return record, row


@pytest.mark.parametrize("method", ["lsq", "paretoq"])
def test_four_bits_cost_at_most_two_percent_of_the_controls_perplexity(method, store):
    record, row = trained(store, method, 4)
    assert record.ppl <= 1.02 * row.ppl_control


@pytest.mark.parametrize("method", ["lsq", "paretoq"])
def test_two_bits_cost_less_than_half_of_what_gptq_costs_untrained(method, store):
    (gptq,) = run(methods=["gptq"], bits=[2], store=store, jobs=1)
    record, row = trained(store, method, 2)
    assert math.isclose(row.excess_nats, math.log(record.ppl / row.ppl_control), abs_tol=1e-9)
    assert row.excess_nats < 0.5 * math.log(gptq.ppl / gptq.ppl_base)
