"""Points of QuIP#'s codebooks: every code decoded, by packing, reference and kernel, to what the suite's grid says."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.check import excess_of
from kernels.kernel import Size
from kernels.lattice_product import LatticeWeights, lattice_product, lattice_product_reference, pack, plan
from kernels.lattice_product.packing import in_tiles, out_of_tiles
from kernels.lattice_product.reference import dequantize
from kernels.lattice_product.rows import LATTICE_KERNELS, inputs
from suite.grids.e8p import E8P
from suite.grids.lattice_codebooks import e8_points, e8p_points, patterns

PATTERNS = torch.from_numpy(patterns())
ONE = torch.ones(1)
TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
EVERY = torch.arange(1 << 16).reshape(4096, 16)  # codes of sixteen blocks of 4096 outputs


def octets(*codes: torch.Tensor) -> torch.Tensor:
    """Low and high bytes of codes of 16 bits, as the last dimension."""
    return torch.stack([part for code in codes for part in (code & 255, code >> 8)], -1).to(torch.uint8)


def packed(codes: torch.Tensor, inputs: int, scale: torch.Tensor = ONE, residual: float = 1.0) -> LatticeWeights:
    points = e8_points() if codes.shape[2] == 3 else None
    return pack(codes, PATTERNS, scale, inputs=inputs, points=points, residual=residual)


@triton.jit
def decode(codes, signs, table, out, DECODE: tl.constexpr, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    n = tl.program_id(1) * 64 + tl.arange(0, 64)
    weights = DECODE(codes, signs, table, 0, PLANE, DTYPE)
    tl.store(out + n[:, None] * 128 + tl.arange(0, 128)[None, :], weights.to(tl.float32))


def decoded(weights: LatticeWeights, plane: int, dtype: torch.dtype) -> torch.Tensor:
    """Points (outputs, 128 inputs) as the kernel has them in registers, times its factor."""
    launch = plan(torch.zeros(1, weights.inputs, dtype=dtype), weights)
    out = torch.full((weights.outputs, 128), torch.nan)
    constants = {name: launch.constants[name] for name in ("DECODE", "DTYPE")}
    decode[(1, weights.outputs // 64)](weights.codes, weights.signs, weights.table, out, PLANE=plane, **constants)
    return out * launch.arguments["factor"]


@TYPES
def test_every_code_of_e8p(dtype):
    weights, wanted = packed(octets(EVERY), 128), e8p_points()[EVERY].flatten(1)
    assert torch.equal(dequantize(weights), wanted.double())
    assert torch.equal(decoded(weights, 0, dtype), wanted)


@TYPES
def test_every_point_of_the_codebook_of_one_bit(dtype):
    first, second = torch.zeros(64, 16, dtype=torch.int64), torch.arange(1024).reshape(64, 16) % 256
    weights = packed(torch.cat([octets(first), second[..., None].to(torch.uint8)], -1), 128)
    p, f = e8p_points()[first].flatten(1), e8_points()[second].flatten(1)
    assert torch.equal(dequantize(weights), (p + f).double())
    assert torch.equal(decoded(weights, 0, dtype), p) and torch.equal(decoded(weights, 1, dtype), f)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_grid_says_the_same(bits):
    W = torch.randn(5, 43, generator=torch.Generator().manual_seed(bits))
    fitted = E8P(bits=bits).fit(W)
    codes = fitted.nearest(W)
    scale = fitted.scale.reshape(1).half()
    weights = packed(codes, 43, scale, fitted.grid.ratio if bits > 2 else 1.0)
    # the grid divides and adds in float32: three roundings of values up to 5 at unit scale
    assert torch.allclose(dequantize(weights), fitted.decode32(codes).double(), rtol=0, atol=15 * 2**-24 * float(scale))
    x = torch.randn(3, 43, generator=torch.Generator().manual_seed(9)).half()
    assert excess_of(lattice_product(x, weights), x.double() @ fitted.decode32(codes).double().T, 1e-4) <= 1


@given(st.integers(1, 150), st.integers(1, 40), st.integers(0, 2**32))
def test_tiles_are_undone(outputs, blocks, seed):
    codes = torch.randint(256, (outputs, blocks), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    assert torch.equal(out_of_tiles(in_tiles(codes), outputs, 8 * blocks), codes)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bits_of_a_weight(bits):
    weights = inputs(Size(1, 128, 256), 0, bits=bits)[1]
    assert (weights.codes.nbytes + weights.signs.nbytes) * 8 == bits * 128 * 256
    assert weights.table.nbytes == 1024 * weights.table.shape[0]


@settings(max_examples=12)
@given(st.sampled_from([2, 3, 4]), st.integers(1, 40), st.integers(1, 130), st.integers(1, 400),
       st.sampled_from([torch.float16, torch.bfloat16]), st.integers(0, 999))  # fmt: skip
def test_any_size(bits, rows, outputs, n_inputs, dtype, seed):
    x, weights = inputs(Size(rows, outputs, n_inputs), seed, bits=bits, dtype=dtype)
    assert excess_of(lattice_product(x, weights), lattice_product_reference(x, weights), 1e-4) <= 1


def test_no_tokens():
    _, weights = inputs(Size(1, 8, 64), 0, bits=2)
    with pytest.raises(ValueError, match=r"x has shape \(0, 64\), expected at least one row"):
        lattice_product(torch.empty(0, 64, dtype=torch.float16), weights)


BAD = {
    "x is torch.float32": lambda x, w: (x.float(), w),
    r"x has shape \(2, 64\), expected \(any, 128\)": lambda x, w: (x[:, :64].contiguous(), w),
    r"x of shape \(2, 128\) has strides": lambda x, w: (x.T.contiguous().T, w),
    "x is on meta": lambda x, w: (x.to("meta"), w),
    "codes is torch.int32": lambda x, w: (x, dataclasses.replace(w, codes=w.codes.int())),
    "codes has shape": lambda x, w: (x, dataclasses.replace(w, outputs=65)),
    "signs has shape": lambda x, w: (x, dataclasses.replace(w, signs=w.signs[..., :3])),
    "table has shape": lambda x, w: (x, dataclasses.replace(w, table=w.table[:, :9])),
    "scale is torch.float64": lambda x, w: (x, dataclasses.replace(w, scale=w.scale.double())),
    "weights of 5 bits": lambda x, w: (x, dataclasses.replace(w, bits=5)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    x, weights = inputs(Size(2, 8, 128), 0, bits=2)
    with pytest.raises(ValueError, match=message):
        lattice_product(*BAD[message](x, weights))


CODES = torch.zeros(3, 2, 2, dtype=torch.uint8)
UNPACKABLE = {
    r"codes has shape \(3, 2, 2\), expected \(any, 3, any\)": lambda: pack(CODES, PATTERNS, ONE, inputs=17),
    "codes have 1 bytes": lambda: pack(CODES[..., :1].contiguous(), PATTERNS, ONE, inputs=16),
    "points are given at 2 bits": lambda: pack(CODES, PATTERNS, ONE, inputs=16, points=e8_points()),
    "points are missing at 3 bits": lambda: pack(CODES.new_zeros(3, 2, 3), PATTERNS, ONE, inputs=16),
    "residual is 0": lambda: pack(CODES, PATTERNS, ONE, inputs=16, residual=0),
    "patterns have other values": lambda: pack(CODES, PATTERNS + 1, ONE, inputs=16),
    r"patterns has shape \(255, 8\)": lambda: pack(CODES, PATTERNS[1:], ONE, inputs=16),
    "points have values": lambda: pack(CODES.new_zeros(3, 2, 3), PATTERNS, ONE, inputs=16, points=e8_points() / 4),
}


@pytest.mark.parametrize("message", UNPACKABLE)
def test_what_cannot_be_packed_is_named(message):
    with pytest.raises(ValueError, match=message):
        UNPACKABLE[message]()


def test_rows_are_named_by_their_bits():
    for kernel in LATTICE_KERNELS:
        _, weights = kernel.inputs(kernel.check[0], 0, "cpu")
        assert kernel.name.startswith(f"e8p-{weights.bits}-")
