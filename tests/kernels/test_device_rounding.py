"""Rounding to codes: every code and every midpoint, against definitions of others; and scales at their limits."""

import re

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from gfloat.formats import format_info_ocp_e4m3

from kernels import rounding
from kernels.codes import LARGEST, SMALLEST, two_in_a_byte, unpack_nibbles

INF, NAN = float("inf"), float("nan")


@triton.jit
def _applied(x, out, n, WHAT: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(out + at, WHAT(tl.load(x + at, mask=at < n, other=0.0)), mask=at < n)


def applied(what, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    out = torch.empty(x.numel(), dtype=dtype)
    _applied[(triton.cdiv(x.numel(), 1024),)](x.contiguous(), out, x.numel(), what, 1024)
    return out


def around(points: np.ndarray) -> torch.Tensor:
    """Numbers, the float32 just below and above them, and the same with the other sign."""
    points = points.astype(np.float32)
    three = np.concatenate([points, np.nextafter(points, np.float32(-1e9)), np.nextafter(points, np.float32(1e9))])
    return torch.from_numpy(np.concatenate([three, -three]))


def numbers_of_e4m3() -> torch.Tensor:
    """All from 0 to 448, the middles between them, and some others."""
    known = np.arange(0x7F, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    x = around(np.concatenate([known, (known[1:] + known[:-1]) / 2, np.random.default_rng(0).uniform(0, 448, 2000)]))
    return x[x.abs() < 464]


def test_e4m3_of_every_code_and_every_midpoint():
    x = numbers_of_e4m3()
    wanted = x.numpy().astype(ml_dtypes.float8_e4m3fn).view(np.int8)
    assert np.array_equal(applied(rounding.e4m3, x, torch.int8).numpy(), wanted)


def test_e4m3_is_gfloats():
    """A definition in plain Python, to nearest with halves to even, at every seventh number."""
    x = numbers_of_e4m3()[::7]
    for value, code in zip(x.tolist(), applied(rounding.e4m3, x, torch.int8).view(torch.uint8).tolist(), strict=True):
        wanted = gfloat.round_float(format_info_ocp_e4m3, value, gfloat.RoundMode.TiesToEven, sat=True)
        assert gfloat.decode_float(format_info_ocp_e4m3, code).fval == wanted, (value, code)


def test_e4m3_on_a_gpu_takes_bytes_in_their_order():
    """PTX: `cvt.e4m3x2.f32 d, a, b` puts a into the high byte, `mov.b32 d, {low, high}` the first into the low half."""
    text = rounding.E4M3_ASSEMBLY.value
    halves = re.findall(r"cvt\.rn\.satfinite\.e4m3x2\.f32 (\w+), (\$\d), (\$\d);", text)
    low, high = re.search(r"mov\.b32 \$0, {(\w+), (\w+)};", text).groups()
    order = {name: [second, first] for name, first, second in halves}
    assert order[low] + order[high] == ["$1", "$2", "$3", "$4"]


def test_integers_with_halves_to_even():
    x = around(np.concatenate([np.arange(0, 130), np.arange(0, 130) + 0.5, [2**22 - 1, 2**22 - 1.5]]))
    assert torch.equal(applied(rounding.nearest_integer, x, torch.int32), x.double().round().int())


@triton.jit
def _packed(x, out, N: tl.constexpr):
    rows = tl.zeros([1, 1], tl.int32)
    at = rows + tl.arange(0, N)[None, :]
    half = rows + tl.arange(0, N // 2)[None, :]
    tl.store(out + half, rounding.two_in_a_byte(tl.load(x + at)))


def test_two_integers_in_a_byte():
    every = torch.arange(-7, 8, dtype=torch.int8)
    pairs = torch.cartesian_prod(every, every).reshape(1, -1)
    x = torch.nn.functional.pad(pairs, (0, 512 - pairs.numel())).float()
    out = torch.empty(1, 256, dtype=torch.int8)
    _packed[(1,)](x, out, 512)
    assert torch.equal(out, two_in_a_byte(x.to(torch.int8))) and torch.equal(unpack_nibbles(out), x.to(torch.int8))


def test_bfloat16_with_halves_to_even():
    draw = np.random.default_rng(1)
    bits = draw.integers(0, 2**16, 3000, dtype=np.uint32) << 16 | draw.choice([0, 0x7FFF, 0x8000, 0x8001], 3000)
    x = torch.from_numpy(bits.astype(np.uint32).view(np.float32))
    x = x[x.isfinite()]
    assert torch.equal(applied(rounding.in_bfloat16, x, torch.float32), x.bfloat16().float())


@triton.jit
def _scaled(top, scale, factor, LARGEST: tl.constexpr, SMALLEST: tl.constexpr, N: tl.constexpr):
    at = tl.arange(0, N)
    s, by = rounding.scale_of(tl.load(top + at), LARGEST, SMALLEST)
    tl.store(scale + at, s)
    tl.store(factor + at, by)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy
@pytest.mark.parametrize("format", LARGEST)
def test_scales_at_their_limits(format):
    top = torch.tensor([0.0, SMALLEST / 2, SMALLEST, 1.0, 3e38, 2.0**-140, INF, NAN])
    scale, factor = torch.empty(8), torch.empty(8)
    _scaled[(1,)](top, scale, factor, LARGEST[format], SMALLEST, 8)
    largest = torch.tensor(LARGEST[format])
    usable = torch.tensor([False, False, True, True, True, False, False, False])
    assert torch.equal(scale[usable], top[usable] / largest) and torch.equal(factor[usable], largest / top[usable])
    assert scale[[0, 1, 5]].tolist() == [0, 0, 0] and scale[6:].isnan().all() and not factor[~usable].any()


def test_the_smallest_magnitude_leaves_a_finite_factor():
    assert max(LARGEST.values()) / SMALLEST < torch.finfo(torch.float32).max <= max(LARGEST.values()) / (SMALLEST / 4)
