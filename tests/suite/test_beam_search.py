"""Beam search against one that computes every loss anew, and against all combinations there are."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.rounding import beam_search as module
from suite.rounding.beam_search import beam_search, decoded, row_losses

EPS = 2.0**-52


def gaussian(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def instances(draw, books=3, entries=6, groups=5, length=3):
    """W, H, codebooks, codes, scale: correlated inputs, a last group that may be short, scales of either sign."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    n_books, n_entries = draw(st.integers(1, books)), draw(st.integers(1, entries))
    n_groups, g, n_out = draw(st.integers(1, groups)), draw(st.integers(1, length)), draw(st.integers(1, 3))
    n_in = max(1, n_groups * g - draw(st.integers(0, g - 1)))
    X = gaussian(generator, 2 * n_in, n_in) @ gaussian(generator, n_in, n_in)
    codes = torch.randint(n_entries, (n_out, -(-n_in // g), n_books), generator=generator)
    return (gaussian(generator, n_out, n_in), X.T @ X / len(X), gaussian(generator, n_books, n_entries, g), codes,
            gaussian(generator, n_out))  # fmt: skip


def losses(w, H, books, codes, s):
    """The losses (n,) of one row for codes (n, C, M), from their definition."""
    q = s * sum(books[m][codes[:, :, m]] for m in range(len(books))).reshape(len(codes), -1)[:, : len(w)]
    return (((w - q) @ H) * (w - q)).sum(1)


def twin(W, H, books, codes, scale, beam, generator):
    """Codes (out, C, M): every combination of the beam with every entry, its loss from the definition."""
    _, n_groups, n_books = codes.shape
    order = torch.randperm(n_groups, generator=generator).tolist()
    stages = [torch.randperm(n_books, generator=generator).tolist() for _ in order]
    found = []
    for w, given_codes, s in zip(W, codes, scale, strict=True):
        held = given_codes[None]
        for i, m in ((i, m) for i, ms in zip(order, stages, strict=True) for m in ms):
            tried = held.repeat_interleave(books.shape[1], 0)
            tried[:, i, m] = torch.arange(books.shape[1]).repeat(len(held))
            held = tried[losses(w, H, books, tried, s).argsort(stable=True)[:beam]]
        found.append(held[0])
    return torch.stack(found)


def search(instance, beam, seed=0):
    return beam_search(*instance, beam, torch.Generator().manual_seed(seed))


def slack(instance):
    """A bound (out,) on the rounding of an incremental loss: each of its steps sums that many products of that size."""
    W, H, books, codes, scale = instance
    reach = scale.abs()[:, None] * books.abs().amax((1, 2)).sum()
    size = W.abs() + reach
    steps, terms = codes[0].numel(), H.shape[0] + 4 * books.shape[2] + 8
    return 8 * EPS * steps * terms * ((size @ H.abs()) * size).sum(1)


@settings(deadline=None, max_examples=60)
@given(instances(), st.integers(1, 4), st.integers(0, 99))
def test_it_is_the_search_that_computes_every_loss_anew(instance, beam, seed):
    W, H, books, _, scale = instance
    plain = twin(*instance, beam, torch.Generator().manual_seed(seed))
    found = search(instance, beam, seed)
    for row in range(len(W)):
        mine, wanted = (losses(W[row], H, books, c[row][None], scale[row]) for c in (found.codes.long(), plain))
        assert abs(mine - wanted) <= slack(instance)[row]


@settings(deadline=None, max_examples=60)
@given(instances(groups=20), st.integers(1, 9))
def test_the_steps_add_up_to_the_loss_and_never_raise_it(instance, beam):
    W, H, books, codes, scale = instance
    n_in = W.shape[1]
    before = row_losses(W - decoded(books, codes, scale)[:, :n_in], H)
    found = search(instance, beam)
    after = row_losses(W - decoded(books, found.codes, scale)[:, :n_in], H)
    assert bool((found.change <= 0).all())
    assert bool(((before + found.change - after).abs() <= slack(instance)).all())
    assert bool(((found.loss - after).abs() <= slack(instance)).all())
    assert bool((found.loss <= before + slack(instance)).all())


@settings(deadline=None, max_examples=40)
@given(instances(books=2, entries=3, groups=2), st.integers(0, 9))
def test_a_beam_wide_enough_finds_the_best_of_all_combinations(instance, seed):
    W, H, books, codes, scale = instance
    places = codes[0].numel()
    found = search(instance, books.shape[1] ** places, seed)
    for row in range(len(W)):
        every = torch.tensor(list(itertools.product(range(books.shape[1]), repeat=places)))
        best = losses(W[row], H, books, every.reshape(-1, *codes[row].shape), scale[row]).min()
        assert abs(float(found.loss[row]) - best) <= slack(instance)[row]


def case(n_out=5, n_in=37, g=4, n_books=2, n_entries=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    X = gaussian(generator, 2 * n_in, n_in) @ gaussian(generator, n_in, n_in)
    codes = torch.randint(n_entries, (n_out, -(-n_in // g), n_books), generator=generator)
    values = gaussian(generator, n_out, n_in), gaussian(generator, n_books, n_entries, g), gaussian(generator, n_out)
    W, books, scale = (x.to(dtype) for x in values)
    return W, X.T @ X / len(X), books, codes, scale


@pytest.mark.parametrize("beam", [1, 3])
def test_what_is_computed_together_does_not_matter(monkeypatch, beam):
    whole = search(case(), beam)
    monkeypatch.setattr(module, "_COLUMNS", 8)
    monkeypatch.setattr(module, "_TOGETHER", 1)
    parts = search(case(), beam)
    assert torch.equal(whole.codes, parts.codes)
    assert bool(((whole.change - parts.change).abs() <= slack(case())).all())


def test_a_wider_beam_is_better_on_average():
    """Row by row it need not be: what falls out early may have been the best in the end."""
    losses = [float(search(case(n_out=64), beam).loss.sum()) for beam in (1, 2, 4, 8, 16)]
    assert losses == sorted(losses, reverse=True)


def test_in_single_precision_the_loss_in_double_precision_never_rises():
    W, H, books, codes, scale = case(n_out=64, dtype=torch.float32)
    before = row_losses(W.double() - decoded(books.double(), codes, scale.double())[:, :37], H)
    for beam in (1, 4):
        for _ in range(4):  # from codes that are nearly settled, where roundings could go either way
            found = beam_search(W, H, books, codes, scale, beam, torch.Generator().manual_seed(beam))
            assert bool((found.loss <= before * (1 + 64 * EPS)).all())
            codes, before = found.codes, found.loss


def test_what_costs_nothing_keeps_its_codes():
    W, H, books, codes, scale = case()
    H[:8], H[:, :8], scale[1] = 0, 0, 0
    found = beam_search(W, H, books, codes, scale, 3, torch.Generator())
    assert torch.equal(found.codes[:, :2].long(), codes[:, :2]) and torch.equal(found.codes[1].long(), codes[1])


def test_the_order_is_the_generators_alone():
    before = torch.get_rng_state()
    first, again, other = (search(case(), 2, seed).codes for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_given_is_changed():
    instance = case()
    copies = [x.clone() for x in instance]
    search(instance, 3)
    assert all(map(torch.equal, instance, copies))
