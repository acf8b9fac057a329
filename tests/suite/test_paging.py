"""Paged optimizer states: the steps of resident ones, bit for bit, and no page of them resident between steps."""

import os
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.adaptation import paging
from suite.adaptation.paging import MappedFile, PinnedMemory
from suite.adaptation.training import AdamW, Schedule, train
from suite.learning.objective import next_token_loss
from suite.learning.student import whole_model
from suite.models.checkpoint import load_model

FAULT_AROUND = 1 << 16  # bytes that the kernel maps around a page that is read, by default
SCHEDULE = Schedule(steps=6, rate=1e-2, weight_decay=0.3, second_from=0.5, second_rate=5e-3, second_decay=0.1)


def layers(sizes=(7, 33, 1), dtype=torch.float32):
    """A model with matrices and biases of odd sizes, and a parameter that never gets a gradient."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(a, b, dtype=dtype) for a, b in pairwise(sizes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    model.register_parameter("idle", torch.nn.Parameter(torch.ones(3, dtype=dtype)))
    return model


def loss_for(model):
    kind, width = model[0].weight.dtype, model[0].in_features

    def loss_of(step):
        x = torch.randn(16, width, generator=torch.Generator().manual_seed(step)).to(kind)
        return (torch.nn.Sequential.forward(model, x).tanh()[:, 0] - x.sum(1)).float().square().mean()

    return loss_of


def update_of(model, pages, schedule=SCHEDULE):
    return AdamW(model, schedule, pages=pages, pace=lambda name: 0.3 if name.startswith("0") else 1.0)


def trained(pages, schedule=SCHEDULE, checkpoint=None, after=lambda step, loss: None, **options):
    model = layers(**options)
    update = update_of(model, pages, schedule)
    train(model, loss_for(model), schedule, update=update, checkpoint=checkpoint, every=2, after=after)
    return model.state_dict(), update.state_dict()


def same(one, other):
    """Whether two states of model and optimizer are equal to the last bit."""
    (weights, update), (their_weights, their_update) = one, other
    assert update["param_groups"] == their_update["param_groups"]
    assert update["state"].keys() == their_update["state"].keys()
    moments = [(states[key], their_update["state"][i][key]) for i, states in update["state"].items() for key in states]
    return all(torch.equal(a, b) for a, b in [*moments, *((weights[key], their_weights[key]) for key in weights)])


@settings(deadline=None, max_examples=12)
@given(st.lists(st.integers(1, 70), min_size=1, max_size=3), st.sampled_from([torch.float32, torch.bfloat16]),
       st.floats(0, 1), st.floats(1e-5, 0.1))  # fmt: skip
def test_the_steps_are_those_of_resident_states_bit_for_bit(sizes, dtype, decay, rate):
    schedule = Schedule(steps=4, rate=rate, weight_decay=decay, second_from=0.5, second_rate=rate / 3)
    options = {"schedule": schedule, "sizes": (3, *sizes), "dtype": dtype}
    with tempfile.TemporaryDirectory() as directory:
        assert same(trained(None, **options), trained(Path(directory), **options))
        assert not os.listdir(directory)  # a file without a name


def test_a_whole_model_learns_the_same(tmp_path):
    checkpoint = load_model(str(tiny.save(tiny.model_of("llama"), tmp_path / "model")))
    rows = torch.randint(0, tiny.VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
    found = []
    for pages in (None, tmp_path):
        model = whole_model(checkpoint)
        update = AdamW(model, SCHEDULE, pages=pages)
        losses = train(model, lambda part, model=model: next_token_loss(model, rows), SCHEDULE, update=update)
        found.append((losses, (model.state_dict(), update.state_dict())))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])


@pytest.mark.parametrize(("first", "then"), [(True, False), (False, True), (True, True)])
def test_either_takes_up_what_the_other_left(tmp_path, first, then):
    class Killed(Exception):
        pass

    def kill(step, loss_nats):
        if step == 5:
            raise Killed

    def pages(paged):
        return tmp_path if paged else None

    with pytest.raises(Killed):
        trained(pages(first), checkpoint=tmp_path / "state.pt", after=kill)
    steps = []
    resumed = trained(pages(then), checkpoint=tmp_path / "state.pt", after=lambda step, _: steps.append(step))
    assert steps == [5, 6]
    assert same(trained(None), resumed)


def resident_bytes():
    """What of nameless files that are mapped into this process is resident."""
    total, counted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        field = line.split()
        if "-" in field[0] and not field[0].endswith(":"):
            counted = line.endswith("(deleted)") and "w" in field[1]
        elif counted and field[0] == "Rss:":
            total += 1024 * int(field[1])
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads what is resident from /proc")
def test_no_state_is_resident_between_steps_nor_more_than_one_parameters_within(tmp_path, monkeypatch):
    sizes, seen = (256, 1024, 1024, 512), []
    model, before = layers(sizes=sizes), resident_bytes()
    update = update_of(model, tmp_path)
    step = torch.optim.AdamW.step

    def watched(self):
        step(self)
        seen.append(resident_bytes() - before)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    loss_of = loss_for(model)
    for _ in range(2):
        update.gradient(loss_of, [0])
        update.descend(1e-3, 0.1)
        assert resident_bytes() == before
    assert len(seen) == 2 * 6
    largest = 2 * 4 * 1024 * 1024  # two moments of a matrix
    assert largest <= max(seen) <= largest + 6 * FAULT_AROUND
    assert sum(float(x.sum()) for states in update.state_dict()["state"].values() for x in states.values()) != 0
    assert resident_bytes() > before  # they were read, as a checkpoint does
    update.gradient(loss_of, [0])
    assert resident_bytes() == before


def test_a_full_disk_is_an_error_before_any_step(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        update_of(layers(), tmp_path)


def test_pinned_memory_takes_the_same_steps_where_copies_are_made(tmp_path, monkeypatch):
    # its copies go to the CPU here, from memory that is not pinned: all but the GPU itself
    zeros = torch.zeros
    monkeypatch.setattr(paging.torch, "zeros", lambda *shape, pin_memory=False, **options: zeros(*shape, **options))
    monkeypatch.setattr(paging, "MappedFile", lambda parameters, directory: PinnedMemory())
    assert same(trained(None), trained(tmp_path))


def test_moments_lie_apart_and_begin_at_zero(tmp_path):
    parameters = [torch.nn.Parameter(torch.ones(size)) for size in (1, 1023, 5000)]
    home = MappedFile(parameters, tmp_path)
    for value, parameter in enumerate(parameters):
        moments = home.moments(parameter)
        assert not any(bool(x.any()) for x in moments.values())
        moments["exp_avg"].fill_(2 * value + 1)
        moments["exp_avg_sq"].fill_(2 * value + 2)
    home.leave()
    for value, parameter in enumerate(parameters):
        first, second = home.moments(parameter).values()
        assert bool((first == 2 * value + 1).all()) and bool((second == 2 * value + 2).all())
