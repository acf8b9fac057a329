import sys
from contextlib import nullcontext
from math import prod
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode

from kernels import yardsticks
from kernels.cache_attention.rows import Decoding
from kernels.check import excess_of
from kernels.coded_product.rows import Matrix
from kernels.contender import Absent
from kernels.fast_hadamard.rows import Rows
from kernels.hadamard import hadamard
from kernels.peers import attention, coding, packing, products, transforms
from kernels.results import Shape


def error(made, call=-1):
    return excess_of(made.calls[call](), made.reference, made.tolerance)


def test_bitsandbytes_is_called_as_it_wants_to_be():
    made = products.bitsandbytes(Shape(1, 64, 128), 0, "cpu", 10_000)
    assert len(made.calls) == 3 and made.bytes_moved == 64 * 64 + 4 * 128 + 256 + 128 and made.bytes_written == 128
    assert error(made) < 1


def test_bitsandbytes_packs_to_the_nearest_level():
    made = packing.bitsandbytes_pack(Matrix(24, 128), 0, "cpu", 10_000)
    assert len(made.calls) == 2 and made.bytes_written == 24 * 64 + 4 * 48 and made.bytes_moved == 24 * 320 + 4 * 48
    packed, scale = made.calls[1]()
    assert 0.9 < made.excess((packed, scale), made.reference, made.tolerance) <= 1
    swapped = packed << 4 | packed >> 4
    assert made.excess((swapped, scale), made.reference, made.tolerance) > 2
    with pytest.raises(Absent, match="rows of 96 do not divide"):
        packing.bitsandbytes_pack(Matrix(24, 96), 0, "cpu", 10_000)


def test_operations_of_aten_are_there_with_the_arguments_they_are_called_with():
    convert, multiply = torch.ops.aten._convert_weight_to_int4pack, torch.ops.aten._weight_int4pack_mm
    assert str(convert.default._schema).endswith("(Tensor self, int innerKTiles) -> Tensor")
    assert str(multiply.default._schema).endswith(
        "(Tensor self, Tensor mat2, int qGroupSize, Tensor qScaleAndZeros) -> Tensor"
    )
    with FakeTensorMode():
        packed = convert(torch.empty(64, 128, dtype=torch.uint8, device="meta"), 8)
        x, sides = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((1, 256), (2, 64, 2)))
        assert multiply(x, packed, 128, sides).shape == (1, 64)


@pytest.mark.parametrize("build", [products.aten, products.gemlite, products.humming])
def test_peers_that_need_a_gpu_say_what_is_missing(build):
    with pytest.raises(Absent, match=r"cannot import|on cpu"):
        build(Shape(1, 64, 128), 0, "cpu", 1000)
    with pytest.raises(Absent, match="does not divide"):
        build(Shape(1, 65, 128), 0, "cpu", 1000)


def test_integers_of_peers_multiply_as_their_codes_say():
    made = products._integers(Shape(2, 64, 256), 0, "cpu", torch.float16)
    weight = (made.codes.double() - 8) * made.scale.double().repeat_interleave(128, 1)
    assert torch.equal(made.product, made.x.double() @ weight.T)


def test_bytes_are_multiplied_by_torch_itself():
    made = products.int_mm(Shape(17, 24, 64), 0, "cpu", 24 * 64 * 3)
    assert len(made.calls) == 3 and made.bytes_moved == 64 * (17 + 24) + 4 * 17 * 24 and made.bytes_written == 1632
    assert all(error(made, k) == 0 and made.calls[k]().dtype == torch.int32 for k in range(3))
    made = products.scaled_mm(Shape(17, 32, 64), 0, "cpu", 1)
    assert len(made.calls) == 1 and made.bytes_moved == 64 * (17 + 32) + 2 * 17 * 32 and made.dtype == "float8_e4m3fn"
    assert error(made) < 1 and made.calls[0]().dtype == torch.bfloat16


def test_a_clone_is_of_everything_that_is_read():
    made = yardsticks.clone(Rows(3, 8), 0, "cpu", 96, tensors=2)
    assert len(made.calls) == 1 and made.calls[0]().shape == (6, 8) and error(made) == 0
    assert made.bytes_moved == 2 * made.bytes_written == 192
    assert len(yardsticks.clone(Rows(3, 8), 0, "cpu", 96).calls) == 2


SEQUENCES = Decoding(2, 6, 2, 64, 100)


def test_torch_attends_over_caches_of_16_bits():
    made = attention.sdpa(SEQUENCES, 0, "cpu", 2 * 2 * 2 * 100 * 64 * 2 * 2)
    assert len(made.calls) == 2 and made.calls[1]().shape == (2, 6, 64) and error(made) < 0.2
    assert made.bytes_moved == 2 * (2 * 2 * 2 * 100 * 64) + 2 * 2 * (2 * 6 * 64)
    with pytest.raises(Absent, match="7 to 100 tokens"):
        attention.sdpa(SEQUENCES._replace(fewest=7), 0, "cpu", 1)


def installed(monkeypatch, name, **contents):
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(**contents))


def test_flashinfer_gets_one_sequence_in_e4m3(monkeypatch):
    def decode(query, keys, values, kv_layout, use_tensor_cores):
        assert keys.shape == values.shape == (2, 100, 64) and keys.dtype == torch.float8_e4m3fn and kv_layout == "HND"
        keys, values = (part.float().repeat_interleave(3, 0) for part in (keys, values))
        return ((query.float()[:, None] @ keys.mT / 8).softmax(-1) @ values)[:, 0].half()

    with pytest.raises(Absent, match="cannot import flashinfer"):
        attention.flashinfer(SEQUENCES._replace(batch=1), 0, "cpu", 1)
    installed(monkeypatch, "flashinfer", single_decode_with_kv_cache=decode)
    made = attention.flashinfer(SEQUENCES._replace(batch=1), 0, "cpu", 1)
    assert error(made) < 0.2 and made.bytes_moved == 2 * 2 * 100 * 64 + 2 * 2 * 6 * 64
    with pytest.raises(Absent, match="2 sequences"):
        attention.flashinfer(SEQUENCES, 0, "cpu", 1)


def test_fast_hadamard_transform_takes_powers_of_two(monkeypatch):
    with pytest.raises(Absent, match="cannot import fast_hadamard_transform"):
        transforms.fast_hadamard(Rows(4, 64), 0, "cpu", 1)
    installed(
        monkeypatch, "fast_hadamard_transform", hadamard_transform=lambda x, scale: x @ hadamard(64).half() * scale
    )
    made = transforms.fast_hadamard(Rows(4, 64), 0, "cpu", 1000)
    assert len(made.calls) == 2 and made.bytes_moved == 2 * 512 and error(made) < 10  # here in float16
    with pytest.raises(Absent, match="96 is not a power of two"):
        transforms.fast_hadamard(Rows(4, 96), 0, "cpu", 1)


CODES = {0: (1, 0b0), 120: (2, 0b10), 121: (3, 0b110), 7: (12, 0b111000000001), 8: (32, 0b1111 << 28)}
END = (4, 0b1110)


def read(stream, count, thread_bytes=8):
    """What the decoder's threads find, each from its own gap to the end of its bytes."""
    bits = [int(byte) >> (7 - k) & 1 for byte in stream.encoded_exponent for k in range(8)]
    packed = [int(byte) >> (7 - k) & 1 for byte in stream.gaps for k in range(8)]
    table = {(length, code): symbol for symbol, (length, code) in CODES.items()}
    found, starts = [], []
    for thread in range(-(-len(bits) // 64)):
        at = 64 * thread + int("".join(map(str, packed[5 * thread : 5 * thread + 5])), 2)
        if thread % 512 == 0:
            starts.append(len(found))
        while at < min(64 * (thread + 1), len(bits)) and len(found) < count:
            code = length = 0
            while (length, code) not in table:
                code, length = 2 * code + bits[at + length], length + 1
            found.append(table[length, code])
            at += length
    return found, [*starts, count]


@pytest.mark.parametrize(("count", "chunk"), [(1, 100), (37, 5), (5000, 1 << 20), (20_000, 3000)])
def test_streams_are_read_by_every_thread_from_its_gap(monkeypatch, count, chunk):
    monkeypatch.setattr(coding, "CHUNK", chunk)
    draw = torch.Generator().manual_seed(count)
    which = torch.multinomial(torch.tensor([0.3, 0.3, 0.3, 0.05, 0.05]), count, replacement=True, generator=draw)
    symbols = torch.tensor(list(CODES), dtype=torch.uint8)[which]
    codes, lengths = torch.zeros(256, dtype=torch.int64), torch.zeros(256, dtype=torch.int64)
    for symbol, (length, code) in CODES.items():
        codes[symbol], lengths[symbol] = code, length
    made = coding.stream(symbols, codes, lengths, END)
    total = sum(CODES[symbol][0] for symbol in symbols.tolist())
    blocks = -(-total // (64 * 512))
    assert made.encoded_exponent.numel() == -(-total // 8) and made.gaps.numel() == blocks * 512 * 5 // 8
    assert read(made, count) == (symbols.tolist(), made.output_positions.tolist())
    left = -total % 8
    assert f"{int(made.encoded_exponent[-1]):08b}"[8 - left :] == "11100000"[:left]


class End:
    """The key of the code that ends a stream."""


def test_dfloat11_decodes_layers_by_its_hook(monkeypatch):
    """With a package in place of it whose codes have one length, and whose hook reads them."""
    table = {symbol: (9, symbol) for symbol in range(256)} | {End(): (9, 256)}
    shapes, hooked = [], []

    def get_hook(threads, thread_bytes):
        def hook(layer, _):
            hooked.append((threads, thread_bytes, layer.shared_mem_size))
            bits = (layer.encoded_exponent[:, None].int() >> torch.arange(7, -1, -1) & 1).flatten()
            n = layer.sign_mantissa.numel()
            exponents = (bits[: 9 * n].view(n, 9) << torch.arange(8, -1, -1)).sum(1)
            rest = layer.sign_mantissa.int()
            patterns = (rest & 128) << 8 | exponents << 7 | rest & 127
            shape = layer.out_features, layer.in_features
            shapes.append(shape)
            layer.weight = patterns.to(torch.int16).view(torch.bfloat16).view(shape)

        return hook

    with pytest.raises(Absent, match=r"cannot import dfloat11"):
        coding.dfloat11_decode(Matrix(8, 16), 0, "cpu", 1)
    installed(monkeypatch, "dfloat11.dfloat11", get_hook=get_hook)
    installed(
        monkeypatch, "dfloat11.dfloat11_utils", get_luts=lambda table: torch.zeros(2, 256, dtype=torch.uint8),
        get_codec=lambda weights: (SimpleNamespace(get_code_table=lambda: table), {}),
    )  # fmt: skip
    installed(monkeypatch, "cupy", cuda=SimpleNamespace(ExternalStream=nullcontext))
    made = coding.dfloat11_decode(Matrix(8, 16), 0, "cpu", 1000)
    stored = -(-9 * 128 // 8) + 320 + 4 * 2 + 128 + 512
    assert made.bytes_moved == stored + 256 and made.bytes_written == 256 and len(made.calls) == 1
    assert error(made) == 0 and hooked[-1] == ((512,), 8, 512 * 4 + 4 + 2 * 128)
    made = coding.dfloat11_product(Shape(3, 8, 16), 0, "cpu", 2 * stored)
    assert len(made.calls) == 2 and made.bytes_moved == stored + 3 * 16 * 2 + 48
    assert error(made, 1) < 1 and set(shapes) == {(8, 16)} and prod(made.reference.shape) == 24
