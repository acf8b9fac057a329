"""AQLM's products against the suite's grid, and every entry of both kinds of codebook decoded exactly."""

import dataclasses

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.check import excess_of
from kernels.codebook_product import CodebookWeights, codebook_product, codebook_product_reference, pack, plan
from kernels.codebook_product.packing import in_tiles, out_of_tiles
from kernels.codebook_product.reference import dequantize
from kernels.codebook_product.rows import inputs
from kernels.codebook_product.triton import inner
from kernels.kernel import Size
from suite.grids.codebooks import Codebooks

ONE = torch.ones(1, dtype=torch.float16)
KINDS = {"2x8": {"count": 2, "entries": 256}, "1x16": {"count": 1, "entries": 65536}}
TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
BY_KIND = pytest.mark.parametrize("kind", KINDS)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@triton.jit
def decode(codes, table, out, t, DECODE: tl.constexpr, PLANE: tl.constexpr, DTYPE: tl.constexpr):
    n = tl.program_id(1) * 128 + tl.arange(0, 128)
    weights = DECODE(codes, codes, table, t, PLANE, DTYPE)
    tl.store(out + n[:, None] * 256 + t * 64 + tl.arange(0, 64)[None, :], weights.to(tl.float32))


@TYPES
@BY_KIND
def test_every_entry(kind, dtype):
    """Weights (outputs, 256 inputs) as a program for several tokens has them in registers."""
    count, entries = KINDS[kind].values()
    codes = torch.arange(max(entries, 4096)).reshape(-1, 32, 1) % entries
    weights = pack(codes.expand(-1, -1, count).contiguous(), drawn(1, count, entries, 8).half(), ONE, inputs=256)
    launch = plan(torch.zeros(2, 256, dtype=dtype), weights)
    constants = {name: launch.constants[name] for name in ("DECODE", "DTYPE")}
    for book, wanted in enumerate(weights.codebooks.float()):
        out = torch.full((weights.outputs, 256), torch.nan)
        for t in range(4):
            table = launch.arguments["table"]
            decode[(1, weights.outputs // 128)](weights.codes, table, out, t, PLANE=book, **constants)
        assert torch.equal(out, wanted[codes].flatten(1))
    assert torch.equal(dequantize(weights), weights.codebooks.double().sum(0)[codes].flatten(1))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("book", [0, 1])
def test_every_entry_with_one_token(book, dtype, tolerance):
    """With the other codebook zero, so that nothing is rounded but the output, which the interpreter cuts off."""
    books = drawn(0, 2, 256, 8).half()
    books[1 - book] = 0
    codes = torch.arange(256).reshape(256, 1, 1).expand(-1, 1, 2).contiguous()
    weights, wanted = pack(codes, books, ONE, inputs=8), books[book].double()
    found = torch.cat([codebook_product(unit[None], weights) for unit in torch.eye(8, dtype=dtype)]).double().T
    assert bool(((found - wanted).abs() <= tolerance * wanted.abs()).all())


@pytest.mark.parametrize(("code_bits", "stages"), [(8, 2), (16, 1)])
@pytest.mark.parametrize("scale", ["row", "none"])
def test_the_grid_says_the_same(code_bits, stages, scale):
    W = drawn(2, 9, 43)
    grid = Codebooks(code_bits=code_bits, stages=stages, scale=scale, iterations=3)
    if code_bits == 8:
        fitted = grid.fit(W)
    else:  # k-means would need more vectors than entries
        fitted = dataclasses.replace(grid.bind(W), codebooks=grid.stored(drawn(3, 1, 65536, 8)))
    codes = fitted.nearest(W)
    scales = ONE if fitted.scale is None else fitted.scale[:, 0].half()
    weights = pack(codes, fitted.rounded().codebooks.half(), scales, inputs=43)
    wanted = fitted.decode32(codes).double()
    # the grid adds and multiplies in float32: two roundings
    assert bool(((dequantize(weights) - wanted).abs() <= 2**-22 * wanted.abs().max()).all())
    for rows in (1, 3):
        x = drawn(rows, rows, 43).half()
        assert excess_of(codebook_product(x, weights), x.double() @ wanted.T, 1e-4) <= 1


@given(st.integers(1, 300), st.integers(1, 80), st.integers(0, 2**32))
def test_tiles_are_undone(outputs, vectors, seed):
    draw = torch.Generator().manual_seed(seed)
    octets = torch.randint(256, (outputs, vectors, 2), generator=draw, dtype=torch.uint8)
    assert torch.equal(out_of_tiles(in_tiles(octets), outputs, 8 * vectors), octets)


@BY_KIND
def test_bits_of_a_weight(kind):
    weights = inputs(Size(1, 256, 512), 0, **KINDS[kind])[1]
    assert weights.codes.nbytes * 8 == 2 * 256 * 512
    assert weights.codebooks.nbytes == 16 * weights.codebooks.shape[0] * weights.codebooks.shape[1]


@settings(max_examples=8)
@given(st.sampled_from(list(KINDS)), st.integers(1, 3) | st.integers(1, 33), st.integers(1, 150), st.integers(1, 600),
       st.sampled_from([torch.float16, torch.bfloat16]), st.integers(0, 999))  # fmt: skip
def test_any_size(kind, rows, outputs, n_inputs, dtype, seed):
    x, weights = inputs(Size(rows, outputs, n_inputs), seed, **KINDS[kind], dtype=dtype)
    assert excess_of(codebook_product(x, weights), codebook_product_reference(x, weights), 1e-4) <= 1


def test_one_token_and_two_small_codebooks_look_inner_products_up():
    for kind, how in KINDS.items():
        for rows in (1, 2):
            launch = plan(*inputs(Size(rows, 16, 64), 0, **how))
            assert (launch.function is inner) == (kind == "2x8" and rows == 1)


def misaligned(weights: CodebookWeights) -> CodebookWeights:
    books = weights.codebooks
    room = torch.zeros(books.numel() + 1, dtype=books.dtype)
    return dataclasses.replace(weights, codebooks=room[1:].view(books.shape))


BAD = {
    "x is torch.float32": lambda x, w: (x.float(), w),
    r"x has shape \(2, 64\), expected \(any, 128\)": lambda x, w: (x[:, :64].contiguous(), w),
    r"x of shape \(2, 128\) has strides": lambda x, w: (x.T.contiguous().T, w),
    "x is on meta": lambda x, w: (x.to("meta"), w),
    "codes is torch.int32": lambda x, w: (x, dataclasses.replace(w, codes=w.codes.int())),
    "codes has shape": lambda x, w: (x, dataclasses.replace(w, outputs=129)),
    "codebooks is torch.float32": lambda x, w: (x, dataclasses.replace(w, codebooks=w.codebooks.float())),
    "codebooks begin at address": lambda x, w: (x, misaligned(w)),
    r"scale has shape \(7,\), expected \(8\)": lambda x, w: (x, dataclasses.replace(w, scale=w.scale[:7])),
    "scale is torch.float64": lambda x, w: (x, dataclasses.replace(w, scale=w.scale.double())),
}


@BY_KIND
@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(kind, message):
    x, weights = inputs(Size(2, 8, 128), 0, **KINDS[kind])
    with pytest.raises(ValueError, match=message):
        codebook_product(*BAD[message](x, weights))


BOOKS = torch.zeros(2, 256, 8, dtype=torch.float16)
CODES = torch.zeros(3, 2, 2, dtype=torch.int64)
UNPACKABLE = {
    r"codebooks have shape \(3, 256, 8\)": lambda: pack(CODES, BOOKS[:1].expand(3, -1, -1), ONE, inputs=16),
    r"codebooks have shape \(256, 8\)": lambda: pack(CODES, BOOKS[0], ONE, inputs=16),
    r"codes has shape \(3, 2, 2\), expected \(any, 3, 2\)": lambda: pack(CODES, BOOKS, ONE, inputs=17),
    r"codes lie in \[256, 256\], expected \[0, 255\]": lambda: pack(CODES + 256, BOOKS, ONE, inputs=16),
    r"codes lie in \[-1, -1\]": lambda: pack(CODES - 1, BOOKS, ONE, inputs=16),
    r"scale has shape \(2,\), expected \(3\)": lambda: pack(CODES, BOOKS, ONE.repeat(2), inputs=16),
}


@pytest.mark.parametrize("message", UNPACKABLE)
def test_what_cannot_be_packed_is_named(message):
    with pytest.raises(ValueError, match=message):
        UNPACKABLE[message]()
