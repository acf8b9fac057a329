import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from suite.coding import Ans, Fixed, Huffman
from suite.grids import Integer, OutputSearch, ShrinkSearch
from suite.grids.integer import CONVENTIONS
from suite.methods import METHODS, method_named
from suite.quantize import generator_for, quantize_matrix, relative_errors
from suite.quantized import Quantized
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, HalfQuadratic, Stochastic
from suite.transforms import AwqScale

SHAPES = [(5, 7), (64, 172), (1, 1), (9, 1)]
# what methods do not reach by their defaults, and what is stored in ways of its own
RECIPES = [
    *(Recipe(weights=Target(Integer(bits=3, group=4, convention=c))) for c in CONVENTIONS),
    *(Recipe(weights=Target(Integer(bits=5, group=3, axis=0, convention=c, scale_bits=32))) for c in CONVENTIONS),
    Recipe(weights=Target(Integer(bits=1, group="tensor", convention="half-integer"))),
    Recipe(weights=Target(Integer(bits=7, group="row"), Stochastic())),
    Recipe(weights=Target(Integer(bits=2, group=3, clip=ShrinkSearch(steps=10)))),
    Recipe(weights=Target(Integer(bits=2, group=3, clip=OutputSearch()), Feedback(groups="static"))),
    Recipe(weights=Target(Integer(bits=3, group=2), Feedback(order="decreasing"))),
    Recipe(weights=Target(Integer(bits=3, group=2), Feedback(order="pivot", groups="stale", block=3))),
    Recipe(weights=Target(Integer(bits=3, group=2, axis=0, convention="real-zero"), HalfQuadratic(round_zero=True))),
    Recipe(transforms=(AwqScale(), AwqScale(steps=3)), weights=Target(Integer(bits=3, group=4), Feedback())),
]


def takes_one_matrix(method):
    recipe = method.recipe(bits=method.bits[-1])
    folded = all(transform.place == "fold" for transform in recipe.transforms)
    return recipe.weights is not None and folded and method.needs != "training"


def turns_matrices(method):
    places = {transform.place for transform in method.recipe(bits=method.bits[-1]).transforms}
    return "matrix" in places and places <= {"fold", "matrix"}


OF_MATRICES = [m for m in METHODS if takes_one_matrix(m)]
TURNED = [(m, bits) for m in METHODS if turns_matrices(m) for bits in m.bits]
UNIFORM = [m for m in OF_MATRICES if not m.fixed and isinstance(m.recipe(bits=4).weights.grid, Integer)]

methods = pytest.mark.parametrize("method", OF_MATRICES, ids=lambda m: m.name)
uniform = pytest.mark.parametrize("method", UNIFORM, ids=lambda m: m.name)
recipes = pytest.mark.parametrize("recipe", RECIPES, ids=str)
widths = pytest.mark.parametrize("bits", [2, 3, 4, 8])
of_every_width = [(m, bits) for m in OF_MATRICES for bits in m.bits if m.fixed or bits in (2, 3, 4, 8)]
every_width = pytest.mark.parametrize(("method", "bits"), of_every_width, ids=lambda x: getattr(x, "name", str(x)))


def cannot_have(method, error):
    """Whether this is EXL2, which keeps its budget or says that it cannot."""
    return method.name == "exl2" and "bits per weight" in str(error)


def data(shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(sum(shape))
    W = torch.randn(shape, generator=generator, dtype=torch.float64)
    X = torch.randn(2 * shape[1] + 3, shape[1], generator=generator, dtype=torch.float64)
    return W.to(dtype), X


def random_state():
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), kind, keys.tolist(), rest, random.getstate()


def same(a, b):
    return torch.equal(a.view(torch.int32), b.view(torch.int32))  # bit for bit: the sign of a zero too


def holds_the_contract(W, X, make):
    """A `Quantized` that `make(W, X)` gives, checked for everything that all of them promise."""
    before = W.clone(), X.clone(), random_state()
    q, again = make(W, X), make(W, X)
    assert torch.equal(W, before[0]) and torch.equal(X, before[1]) and random_state() == before[2]
    payload, Q = q.to_bytes(), q.dequantize()
    assert payload == again.to_bytes() and q.header() == again.header() and q.fallbacks == again.fallbacks == ()
    assert isinstance(q.n_bits, int) and len(payload) == -(-q.n_bits // 8)
    assert q.entropy_bits <= q.n_bits * (1 + 2.0**-40)  # a sum of at most 2^8 logarithms
    assert Q.shape == W.shape and Q.dtype == torch.float32 and bool(torch.isfinite(Q).all())
    back = Quantized.from_bytes(payload, json.loads(json.dumps(q.header())))
    assert same(back.dequantize(), Q)
    assert torch.equal(back.codes, q.codes) and back.n_bits == q.n_bits and back.grid.grid == q.grid.grid
    assert back.to_bytes() == payload and back.header() == q.header()
    return q


@every_width
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_method_keeps_the_contract(method, bits, shape):
    W, X = data(shape)
    try:
        q = holds_the_contract(W, X, lambda W, X: quantize_matrix(W, method=method.name, bits=bits, X=X, seed=3))
    except ValueError as error:
        assert cannot_have(method, error)
        return
    assert method.fixed or q.grid.grid.bits == bits


@pytest.mark.parametrize(("method", "bits"), TURNED, ids=lambda x: getattr(x, "name", str(x)))
@pytest.mark.parametrize("shape", [(4, 8), (12, 20), (1, 1)], ids=str)
def test_methods_that_turn_matrices_keep_the_contract(method, bits, shape):
    """Those of sizes that have a Hadamard matrix."""
    W, X = data(shape)
    for dtype in (torch.float32, torch.float64):
        q = holds_the_contract(
            W.to(dtype), X, lambda W, X: quantize_matrix(W, method=method.name, bits=bits, X=X, seed=3)
        )
        assert q.frame is not None and q.grid.grid.bits == bits
    with pytest.raises(ValueError, match="no Hadamard matrix of order 3"):
        quantize_matrix(torch.ones(3, 8), method=method.name, bits=bits, X=torch.ones(9, 8))


@methods
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float64_weights_are_kept_in_float32_parameters(method, shape):
    W, X = data(shape, torch.float64)
    try:
        holds_the_contract(W, X, lambda W, X: quantize_matrix(W, method=method.name, bits=3, X=X))
    except ValueError as error:
        assert cannot_have(method, error)


@recipes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_to_store_keeps_the_contract(recipe, shape):
    W, X = data(shape)
    holds_the_contract(W, X, lambda W, X: quantize_matrix(W, recipe=recipe, X=X))


@uniform
@widths
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_constant_matrices_are_quantized_like_others(method, bits, value):
    W, X = data((5, 7))
    W = torch.full_like(W, value)
    q = holds_the_contract(W, X, lambda W, X: quantize_matrix(W, method=method.name, bits=bits, X=X))
    if value == 0:
        assert torch.equal(q.dequantize(), W)
    # the range is met but for the rounding of scales to float16; a kept channel scale moves values in it by half a step
    half_step = abs(value) / (2 ** (bits - 1) - 1) / 2 if q.in_scale is not None else 0
    assert float((q.dequantize() - W).abs().max()) <= half_step + abs(value) * 2.0**-9


@methods
def test_not_a_number_is_an_error(method):
    for bad in (float("nan"), float("inf")):
        W, X = data((64, 172))
        W[2, 3] = bad
        with pytest.raises(ValueError, match="finite"):
            quantize_matrix(W, method=method.name, bits=None if method.fixed else 4, X=X)


@methods
def test_what_is_not_a_matrix_is_an_error(method):
    with pytest.raises(ValueError, match=r"expected a matrix \(out, in\), found shape \(3,\)"):
        quantize_matrix(torch.ones(3), method=method.name, bits=4)


@pytest.mark.parametrize("name", [m.name for m in OF_MATRICES if m.needs == "calibration"])
def test_a_method_that_needs_calibration_says_so(name):
    said = r"needs the Gram matrix H of shape \(7, 7\), found none|give X \(tokens, in\)|needs the layer's inputs"
    with pytest.raises(ValueError, match=said):
        quantize_matrix(data((5, 7))[0], method=name, bits=4)


@pytest.mark.parametrize("name", [m.name for m in OF_MATRICES if m.needs == "nothing"])
def test_a_method_that_needs_nothing_does_not_look_at_inputs(name):
    W, X = data((5, 7))
    bare, given = (quantize_matrix(W, method=name, bits=4, X=x) for x in (None, X))
    assert bare.to_bytes() == given.to_bytes()


@pytest.mark.parametrize("name", ["gptq", "gptq-stochastic"])
def test_the_gram_matrix_says_as_much_as_the_inputs(name):
    W, X = data((5, 7))
    H = X.T @ X / len(X)
    by_gram, by_inputs = (quantize_matrix(W, method=name, bits=3, **given) for given in (dict(H=H), dict(X=X)))
    assert by_gram.to_bytes() == by_inputs.to_bytes()


def test_the_seed_decides_what_is_drawn_and_nothing_else_does():
    W, X = data((64, 172))

    def payloads(method):
        return [quantize_matrix(W, method=method, bits=3, X=X, seed=seed).to_bytes() for seed in (1, 1, 2)]

    drawn, fixed = payloads("gptq-stochastic"), payloads("gptq")
    assert drawn[0] == drawn[1] != drawn[2]
    assert fixed[0] == fixed[1] == fixed[2]


def test_generators_follow_from_seed_and_name():
    draws = [torch.rand(4, generator=generator_for(*key)).tolist() for key in ((0, "a"), (0, "a"), (1, "a"), (0, "b"))]
    assert draws[0] == draws[1] and len({tuple(d) for d in draws}) == 3


@methods
def test_payloads_of_another_size_are_an_error(method):
    W, X = data((64, 172))
    q = quantize_matrix(W, method=method.name, bits=3, X=X)
    payload = q.to_bytes()
    for wrong in (b"", payload[:-1], payload + b"\0"):
        with pytest.raises(ValueError, match=r"payload has \d+ bytes, its .* need"):
            Quantized.from_bytes(wrong, q.header())


def test_payloads_end_with_less_than_a_byte_of_padding():
    q = quantize_matrix(data((5, 7))[0], method="rtn", bits=3, group=4)
    assert q.n_bits == 35 * 3 + 10 * (16 + 3) == 295
    assert len(q.to_bytes()) == 37 and q.to_bytes()[-1] >> 7 == 0


def test_entropy_is_counted_over_the_codes():
    W = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 3.0, 3.0]])
    q = quantize_matrix(W, method="rtn", bits=2, group="tensor")
    counts = torch.tensor([3.0, 1.0, 1.0, 3.0]) / 8
    assert q.entropy_bits == pytest.approx(16 + 2 - 8 * float((counts * counts.log2()).sum()), rel=1e-6)
    assert q.entropy_bits <= q.n_bits


@pytest.mark.parametrize("coding", [Huffman(), Huffman(chunk=16), Ans()], ids=str)
@pytest.mark.parametrize("recipe", [*RECIPES[:7], *(r for r in RECIPES[-3:])], ids=str)
def test_any_coding_stores_what_any_recipe_makes(recipe, coding):
    W, X = data((64, 172))
    fixed = quantize_matrix(W, recipe=recipe, X=X)
    q = holds_the_contract(W, X, lambda W, X: quantize_matrix(W, recipe=replace(recipe, coding=coding), X=X))
    assert q.coding == coding and same(q.dequantize(), fixed.dequantize())
    assert q.entropy_bits == fixed.entropy_bits < q.n_bits == q.coded_bits


@pytest.mark.parametrize("method", OF_MATRICES, ids=lambda m: m.name)
def test_codes_at_fixed_width_say_what_ans_would_make_of_them(method):
    W, X = data((64, 256))
    q = quantize_matrix(W, method=method.name, bits=None if method.fixed else 4, X=X)
    assert q.entropy_bits <= q.coded_bits
    if q.grid.n_codes <= 256:  # of more, tables and raw mantissas are what counts
        table = 8 * 2 * 2**8 + 8 * 40  # at most a byte for each of two alphabets of 2^8 codes, and two frames
        assert q.coded_bits <= 1.01 * q.entropy_bits + table
    if not isinstance(q.coding, Fixed):
        assert q.n_bits == q.coded_bits


def test_a_damaged_stream_is_an_error_wherever_it_is_damaged():
    W, _ = data((5, 7))
    q = quantize_matrix(W, recipe=replace(RECIPES[0], coding=Ans()))
    payload, header = q.to_bytes(), q.header()
    for at in range(len(payload) - header["streams"][0], len(payload)):
        with pytest.raises(ValueError, match="damaged"):
            Quantized.from_bytes(payload[:at] + bytes([payload[at] ^ 4]) + payload[at + 1 :], header)
    for size in range(len(payload)):
        with pytest.raises(ValueError, match=r"payload has|damaged"):
            Quantized.from_bytes(payload[:size], header)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(), "either a method or a recipe"),
        (dict(method="rtn", recipe=RECIPES[0]), "either a method or a recipe"),
        (dict(method="rtn"), "rtn needs bits"),
        (dict(method="rtn", bits=0), "rtn takes 1 to 8"),
        (dict(method="rtn", bits=1), "half-integer"),
        (dict(method="gptk", bits=4), "did you mean gptq"),
        (dict(method="rtn", bits=4, colour="red"), "colour"),
        (dict(method="gptq", bits=4, damping="1"), "gptq"),
        (dict(recipe=RECIPES[0], bits=4), "says everything itself"),
        (dict(recipe=Recipe()), "does not quantize weights"),
        (dict(method="gptq", bits=4, H=torch.eye(3)), r"\(7, 7\), found shape \(3, 3\)"),
    ],
)
def test_bad_requests_are_errors_that_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        quantize_matrix(data((5, 7))[0], **arguments)


def test_relative_errors_meet_their_definitions():
    W, X = data((5, 7))
    Q = quantize_matrix(W, method="rtn", bits=2).dequantize()
    W64, E = W.double(), (W - Q).double()
    nmse, hnmse = relative_errors(W, Q, X.T @ X / len(X))
    assert nmse == pytest.approx(float((E**2).sum() / (W64**2).sum()), rel=1e-12)
    assert hnmse == pytest.approx(float(((X @ E.T) ** 2).sum() / ((X @ W64.T) ** 2).sum()), rel=1e-12)
    zero = torch.zeros(2, 3)
    assert relative_errors(zero, zero, torch.eye(3, dtype=torch.float64)) == (0.0, 0.0)
    assert relative_errors(zero, zero + 1, torch.eye(3, dtype=torch.float64)) == (float("inf"), float("inf"))


def test_methods_have_names_of_their_own():
    assert len({m.name for m in METHODS}) == len(METHODS)
    assert all(method_named(m.name) is m for m in METHODS)


@pytest.mark.parametrize("method", [m for m in METHODS if not takes_one_matrix(m) and not turns_matrices(m)],
                         ids=lambda m: m.name)  # fmt: skip
def test_a_method_of_coordinates_or_caches_takes_a_whole_model(method):
    W, X = data((5, 7))
    whole = "takes a whole model" if method.needs == "training" else "changes a model's coordinates: it takes a whole"
    reason = whole if "weights" in method.targets else "does not quantize weights"
    with pytest.raises(ValueError, match=reason):
        quantize_matrix(W, method=method.name, bits=None if method.fixed else method.bits[-1], X=X)
