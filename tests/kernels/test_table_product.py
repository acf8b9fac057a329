"""Table weights: the lookup executed as PTX's manual says, packing, bitsandbytes' weights bit for bit, bad input."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.product.words import columns, from_words
from kernels.table_product import NF4, SecondScale, TableWeights, pack, pack_flat, plan, table_product, triton
from kernels.table_product.packing import HEADER, LAYOUT, SECOND_BLOCK
from kernels.table_product.reference import dequantize, scales, table_product_reference
from suite.grids.elements import ELEMENTS

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn_codes(seed: int, outputs: int, inputs: int) -> torch.Tensor:
    return torch.randint(16, (outputs, inputs), generator=generator(seed), dtype=torch.uint8)


def second_scale(seed: int, blocks: int) -> SecondScale:
    draw = generator(seed)
    scale = torch.rand(-(-blocks // SECOND_BLOCK), generator=draw)
    return SecondScale(torch.randn(256, generator=draw), scale, torch.randn((), generator=draw))


# what the GPU executes: the inline assembly, word by word


def _bytes(word):
    return np.ascontiguousarray(np.asarray(word, "<u4")[..., None]).view(np.uint8)


def _permuted(a, b, selector):
    """Byte i is the one of a's and b's eight that hexadecimal digit i names; over 7, eight times its sign."""
    a, b, selector = np.broadcast_arrays(a, b, selector)
    eight = np.concatenate([_bytes(a), _bytes(b)], -1)
    digits = selector[..., None] >> np.arange(0, 16, 4) & 15
    picked = np.take_along_axis(eight, digits & 7, -1)
    spread = np.where(picked >= 128, 255, 0).astype(np.uint8)
    return np.ascontiguousarray(np.where(digits > 7, spread, picked)).view("<u4")[..., 0].astype(np.int64)


def _logical(a, b, c, table):
    """Bit by bit: the entry of the truth table, 8 bits, that the bits of a, b and c name."""
    terms = ((a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c) for i in range(8) if table >> i & 1)
    return np.bitwise_or.reduce(np.stack(np.broadcast_arrays(*terms)))


_OPERATIONS = {
    "shl.b32": lambda a, b: a << b,
    "and.b32": lambda a, b: a & b,
    "lop3.b32": lambda a, b, c, table: _logical(a, b, c, int(table)),
    "prmt.b32": _permuted,
}


def looked_up(piece: int, words: np.ndarray, octets: torch.Tensor) -> np.ndarray:
    """Run the lookup on 32-bit words, with the table in the operands that the kernel puts it in."""
    known = {"$1": words.astype(np.int64)}
    known |= {f"${2 + 2 * i}": np.int64(value & 0xFFFFFFFF) for i, value in enumerate(octets.tolist())}
    for statement in triton.lookup_assembly(piece).strip("{}\n").split(";"):
        if not statement.strip() or statement.strip().startswith(".reg"):
            continue
        name, operands = statement.strip().split(" ", 1)
        target, *sources = re.split(r",\s*", operands)
        values = [known[source] if source in known else np.int64(int(source, 0)) for source in sources]
        known[target] = _OPERATIONS[name](*values) & 0xFFFFFFFF
    return known["$0"]


@pytest.mark.parametrize("piece", range(4))
def test_every_pair_of_words_as_a_gpu_looks_it_up(piece):
    """All 2^16 words in either half of a register, beside a word that goes through them in another order."""
    table = torch.randn(16, generator=generator(piece)).half()
    octets = pack(drawn_codes(0, 1, 1), torch.ones(1, 1), table, group=32).octets[0]
    low = np.arange(2**16, dtype=np.int64)
    high = low * 40503 % 2**16
    bits = table.view(torch.int16).numpy().astype(np.int64) & 0xFFFF
    found = looked_up(piece, high << 16 | low, octets)
    assert np.array_equal(found & 0xFFFF, bits[low >> 4 * piece & 15])
    assert np.array_equal(found >> 16, bits[high >> 4 * piece & 15])


def test_operands_are_the_words_and_the_table_in_twos():
    operands = {int(number) for piece in range(4) for number in re.findall(r"\$(\d+)", triton.lookup_assembly(piece))}
    assert operands == {0, 1, *range(2, 18, 2)}


# packing


@given(st.integers(1, 20), st.integers(1, 400), st.integers(1, 5), st.booleans(), st.integers(0, 2**32))
def test_packing_loses_nothing(outputs, inputs, runs, double, seed):
    group, draw = 16 * runs, generator(seed)
    groups = -(-inputs // group)
    codes = drawn_codes(seed, outputs, inputs)
    second = second_scale(seed, outputs * groups) if double else None
    kind = torch.uint8 if double else torch.float32
    scale = (torch.rand(outputs, groups, generator=draw) * 255).to(kind)
    weights = pack(codes, scale, torch.tensor(NF4), group=group, second=second)
    assert torch.equal(from_words(weights.words, LAYOUT, outputs, inputs), codes.int())
    if second is None:
        assert torch.equal(scales(weights), scale)
    else:
        block = torch.arange(outputs * groups).view(outputs, groups)
        expected = second.values[scale.long()] * second.scale[block // SECOND_BLOCK] + second.offset
        assert torch.equal(scales(weights), expected)


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4 + 8 / 64 + 32 / (64 * 256))])
def test_bits_of_a_weight(double, bits):
    """Blocks of 64: absmax in float32, or in 8 bits and a float32 for 256 of them (QLoRA, section 3: 4.127)."""
    blocks = 512 * 1024 // 64
    second = second_scale(0, blocks) if double else None
    scale = torch.zeros(512, 1024 // 64, dtype=torch.uint8 if double else torch.float32)
    weights = pack(drawn_codes(0, 512, 1024), scale, torch.tensor(NF4), group=64, second=second)
    stored = weights.words.nbytes + weights.scale.nbytes + (weights.second.nbytes - 4 * HEADER if double else 0)
    assert stored * 8 / (512 * 1024) == bits


def test_nf4_is_the_suites():
    assert ELEMENTS["nf4"].levels == NF4


# against bitsandbytes


def from_bitsandbytes(seed: int, outputs: int, inputs: int, block: int, double: bool, kind: str = "nf4"):
    functional = pytest.importorskip("bitsandbytes").functional
    dense = torch.randn(outputs, inputs, generator=generator(seed))
    packed, state = functional.quantize_4bit(dense, blocksize=block, compress_statistics=double, quant_type=kind)
    second = SecondScale(state.state2.code, state.state2.absmax, state.offset) if double else None
    weights = pack_flat(
        packed, state.absmax, state.code, outputs=outputs, inputs=inputs, block=block, second=second
    )  # fmt: skip
    return weights, functional.dequantize_4bit(packed, state)


@pytest.mark.parametrize("double", [False, True], ids=["single", "double"])
@pytest.mark.parametrize(("outputs", "inputs", "block"), [(40, 256, 64), (3, 64, 64), (33, 1024, 32), (7, 512, 256)])
def test_weights_are_those_of_bitsandbytes(outputs, inputs, block, double):
    """Bit for bit: a product of two float32 is exact in float64, and float() rounds it as they do."""
    weights, theirs = from_bitsandbytes(outputs, outputs, inputs, block, double)
    assert torch.equal(dequantize(weights).float(), theirs)


def test_fp4_of_bitsandbytes_is_a_table_too():
    weights, theirs = from_bitsandbytes(0, 8, 128, 64, False, "fp4")
    assert torch.equal(dequantize(weights).float(), theirs)


@DTYPES
def test_product_with_weights_of_bitsandbytes(dtype):
    """Rows of the identity give the weights themselves: entries rounded to the type, then once to the output."""
    weights, theirs = from_bitsandbytes(1, 24, 128, 64, True)
    x = torch.eye(128)[::5].contiguous().to(dtype)
    unit = torch.finfo(dtype).eps  # half of it for the table's entry, a whole one for the output, which may be cut off
    assert (table_product(x, weights).T.double() - theirs[:, ::5]).abs().le(1.5 * unit * theirs[:, ::5].abs()).all()


# the kernel, interpreted


@DTYPES
def test_every_entry_in_every_place(dtype):
    """With a scale of one and rows of the identity, outputs are entries: no bit may differ."""
    table = torch.randn(16, generator=generator(3)).half()
    codes = (torch.arange(128)[None, :] * 5 + torch.arange(16)[:, None]) % 16
    weights = pack(codes, torch.ones(16, 1), table, group=128)
    x = torch.eye(128, dtype=dtype)
    expected = table.to(dtype)[codes].T
    assert torch.equal(torch.cat([table_product(part.contiguous(), weights) for part in x.split(64)]), expected)


@settings(max_examples=15)
@given(
    rows=st.sampled_from([1, 2, 17]),
    outputs=st.integers(1, 40),
    inputs=st.integers(1, 300),
    group=st.sampled_from([None, 16, 32, 64, 80, 128, 160]),
    scale=st.sampled_from([torch.float16, torch.float32, torch.uint8]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**32),
)
def test_any_size(rows, outputs, inputs, group, scale, dtype, seed):
    """Sums in float32 err by less than 2^-24 for each input; the output is rounded once, or cut off."""
    draw = generator(seed)
    groups = 1 if group is None else -(-inputs // group)
    second = second_scale(seed, outputs * groups) if scale == torch.uint8 else None
    stored = (torch.rand(outputs, groups, generator=draw) * 200).to(scale)
    table = torch.randn(16, generator=draw)
    weights = pack(drawn_codes(seed, outputs, inputs), stored, table, group=group, second=second)
    x = torch.randn(rows, inputs, generator=draw).to(dtype)
    expected = table_product_reference(x, weights)
    size = x.double().abs() @ dequantize(weights, dtype).abs().T  # what errors of a sum are relative to
    allowed = expected.abs() * torch.finfo(dtype).eps + size * (inputs + 4) * 2.0**-24 + 2.0**-24  # float16's smallest
    inside = expected.abs() < torch.finfo(dtype).max
    assert ((table_product(x, weights).double() - expected).abs() <= allowed)[inside].all()


# bad input


def good() -> TableWeights:
    return pack(drawn_codes(0, 9, 100), torch.ones(9, 2), torch.tensor(NF4), group=64)


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (dict(codes=torch.full((9, 100), 16)), r"codes lie in \[16, 16\], expected \[0, 15\]"),
        (dict(codes=torch.zeros(9, 100)), "codes is torch.float32, expected torch.uint8"),
        (dict(codes=drawn_codes(0, 0, 100)), r"codes has shape \(0, 100\), expected at least one weight"),
        (dict(group=40), "group is 40, expected a positive multiple of 16"),
        (dict(scale=torch.ones(9, 3)), r"scale has shape \(9, 3\), expected \(9, 2\)"),
        (dict(scale=torch.ones(9, 2).bfloat16()), "scale is torch.bfloat16, expected torch.float16 or torch.float32"),
        (dict(scale=torch.ones(2, 9).T), "expected a contiguous tensor"),
        (dict(scale=torch.ones(9, 2, device="meta")), "scale is on meta, expected cpu"),
        (dict(second=second_scale(0, 18)), "scale is torch.float32, expected torch.uint8"),
        (dict(table=torch.zeros(8)), r"table has shape \(8,\), expected \(16\)"),
        (dict(table=torch.full((16,), 7e4)), "expected finite ones up to 65504 in magnitude"),
        (dict(table=torch.full((16,), float("nan"))), "expected finite ones"),
    ],
)  # fmt: skip
def test_bad_weights(what, match):
    given = dict(codes=drawn_codes(0, 9, 100), scale=torch.ones(9, 2), table=torch.tensor(NF4), group=64) | what
    with pytest.raises(ValueError, match=match):
        pack(given.pop("codes"), given.pop("scale"), given.pop("table"), **given)


def test_bad_second_scales():
    scale, second = torch.zeros(9, 2, dtype=torch.uint8), second_scale(0, 18)
    with pytest.raises(ValueError, match=r"second.values has shape \(16,\), expected \(256\)"):
        pack(drawn_codes(0, 9, 100), scale, torch.tensor(NF4), group=64, second=replace(second, values=torch.ones(16)))
    with pytest.raises(ValueError, match=r"second.scale has shape \(2,\), expected \(1\)"):
        pack(drawn_codes(0, 9, 100), scale, torch.tensor(NF4), group=64, second=replace(second, scale=torch.ones(2)))


def test_bad_flat_weights():
    table = torch.tensor(NF4)
    with pytest.raises(ValueError, match="inputs is 100, expected a positive multiple of 64"):
        pack_flat(torch.zeros(450, 1, dtype=torch.uint8), torch.ones(15), table, outputs=9, inputs=100)
    with pytest.raises(ValueError, match=r"packed has shape \(450,\), expected \(576\)"):
        pack_flat(torch.zeros(450, 1, dtype=torch.uint8), torch.ones(18), table, outputs=9, inputs=128)
    with pytest.raises(ValueError, match=r"scale has shape \(9, 2\), expected \(18\)"):
        pack_flat(torch.zeros(576, 1, dtype=torch.uint8), torch.ones(9, 2), table, outputs=9, inputs=128)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.zeros(1, 100), "x is torch.float32, expected torch.float16 or torch.bfloat16"),
        (torch.zeros(1, 99).half(), r"x has shape \(1, 99\), expected \(any, 100\)"),
        (torch.zeros(100).half(), r"x has shape \(100,\), expected \(any, 100\)"),
        (torch.zeros(100, 2).half().T, "expected a contiguous tensor"),
        (torch.zeros(1, 100, device="meta").half(), "x is on meta, expected cpu"),
    ],
)
def test_bad_activations(x, match):
    with pytest.raises(ValueError, match=match):
        table_product(x, good())


@pytest.mark.parametrize(
    ("part", "value", "match"),
    [
        ("words", torch.zeros(1, 1, 32, 8, dtype=torch.int16), r"words has shape \(1, 1, 32, 8\)"),
        ("scale", torch.ones(2, 16, dtype=torch.uint8), "scale is torch.uint8"),
        ("octets", torch.zeros(2, 8), "octets is torch.float32, expected torch.int32"),
        ("second", torch.zeros(HEADER), "scale is torch.float32, expected torch.uint8"),
    ],
)
def test_parts_that_do_not_belong_together(part, value, match):
    with pytest.raises(ValueError, match=match):
        plan(torch.zeros(1, 100).half(), replace(good(), **{part: value}))


def test_second_scales_reach_over_all_that_is_padded():
    """The last padded output's last padded group looks up the last number stored."""
    weights = pack(
        drawn_codes(0, 9, 100), torch.zeros(9, 4, dtype=torch.uint8), torch.tensor(NF4), group=32,
        second=second_scale(0, 36),
    )  # fmt: skip
    last = (columns(9) - 1) * 4 + weights.scale.shape[0] - 1
    assert weights.second.numel() == HEADER + last // SECOND_BLOCK + 1
    with pytest.raises(ValueError, match=r"second has shape \(258,\)"):
        plan(torch.zeros(1, 100).half(), replace(weights, second=weights.second[:HEADER].clone()))
