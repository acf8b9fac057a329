import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import packing
from kernels.packing import pack, unpack


@st.composite
def streams(draw):
    widths = draw(st.lists(st.integers(1, 32), max_size=5))
    return [(draw(st.lists(st.integers(0, 2**width - 1), max_size=20)), width) for width in widths]


def packed(parts):
    return pack((torch.tensor(values, dtype=torch.int64), width) for values, width in parts)


def unpacked(payload, parts):
    return [found.tolist() for found in unpack(payload, [(len(values), width) for values, width in parts])]


def packed_bit_by_bit(parts):
    bits = [value >> k & 1 for values, width in parts for value in values for k in range(width)]
    octets = bytearray(-(-len(bits) // 8))
    for i, bit in enumerate(bits):
        octets[i // 8] |= bit << i % 8
    return bytes(octets)


@given(streams())
def test_packing_puts_the_lowest_bit_first_and_pads_only_the_end(parts):
    assert packed(parts) == packed_bit_by_bit(parts)


@given(streams())
def test_unpacking_inverts_packing(parts):
    assert unpacked(packed(parts), parts) == [values for values, _ in parts]


@pytest.mark.parametrize("width", range(1, 33))
def test_every_width_takes_its_smallest_and_largest_values(width):
    parts = [([0, 2**width - 1, 1, 2 ** (width - 1)], width)]
    assert len(packed(parts)) == -(-4 * width // 8)
    assert unpacked(packed(parts), parts) == [values for values, _ in parts]


@settings(max_examples=50)
@given(streams(), st.integers(1, 7))
def test_pieces_join_without_a_seam(parts, chunk):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_CHUNK", chunk)
        assert packed(parts) == packed_bit_by_bit(parts)
        assert unpacked(packed(parts), parts) == [values for values, _ in parts]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_the_type_and_the_strides_of_the_values_do_not_matter(dtype):
    values = torch.arange(12, dtype=dtype).reshape(3, 4)
    assert pack([(values.T, 4)]) == packed_bit_by_bit([(values.T.reshape(-1).tolist(), 4)])


@given(streams(), st.sampled_from([-1, 1]))
def test_a_payload_of_another_size_is_an_error(parts, more):
    payload = packed(parts)
    wrong = payload[:-1] if more < 0 else payload + b"\0"
    if len(wrong) != len(payload):
        with pytest.raises(ValueError, match=f"has {len(wrong)} bytes, its streams need {len(payload)}"):
            unpacked(wrong, parts)
