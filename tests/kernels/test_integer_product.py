"""Integer weights: every code exactly, sums within their rounding, and the suite's grids through the kernel."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from triton.runtime import interpreter

from kernels.check import excess_of
from kernels.integer_product import IntegerWeights, integer_product, integer_product_reference, pack, plan
from kernels.integer_product.packing import WIDTHS, layout_of
from kernels.integer_product.reference import dequantize
from kernels.launch import Launch
from kernels.product import choices
from kernels.product.triton import candidates
from suite.grids import Integer

HALVES = (torch.float16, torch.bfloat16)
BY_WIDTH = pytest.mark.parametrize("bits", WIDTHS)
BY_TYPE = pytest.mark.parametrize("dtype", HALVES, ids=str)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(
    seed: int, outputs: int, inputs: int, bits: int, group: int | None, zero: bool
) -> tuple[IntegerWeights, torch.Tensor]:
    """Weights, and the largest size of each term s (q - middle) + s (middle - z) that the kernel adds up."""
    draw = generator(seed)
    codes = torch.randint(2**bits, (outputs, inputs), generator=draw)
    shape = (outputs, 1 if group is None else -(-inputs // group))
    scale = (0.5 + torch.rand(shape, generator=draw)).half()
    zeros = ((2**bits - 1) * torch.rand(shape, generator=draw)).half() if zero else None
    weights = pack(codes, scale, zeros, bits=bits, group=group)
    spread = 2.0 ** (bits - 1) * (2 if zero else 1)
    return weights, spread * scale.double().amax()


def gaussian(seed: int, rows: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=generator(seed)).to(dtype)


def close(found: torch.Tensor, x: torch.Tensor, weights: IntegerWeights, largest: torch.Tensor) -> bool:
    """Within what float32 sums of products that are exact may err, and a rounding of the output.

    A sum of n terms is off by n 2^-24 of the sum of their sizes at most; scale, zero point and the sum over groups are
    three more roundings.
    """
    reference = integer_product_reference(x, weights)
    sizes = (x.double().abs().sum(1).max() * largest).item()
    rms = reference.square().mean().sqrt().item()
    return excess_of(found, reference, (x.shape[1] + 3) * 2.0**-24 * sizes / max(rms, 1e-30)) <= 1


# decoding


@BY_TYPE
@BY_WIDTH
def test_every_code_is_exact_in_every_place_of_a_tile(bits, dtype):
    inputs, outputs = layout_of(bits).inputs, 2**bits
    codes = (torch.arange(outputs)[:, None] + torch.arange(inputs)) % outputs
    weights = pack(codes, torch.ones(outputs, 1, dtype=torch.float16), bits=bits)
    found = integer_product(torch.eye(inputs, dtype=dtype), weights)
    assert torch.equal(found.T, (codes - outputs // 2).to(dtype))


@BY_TYPE
@BY_WIDTH
def test_zero_points_of_any_value_are_exact(bits, dtype):
    """Multiples of a quarter and scales that are powers of two: float32 rounds nowhere."""
    inputs, outputs = layout_of(bits).inputs, 2**bits
    codes = (torch.arange(outputs)[:, None] + torch.arange(inputs)) % outputs
    zero = (torch.arange(outputs) / 4 - 1).half()[:, None]
    scale = 2.0 ** (torch.arange(outputs) % 5 - 2).half()[:, None]
    weights = pack(codes, scale, zero, bits=bits)
    assert torch.equal(dequantize(weights), (codes - zero.double()) * scale.double())
    found = integer_product(torch.eye(inputs, dtype=dtype), weights)
    assert excess_of(found.T, dequantize(weights), 0.0) <= 1  # one rounding, of the output


# products


@settings(max_examples=20)
@given(
    st.sampled_from(WIDTHS), st.booleans(), st.sampled_from([None, 1, 2, 3, 4, 5, 8, 16]), st.integers(1, 70),
    st.integers(1, 140), st.integers(1, 300), st.sampled_from(HALVES), st.integers(0, 2**32),
)  # fmt: skip
def test_products_are_within_their_rounding(bits, zero, rows_in_group, rows, outputs, inputs, dtype, seed):
    group = None if rows_in_group is None else rows_in_group * layout_of(bits).rows
    weights, largest = drawn(seed, outputs, inputs, bits, group, zero)
    x = gaussian(seed, rows, inputs, dtype)
    assert close(integer_product(x, weights), x, weights, largest)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(1, 1, 1), (3, 1, 1), (65, 9, 40), (129, 66, 65), (200, 8, 33)]
)
def test_extreme_sizes(rows, outputs, inputs, zero):
    weights, largest = drawn(0, outputs, inputs, 4, 32, zero)
    x = gaussian(1, rows, inputs, torch.float16)
    found = integer_product(x, weights)
    assert found.shape == (rows, outputs) and close(found, x, weights, largest)


@pytest.mark.parametrize(("bits", "group"), [(2, 64), (3, "row"), (4, 64), (8, "row")])
@pytest.mark.parametrize("convention", ["asymmetric", "real-zero", "full-range", "span", "signed-max", "half-integer"])
def test_the_suites_integers_multiply_as_they_decode(bits, group, convention):
    W = torch.randn(20, 200, generator=generator(bits))
    fitted = Integer(bits=bits, convention=convention, group=group).fit(W)
    codes = fitted.nearest(W)
    zero = fitted.zero if fitted.zero is not None else torch.full_like(fitted.scale, fitted.grid.zero)
    weights = pack(
        codes, fitted.scale.half().contiguous(), zero.half().contiguous(), bits=bits,
        group=None if group == "row" else group,
    )  # fmt: skip
    Q = fitted.decode32(codes).double()
    torch.testing.assert_close(dequantize(weights), Q, rtol=2.0**-23, atol=0)  # float32's (q - z) s
    x = gaussian(7, 2, 200, torch.float16)
    magnitude = x.double().abs().sum(1).max() * (fitted.scale.abs() * (zero.abs() + 2**bits)).max()
    reference = x.double() @ Q.T
    allowed = 203 * 2.0**-24 * magnitude / reference.square().mean().sqrt()
    assert excess_of(integer_product(x, weights), reference, allowed.item()) <= 1


@pytest.mark.parametrize(("bits", "group", "zero", "expected"), [
    (4, 128, False, 4.125), (4, 128, True, 4.25), (4, 32, False, 4.5), (3, 64, False, 3.25), (2, 64, True, 2.5),
    (8, None, False, 8 + 16 / 1536),
])  # fmt: skip
def test_bits_of_a_weight(bits, group, zero, expected):
    weights, _ = drawn(0, 16, 1536, bits, group, zero)
    parts = [part for part in (weights.words, weights.scale, weights.zero) if part is not None]
    assert sum(part.nbytes for part in parts) * 8 / (16 * 1536) == expected


def test_a_group_that_holds_all_inputs_is_the_channel():
    codes, scale = torch.ones(2, 50, dtype=torch.uint8), torch.ones(2, 1, dtype=torch.float16)
    first, second = pack(codes, scale, bits=4), pack(codes, scale, bits=4, group=50)
    assert first.group == second.group == 128 and torch.equal(first.words, second.words)


# programs that share their inputs


@pytest.fixture
def split():
    """A product whose inputs nine programs share, and its launches with other splits."""
    weights, largest = drawn(3, 70, 9 * 64, 8, 64, True)
    x = gaussian(4, 5, 9 * 64, torch.float16)

    def launched(splits: int) -> Launch:
        launch = plan(x, weights)
        constants, arguments = dict(launch.constants), dict(launch.arguments)
        grid = (*launch.grid[:2], splits)
        arguments["partial"] = torch.full((splits, 5, 72), torch.nan)
        arguments["tickets"] = torch.zeros(grid[0] * grid[1], dtype=torch.int32)
        constants["SPLITS"] = splits
        return replace(launch, grid=grid, arguments=arguments, constants=constants)

    return launched, lambda found: close(found, x, weights, largest)


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 7, 9, 13])
def test_any_number_of_splits_gives_the_product(split, splits):
    """Four shares of nine tiles are three each and none for the last; thirteen leave four programs with nothing."""
    launched, within = split
    launch = launched(splits)
    found = launch.run()
    assert within(found)
    assert not launch.arguments["tickets"].any()  # so that it may run again
    assert torch.equal(found.clone(), launch.run())


def test_any_order_of_programs_gives_the_same_bits(split, monkeypatch):
    launched, _ = split
    launch = launched(4)
    wanted = launch.run().clone()
    places = [(a, b, c) for a in range(launch.grid[0]) for b in range(launch.grid[1]) for c in range(4)]
    builder = type(interpreter.interpreter_builder)
    set_place = builder.set_grid_idx
    for seed in range(5):
        shuffled = random.Random(seed).sample(places, len(places))
        order = dict(zip(places, shuffled, strict=True))
        visited = []

        def visit(self, *at, order=order, visited=visited):
            visited.append(order[at])
            set_place(self, *order[at])

        monkeypatch.setattr(builder, "set_grid_idx", visit)
        launch.output.fill_(torch.nan)
        assert torch.equal(launch.run(), wanted), seed
        assert visited == shuffled and not launch.arguments["tickets"].any()


def test_candidates_are_other_ways_to_the_same_product():
    weights, largest = drawn(5, 130, 512, 4, 128, True)
    x = gaussian(6, 3, 512, torch.float16)
    launch = plan(x, weights)
    found = candidates(launch)
    assert found[0] is launch and len(found) > 5
    shapes = {(c.grid, c.num_warps, c.constants["BLOCK_N"], c.constants["STAGES"]) for c in found}
    assert len(shapes) == len(found)
    for candidate in found:
        assert candidate.output is launch.output
        candidate.output.fill_(torch.nan)
        assert close(candidate.run(), x, weights, largest)


def test_a_kernel_of_its_own_has_no_candidates():
    launch = replace(plan(*small()), function=None)
    assert candidates(launch) == (launch,)


# what a plan chooses: packed words and inputs of a tile by width

TILES = {2: (32, 256), 3: (48, 256), 4: (32, 128), 8: (32, 64)}


@st.composite
def problems(draw):
    words, inputs = TILES[draw(st.sampled_from(WIDTHS))]
    sizes = st.integers(1, 30000)
    return choices.Problem(
        draw(st.integers(1, 300)), -(-draw(sizes) // 8) * 8, -(-draw(sizes) // inputs), words, inputs,
        draw(st.sampled_from([1, 108, 132, 148])), draw(st.sampled_from([(9, 0), (10, 0), (12, 0)])),
    )  # fmt: skip


@given(problems())
def test_choices_fit_the_machine(problem):
    first = choices.default(problem)
    found = [first, *choices.alternatives(problem, first)]
    assert len(set(found)) == len(found)
    for choice in found:
        assert choice.block_m in (16, 32, 64) and choice.block_n in (64, 128, 256) and 3 <= choice.stages + 1 <= 8
        assert 1 <= choice.splits <= problem.tiles
    turn = 2 * (problem.words * first.block_n + problem.inputs * first.block_m)
    resident = -(-choices.programs(problem, first) // problem.multiprocessors)
    if resident <= choices.RESIDENT[first.block_m] * 128 // first.block_n and first.stages > 3:
        assert resident * (first.stages - 1) * turn <= choices.SHARED
    share = -(-problem.tiles // first.splits)
    assert first.splits == 1 or share >= 2


@pytest.mark.parametrize("rows", [1, 16, 32, 64])
@pytest.mark.parametrize(("outputs", "inputs"), [(28672, 8192), (8192, 28672), (14336, 4096), (4096, 4096)])
def test_large_products_fill_132_multiprocessors_once(rows, outputs, inputs):
    problem = choices.Problem(rows, outputs, inputs // 128, 32, 128, 132)
    programs = choices.programs(problem, choices.default(problem))
    assert 1 <= programs / 132 <= choices.RESIDENT[max(rows, 16)]


# errors


def small() -> tuple[torch.Tensor, IntegerWeights]:
    return torch.ones(2, 64, dtype=torch.float16), drawn(0, 3, 64, 4, 32, True)[0]


@pytest.mark.parametrize(("arguments", "complaint"), [
    ({"bits": 5}, r"weights of 5 bits, expected one of \(2, 3, 4, 8\)"),
    ({"codes": torch.zeros(3, 64)}, r"codes is torch.float32, expected torch.uint8 or torch.int32"),
    ({"codes": torch.zeros(192, dtype=torch.uint8)}, r"codes has shape \(192,\), expected \(any, any\)"),
    ({"codes": torch.zeros(3, 0, dtype=torch.uint8)}, r"codes has shape \(3, 0\), expected at least one weight"),
    ({"codes": torch.full((3, 64), 16)}, r"codes lie in \[16, 16\], expected \[0, 15\]"),
    ({"codes": torch.zeros(64, 3, dtype=torch.uint8).T}, r"codes of shape \(3, 64\) has strides \(1, 3\)"),
    ({"scale": torch.ones(3, 2)}, r"scale is torch.float32, expected torch.float16"),
    ({"scale": torch.ones(3, 3).half()}, r"scale has shape \(3, 3\), expected \(3, 2\)"),
    ({"zero": torch.ones(2, 3).half()}, r"zero has shape \(2, 3\), expected \(3, 2\)"),
    ({"zero": torch.ones(3, 2, dtype=torch.uint8)}, r"zero is torch.uint8, expected torch.float16"),
    ({"scale": torch.ones(3, 2, device="meta").half()}, r"scale is on meta, expected cpu"),
    ({"group": 48, "scale": torch.ones(3, 2).half()}, r"group is 48, expected a positive multiple of 32"),
    ({"group": 0, "scale": torch.ones(3, 64).half()}, r"group is 0, expected a positive multiple of 32"),
])  # fmt: skip
def test_packing_refuses(arguments, complaint):
    good = {
        "codes": torch.zeros(3, 64, dtype=torch.uint8), "scale": torch.ones(3, 2).half(), "bits": 4, "group": 32,
    }  # fmt: skip
    pack(**good)
    with pytest.raises(ValueError, match=complaint):
        pack(**(good | arguments))


@pytest.mark.parametrize(("x", "complaint"), [
    (torch.ones(2, 64), r"x is torch.float32, expected torch.float16 or torch.bfloat16"),
    (torch.ones(64).half(), r"x has shape \(64,\), expected \(any, 64\)"),
    (torch.ones(2, 65).half(), r"x has shape \(2, 65\), expected \(any, 64\)"),
    (torch.ones(64, 2).half().T, r"x of shape \(2, 64\) has strides \(1, 2\), expected a contiguous tensor"),
    (torch.ones(0, 64).half(), r"x has shape \(0, 64\), expected 1 to 2\^31 - 1 numbers"),
    (torch.ones(2, 64, device="meta").half(), r"x is on meta, expected cpu"),
    ([1.0], r"x is a list, expected a tensor"),
])  # fmt: skip
def test_activations_are_refused(x, complaint):
    with pytest.raises(ValueError, match=complaint):
        integer_product(x, small()[1])


@pytest.mark.parametrize(("parts", "complaint"), [
    ({"bits": 5}, r"weights of 5 bits, expected one of"),
    ({"bits": 8}, r"scale has shape \(4, 8\), expected \(2, 8\)"),
    ({"group": 33}, r"group is 33, expected a positive multiple of 32"),
    ({"group": 64}, r"scale has shape \(4, 8\), expected \(2, 8\)"),
    ({"outputs": 9}, r"words has shape \(1, 1, 32, 8\), expected \(1, 1, 32, 16\)"),
    ({"words": torch.zeros(1, 1, 32, 8, dtype=torch.int32)}, r"words is torch.int32, expected torch.int16"),
    ({"zero": torch.zeros(4, 8)}, r"zero is torch.float32, expected torch.float16"),
    ({"scale": torch.zeros(8, 4).half().T}, r"scale of shape \(4, 8\) has strides"),
])  # fmt: skip
def test_weights_that_do_not_belong_together_are_refused(parts, complaint):
    x, weights = small()
    with pytest.raises(ValueError, match=complaint):
        integer_product(x, replace(weights, **parts))
