"""Words of 16 bits: every layout there and back, nothing wasted, and the assembly that takes them apart."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.product.triton import raise_assembly, shift_assembly
from kernels.product.words import COLUMNS, Layout, columns, fields, from_words, per_group, to_words

WIDTHS = (1, 2, 3, 4, 6, 8, 16)
LAYOUTS = [Layout(bits, rows) for bits in WIDTHS for rows in (16, 32)] + [Layout(bits, 16, 2) for bits in (2, 4, 8)]
BY_LAYOUT = pytest.mark.parametrize("layout", LAYOUTS, ids=str)


def drawn(seed: int, bits: int, *shape: int) -> torch.Tensor:
    return torch.randint(2**bits, shape, generator=torch.Generator().manual_seed(seed))


@given(st.sampled_from(LAYOUTS), st.integers(1, 20), st.integers(1, 1100), st.integers(0, 2**32))
def test_unpacking_inverts_packing(layout, outputs, inputs, seed):
    codes = drawn(seed, layout.bits, outputs, inputs)
    words = to_words(codes, layout)
    assert words.shape == (layout.tiles(inputs), layout.planes, layout.rows, columns(outputs))
    assert torch.equal(from_words(words, layout, outputs, inputs), codes.int())


@BY_LAYOUT
def test_every_bit_of_a_word_belongs_to_one_bit_of_one_code(layout):
    places = [
        (plane, shift + i, piece, at + i)
        for piece in range(layout.pieces)
        for plane, shift, mask, at in fields(layout, piece)
        for i in range(mask.bit_length())
    ]
    assert {place[:2] for place in places} == {(plane, bit) for plane in range(layout.planes) for bit in range(16)}
    assert {place[2:] for place in places} == {(p, bit) for p in range(layout.pieces) for bit in range(layout.bits)}
    assert len(places) == 16 * layout.planes  # no bit twice, on either side


@BY_LAYOUT
def test_whole_tiles_take_exactly_the_bits_of_their_codes(layout):
    inputs = 3 * layout.inputs
    words = to_words(drawn(0, layout.bits, 2 * COLUMNS, inputs), layout)
    assert words.nbytes * 8 == layout.bits * 2 * COLUMNS * inputs


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout.pieces > 1], ids=str)
def test_fields_of_a_word_are_inputs_a_row_of_words_apart(layout):
    codes = torch.zeros(1, layout.inputs, dtype=torch.int64)
    codes[0, layout.rows + 5] = 1  # piece 1, row 5
    words = to_words(codes, layout)
    (plane, shift, _, _), *_ = fields(layout, 1)
    assert words[0, plane, 5, 0].item() & 0xFFFF == 1 << shift and words.count_nonzero() == 1


@pytest.mark.parametrize("wrong", [-1, 8])
def test_codes_out_of_range_are_refused(wrong):
    codes = torch.tensor([[0, 7, wrong]])
    with pytest.raises(ValueError, match=rf"codes lie in \[{min(0, wrong)}, {max(7, wrong)}\], expected \[0, 7\]"):
        to_words(codes, Layout(3))


def test_a_width_without_a_layout_is_refused():
    with pytest.raises(ValueError, match="codes of 5 bits have no layout"):
        to_words(torch.zeros(1, 480, dtype=torch.int64), Layout(5))


def test_parameters_are_laid_out_by_group_and_padded_with_zeros():
    values = torch.arange(1.0, 7).reshape(2, 3)
    laid = per_group(values, Layout(4), inputs=130, group=64)
    assert laid.shape == (4, COLUMNS)  # two tiles of 128 inputs
    assert torch.equal(laid[:3, :2], values.T) and laid.count_nonzero() == 6


# what a GPU executes, as PTX's manual says: lop3's table is what the operation makes of 0xF0, 0xCC and 0xAA


def executed(assembly: str, word: int, ctaid: int = 0) -> int:
    known = {"$1": word, "%ctaid.z": ctaid}
    for statement in assembly.strip("{} ").split(";"):
        name, _, operands = statement.strip().partition(" ")
        if not name or name == ".reg":
            continue
        target, *sources = operands.split(", ")
        values = [known[s] if s in known else int(s, 0) for s in sources]
        known[target] = _OPERATIONS[name](*values) & 0xFFFFFFFF
    return known["$0"]


def _lop3(a, b, c, table):
    return sum((table >> ((a >> i & 1) * 4 + (b >> i & 1) * 2 + (c >> i & 1)) & 1) << i for i in range(32))


_OPERATIONS = {
    "mov.u32": lambda a: a, "shr.u32": lambda a, b: a >> b, "shr.b32": lambda a, b: a >> b,
    "or.b32": lambda a, b: a | b, "lop3.b32": _lop3,
}  # fmt: skip


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.integers(0, 2**15 - 1),
       st.integers(0, 2**16 - 1))  # fmt: skip
def test_raising_as_a_gpu_does_it(low, high, mask, magic, ctaid):
    found = executed(raise_assembly(mask, magic), low | high << 16, ctaid)
    assert (found & 0xFFFF, found >> 16) == (low & mask ^ magic, high & mask ^ magic)


@given(st.integers(0, 2**16 - 1), st.integers(0, 2**16 - 1), st.integers(0, 15))
def test_shifting_as_a_gpu_does_it(low, high, by):
    found = executed(shift_assembly(by), low | high << 16)
    assert (found >> 16) == high >> by
    kept = 2 ** (16 - by) - 1  # the bits above are undefined
    assert found & kept == np.uint16(low) >> by
