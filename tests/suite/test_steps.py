"""Steps for entropy-coded codes: the rate is kept, and the error is what theory says of it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.coding import Ans, entropy_bits
from suite.grids import Integer, Steps
from suite.grids.steps import ladder
from suite.quantize import quantize_matrix
from suite.recipe import Recipe, Target, parse
from suite.rounding import Feedback, Nearest, RateAware, Stochastic
from theory.rate_distortion import ecsq_distortion

# (rate, step, squared error) on a unit Gaussian, computed independently; five digits of the step
TABLE = [
    (0.25, 4.23232, 0.789446), (0.5, 3.45618, 0.617337), (1, 2.42162, 0.348339), (1.5, 1.61010, 0.177703),
    (2, 1.08245, 0.0889412), (3, 0.52243, 0.0222388), (4, 0.25902, 5.55972e-3), (5, 0.12924, 1.38993e-3),
    (6, 0.06459, 3.47483e-4), (8, 0.01614, 2.17177e-5),
]  # fmt: skip
DRAWS = {
    "gaussian": lambda shape, g: torch.randn(shape, generator=g),
    "laplace": lambda shape, g: torch.rand(shape, generator=g).log() * (torch.rand(shape, generator=g) - 0.5).sign(),
    "student": lambda shape, g: torch.distributions.StudentT(4.0).rsample(shape),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gram(n, exponent=1.0, seed=0):
    """A Gram matrix with the spectrum k^-exponent in a random basis, (n, n) float64."""
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64))[0]
    return basis * torch.arange(1, n + 1, dtype=torch.float64) ** -exponent @ basis.T


@pytest.fixture(scope="module")
def million():
    return torch.randn(1024, 1024, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize(("rate", "step", "error"), TABLE)
def test_rates_and_errors_of_a_gaussian_are_those_of_the_table(rate, step, error, million):
    """A million values, to three standard errors, and to what rounding offsets to 1/256 steps may cost.

    The table's step has five digits: it moves the rate by at most 5e-6 / step / ln 2, the error by as many parts.
    """
    fitted = Steps(bits=rate, centers=8).bind(million, step, None)
    codes = fitted.nearest(million)
    fitted = fitted.centered(million, codes)
    shares = torch.bincount(codes.reshape(-1).long()).double() / codes.numel()
    bits = -shares[codes.reshape(-1).long()].log2()
    digits = 5e-6 / step / math.log(2)
    assert float(bits.mean()) == pytest.approx(rate, abs=3 * float(bits.std()) / 1024 + digits)
    squares = (million - fitted.decode(codes)).square()
    slack = 3 * float(squares.std()) / 1024 + (step / 512) ** 2 + 2 * digits * error
    assert float(squares.mean()) == pytest.approx(error, abs=slack)


@pytest.mark.parametrize("rate", [0.5, 1, 2, 3, 4, 6])
def test_what_is_really_stored_is_a_thousandth_from_the_curve(rate, million):
    """Tables, checksums and float32 steps included: a megabit matrix loses nothing that could be seen."""
    fitted = Steps(bits=rate).fit(million)
    codes = fitted.nearest(million)
    assert (1 - 1e-3) * rate <= fitted.coded_bits(codes) / million.numel() <= rate
    squares = (million - fitted.decode(codes)).square()
    best = float(ecsq_distortion(rate))
    assert float(squares.mean()) == pytest.approx(best, rel=3e-3, abs=3 * float(squares.std()) / 1024)


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("spacing", ["even", "pivots"])
@pytest.mark.parametrize("shape", [(64, 64), (256, 256), (96, 700)], ids=str)
@pytest.mark.parametrize("bits", [1.0, 2.37, 4.0, 8.0])
def test_the_rate_is_kept_and_used(bits, shape, spacing, draw):
    """Within a percent from 65536 weights on; a byte is 0.2% of a rate of 1 on 4096, where Ans rounds up to four."""
    W = DRAWS[draw](shape, generator(3))
    fitted = Steps(bits=bits, spacing=spacing).fit(W, gram(shape[1]))
    codes = fitted.nearest(W)
    rate = fitted.coded_bits(codes) / W.numel()
    coded = sum(8 * len(Ans().encode(stream.numpy())) for stream in fitted.streams(codes))
    assert fitted.coded_bits(codes) == coded + 8 * -(-fitted.beside_bits // 8)
    assert rate <= bits and rate >= (0.99 if W.numel() >= 2**16 else 0.95) * bits


def test_coded_in_full_a_matrix_takes_what_was_asked_for():
    W = torch.randn(256, 256, generator=generator(1))
    q = quantize_matrix(W, recipe=parse("Recipe(weights=Target(Steps(bits=2.37)), coding=Ans())"))
    assert 0.99 * 2.37 <= q.n_bits / W.numel() <= 2.37 and len(q.to_bytes()) == q.n_bits // 8
    assert type(q).from_bytes(q.to_bytes(), q.header()).dequantize().equal(q.dequantize())


def test_a_tiny_matrix_gives_half_the_rate_to_its_codes():
    W = torch.randn(4, 8, generator=generator())
    fitted = Steps(bits=4).fit(W)
    codes = fitted.nearest(W)
    assert 0.4 * 4 * 32 <= entropy_bits(codes) <= 4 * 32 / 2 < fitted.coded_bits(codes)


@given(
    st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=6),
    st.integers(0, 2**32),
    st.floats(0.125, 4),
    st.floats(0, 8),
)
def test_with_costs_the_best_of_all_codes_is_taken(values, seed, step, largest):
    """Against looking at every code: the candidates near x are enough, whatever codes cost."""
    x = torch.tensor(values, dtype=torch.float64)[:, None]
    fitted = Steps(bits=3, centers=2).bind(torch.full((len(values), 1), 8.0, dtype=torch.float64), step, None)
    draw = generator(seed)
    fitted = type(fitted)(grid=fitted.grid, shape=fitted.shape, step=fitted.step, rung=None, width=fitted.width,
                          offset=torch.rand(1, 2, generator=draw, dtype=torch.float64) - 0.5)  # fmt: skip
    cost = largest * torch.rand(fitted.n_codes, generator=draw, dtype=torch.float64)
    codes = fitted.nearest(x, slice(0, 1), cost).long()
    every = (x - fitted.levels * fitted.step).square() + cost
    assert every.gather(1, codes)[:, 0].tolist() == pytest.approx(every.amin(1).tolist(), abs=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.booleans(), st.sampled_from(["even", "pivots"]))
def test_levels_are_the_least_squares_ones(seed, weighted, spacing):
    """Against a plain solution of the whole design, to half a unit of what offsets are stored in."""
    draw = generator(seed)
    W = torch.randn(40, 12, generator=draw, dtype=torch.float64)
    H = gram(12, 0.5, seed)
    fitted = Steps(bits=3, spacing=spacing, centers=2).fit(W, H)
    codes = fitted.nearest(W)
    root = torch.linalg.cholesky(H) if weighted else torch.eye(12, dtype=torch.float64)
    k = codes.long() - fitted.zero
    columns = []
    for place in (1, 2):
        pull = (k.sign() * (k.abs().clamp(max=2) == place)).double() * fitted.steps
        columns += [((pull * (fitted.class_of == c)) @ root).reshape(-1) for c in range(fitted.n_classes)]
    missing = ((k * fitted.steps - W) @ root).reshape(-1)
    plain = torch.linalg.lstsq(torch.stack(columns, 1), missing[:, None]).solution.reshape(2, -1).T
    found = fitted.centered(W, codes, H if weighted else None).offset
    assert ((found - plain.clamp(-127 / 256, 127 / 256)).abs() <= 1 / 512 + 1e-9).all()


def test_steps_by_pivots_make_errors_equal_to_an_eighth_of_an_octave():
    H = gram(48, 1.5)
    fitted = Steps(bits=3, spacing="pivots", damping=0.0).fit(torch.randn(64, 48, generator=generator()), H)
    pivots = torch.linalg.cholesky(H.flip(0, 1)).diagonal().flip(0)
    products = (fitted.steps.double() * pivots).log2()
    assert float(products.max() - products.min()) <= 1 / 4 + 1e-6
    assert int(ladder(H, 0.0, 48).min()) == 0 and fitted.beside_bits == 32 + 5 * 48 + 8 * 3 * fitted.n_classes


def test_a_step_beyond_the_ladder_takes_its_last_rung():
    H = torch.diag(torch.tensor([1.0, 1e-12], dtype=torch.float64))
    assert ladder(H, 0.0, 2).tolist() == [0, 31]


def test_classes_are_alike_in_size_and_never_part_a_rung():
    W = torch.randn(512, 256, generator=generator())
    fitted = Steps(bits=3, spacing="pivots", classes=6, damping=0.0).fit(W, gram(256, 1.5))
    assert 4 <= fitted.n_classes <= 6
    for rung in fitted.rung.unique():
        assert len(fitted.class_of[fitted.rung == rung].unique()) == 1
    order = torch.argsort(fitted.rung, stable=True)
    assert (fitted.class_of[order].diff() >= 0).all()
    small = Steps(bits=3, spacing="pivots", classes=6).fit(W[:32], gram(256, 1.0))
    assert small.n_classes == 1  # 8192 codes are the least that a table is made for


@pytest.mark.parametrize("bits", [0, -1, math.nan, math.inf, 12.1, "3"])
def test_rates_that_are_refused(bits):
    with pytest.raises(ValueError, match="expected a rate above 0 and up to 12"):
        Steps(bits=bits)


@pytest.mark.parametrize(("grid", "rounding", "reason"), [
    (Steps(bits=3, spacing="pivots"), Nearest(), "steps by pivots are for error feedback in the given order"),
    (Steps(bits=3, spacing="pivots"), RateAware(), "steps by pivots are for error feedback in the given order"),
    (Steps(bits=3, spacing="pivots"), Feedback(order="decreasing"), "in the given order, not"),
    (Integer(bits=3), RateAware(), "rate-aware rounding searches the step of Steps"),
    (Steps(bits=3), RateAware(feedback=Feedback(pick=Stochastic())), "rate-aware rounding picks codes itself"),
])  # fmt: skip
def test_pairs_that_are_not_had(grid, rounding, reason):
    assert reason in Target(grid, rounding).unsupported


def test_activations_are_not_entropy_coded():
    recipe = Recipe(weights=Target(Integer(bits=4)), activations=Target(Steps(bits=4)))
    assert recipe.unsupported == "activations are not entropy coded"


def test_pivots_need_a_gram_matrix_that_has_them():
    W = torch.randn(4, 6, generator=generator())
    for H, found in ((None, "found none"), (torch.eye(5), r"found shape \(5, 5\)")):
        with pytest.raises(ValueError, match=r"need the Gram matrix H of shape \(6, 6\), " + found):
            Steps(bits=3, spacing="pivots").fit(W, H)
    with pytest.raises(ValueError, match=r"has no pivots with damping 0\.01"):
        Steps(bits=3, spacing="pivots").fit(W, -torch.eye(6))


@pytest.mark.parametrize("text", [
    "Recipe(weights=Target(Steps(bits=3.0)), coding=Ans())",
    "Recipe(weights=Target(Steps(bits=3.0), Feedback()), coding=Ans())",
    "Recipe(weights=Target(Steps(bits=3.25, spacing='pivots'), Feedback()), coding=Ans())",
    "Recipe(weights=Target(Steps(bits=2.37), RateAware(weight=0.0, feedback=Feedback())), coding=Ans())",
])  # fmt: skip
def test_rounding_to_nearest_and_plain_feedback_are_recipes_too(text):
    """Feedback spreads values, so that its codes take a little more than nearest ones on the same step."""
    recipe = parse(text)
    assert str(recipe) == text
    W = torch.randn(128, 128, generator=generator())
    q = quantize_matrix(W, recipe=recipe, H=gram(128))
    assert 0.99 * recipe.weights.grid.bits <= q.n_bits / W.numel() <= 1.06 * recipe.weights.grid.bits
