import math
from pathlib import Path

import numpy as np
import pytest
import torch

from suite.adaptation.training import AdamW, DivergedError, Schedule, train
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


def test_micro_batches_add_up_to_one_batch():
    model, loss_of = model_and_loss()
    other, other_loss = model_and_loss()
    train(model, loss_of, Schedule(steps=5, rate=1e-2, accumulate=3))

    def joined(step):
        return sum(other_loss(3 * step + part) for part in range(3)) / 3

    train(other, joined, Schedule(steps=5, rate=1e-2))
    assert all(map(torch.allclose, state(model), state(other)))


def test_autocast_multiplies_in_bfloat16():
    model, _ = model_and_loss()
    kinds = []

    def loss_of(step):
        found = model(torch.ones(4, 8))
        kinds.append(found.dtype)
        return found.float().square().mean()

    train(model, loss_of, Schedule(steps=1, autocast=True))
    assert kinds == [torch.bfloat16]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_diverges_stops_with_the_last_good_checkpoint(tmp_path, what):
    model, loss_of = model_and_loss()
    checkpoint = tmp_path / "state.pt"

    def diverging(step):
        if step < 7:
            return loss_of(step)
        root = model[0].weight.sum() * 0
        return root + math.nan if what == "loss" else (root + 1e-300).abs().sqrt() * 0 + root.abs().sqrt()

    with pytest.raises(DivergedError, match=r"diverged at step 8: .*last good checkpoint is .*state\.pt") as caught:
        train(model, diverging, Schedule(steps=12, rate=1e-2), checkpoint=checkpoint, every=3)
    assert caught.value.step == 8
    assert len(torch.load(checkpoint, weights_only=True)["losses"]) == 6
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_a_run_without_checkpoints_says_so():
    model, loss_of = model_and_loss()
    with pytest.raises(DivergedError, match="the loss is nan; no checkpoint is kept"):
        train(model, lambda step: loss_of(step) * math.nan, Schedule(steps=2))


def test_a_second_phase_has_a_rate_and_a_decay_of_its_own():
    plain = Schedule(steps=100, rate=1.0, warmup=0.1, final=0.0)
    two = Schedule(steps=100, rate=1.0, warmup=0.1, final=0.0, second_from=0.5, second_rate=0.25, second_decay=0.0)
    assert all(two.rate_at(step) == plain.rate_at(step) and two.decay_at(step) == 0.1 for step in range(50))
    assert all(two.rate_at(step) == plain.rate_at(step) / 4 and two.decay_at(step) == 0 for step in range(50, 100))


def test_what_decays_and_at_what_pace_is_the_callers():
    model, _ = model_and_loss()
    before = dict(zip(dict(model.named_parameters()), state(model), strict=True))
    schedule = Schedule(steps=1, rate=0.1, warmup=0.0, weight_decay=0.5)
    update = AdamW(
        model, schedule, decays=lambda name, p: name == "0.weight", pace=lambda name: 0.0 if name[0] == "2" else 1
    )
    train(model, lambda step: sum((p * 0).sum() for p in model.parameters()), schedule, update=update)
    for name, parameter in model.named_parameters():  # no gradient: weight decay is all there is
        wanted = before[name] * (0.95 if name == "0.weight" else 1)
        assert torch.allclose(parameter, wanted, atol=1e-7)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": 1, "accumulate": 0}, {"steps": 1, "warmup": 1.5},
                                   {"steps": 1, "rate": math.inf}, {"steps": 1, "clip": 0.0}])  # fmt: skip
def test_a_schedule_that_makes_no_sense(wrong):
    with pytest.raises(ValueError, match="expected"):
        Schedule(**wrong)


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
