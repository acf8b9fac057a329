import math
from pathlib import Path

import numpy as np
import pytest
import torch

from suite.adaptation.training import Schedule, train
from suite.reference.text import LENGTH
from suite.reference.training import batch_at, weight_statistics


def model_and_loss():
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)

    def loss_of(step: int) -> torch.Tensor:
        x = torch.randn(32, 8, generator=torch.Generator().manual_seed(step))
        return (model(x)[:, 0] - x.sum(1)).square().mean()

    return model, loss_of


def state(model) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def test_a_killed_run_continues_bit_for_bit(tmp_path: Path):
    schedule = Schedule(steps=12, rate=1e-2)
    undisturbed, loss_of = model_and_loss()
    train(undisturbed, loss_of, schedule)

    class Killed(Exception):
        pass

    def kill(step: int, loss_nats: float) -> None:
        if step == 8:
            raise Killed

    first, loss_of = model_and_loss()
    with pytest.raises(Killed):
        train(first, loss_of, schedule, checkpoint=tmp_path / "state.pt", every=3, after=kill)
    second, loss_of = model_and_loss()
    steps = []
    train(second, loss_of, schedule, checkpoint=tmp_path / "state.pt", every=3, after=lambda s, _: steps.append(s))
    assert steps == [7, 8, 9, 10, 11, 12]  # six were kept
    assert all(map(torch.equal, state(undisturbed), state(second)))


def test_training_lowers_the_loss():
    model, loss_of = model_and_loss()
    before = float(loss_of(10_000).detach())
    train(model, loss_of, Schedule(steps=100, rate=1e-2))
    assert float(loss_of(10_000).detach()) < before / 2


def test_the_rate_rises_linearly_then_falls_to_its_last_value():
    schedule = Schedule(steps=1000, rate=1.0, warmup=0.1, final=0.05)
    rates = [schedule.rate_at(step) for step in range(1000)]
    assert np.allclose(np.diff(rates[:100]), 0.01)
    assert max(rates) == 1.0 and np.argmax(rates) in (99, 100)
    assert np.all(np.diff(rates[100:]) <= 0)
    # one step before the cosine's end: final + (1 - final) (1 + cos(pi (1 - 1/900))) / 2
    assert math.isclose(rates[-1], 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * 899 / 900)), rel_tol=1e-12)


def test_an_epoch_sees_every_row_once_and_follows_from_the_step_alone():
    stream = np.arange(LENGTH * 41)
    per_epoch = 40 // 8
    starts = np.concatenate([batch_at(stream, step, 8, seed=3)[:, 0].numpy() for step in range(per_epoch)])
    assert len(set(starts.tolist())) == 40
    assert len(set((starts % LENGTH).tolist())) == 1  # one shift for the epoch
    assert torch.equal(batch_at(stream, 7, 8, seed=3), batch_at(stream, 7, 8, seed=3))
    assert not torch.equal(batch_at(stream, 0, 8, seed=3), batch_at(stream, per_epoch, 8, seed=3))


def test_weight_statistics_of_a_known_tensor():
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[1.0, -1.0], [1.0, -3.0]])
    found = weight_statistics(layer)["weight"]
    values = np.array([1.0, -1.0, 1.0, -3.0])
    kurtosis = ((values - values.mean()) ** 4).mean() / values.var() ** 2 - 3
    wanted = {"mean": values.mean(), "std": values.std(), "kurtosis": kurtosis, "absmax": 3.0}
    assert all(math.isclose(found[key], wanted[key], rel_tol=1e-5) for key in wanted)
