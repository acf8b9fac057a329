"""Ternary weights, four or five to a byte (`kernels.ternary_product`), with a scale that is known.

Bytes lie input after input as weights do, so nothing changes places: a thread reads its pieces and writes their bytes.
Values are multiplied by 1 / scale, rounded to float32 as the product is, and are -1 from -1/2 down and 1 from 1/2 up
(halfway goes to the even of the places 0, 1, 2, as in `suite.grids.elements`; BitNet's own code rounds 1/2 to 0).

The scale of BitNet b1.58 is the mean magnitude (Ma et al. 2024, arXiv:2402.17764, eq. 3), which is known only once the
matrix has been read: torch computes it, in an order of its own. With a scale given, codes are exact.
"""

import torch
import triton
import triton.language as tl

from kernels.inputs import require
from kernels.launch import Launch
from kernels.quantize_pack.triton import WEIGHTS
from kernels.rounding import times
from kernels.ternary_product.packing import MAX_INPUTS, PER_BYTE, ROWS, TernaryWeights

OUTPUTS = 32  # of a program: 8 inputs of a piece in each of 256 threads


@triton.jit
def quantize_trits(
    W,  # (N, K)
    scale,  # (1), or (N)
    words,  # (tiles, N, ROWS)
    N,
    K,
    PER_BYTE: tl.constexpr,
    PER_OUTPUT: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
):
    """See the module's docstring."""
    t = tl.program_id(0)
    n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    r = tl.arange(0, ROWS)
    known = (n < N)[:, None]
    held = ()
    for i in tl.static_range(PER_BYTE):
        k = (t * PER_BYTE + i) * ROWS + r
        at = W + n.to(tl.int64)[:, None] * K + k[None, :]
        held += (tl.load(at, mask=known & (k < K)[None, :], other=0.0),)  # type: ignore[assignment]
    if PER_OUTPUT:
        s = tl.load(scale + n, mask=n < N, other=1.0)
    else:
        s = tl.zeros([OUTPUTS], tl.float32) + tl.load(scale)
    inverse = tl.div_rn(tl.full([OUTPUTS], 1.0, tl.float32), s)
    byte = tl.zeros([OUTPUTS, ROWS], tl.int32)
    for i in tl.static_range(PER_BYTE):
        y = times(held[i].to(tl.float32), inverse[:, None])
        trit = (y >= 0.5).to(tl.int32) - (y <= -0.5).to(tl.int32)
        if PER_BYTE == 4:
            byte |= (trit & 3) << (2 * i)
        else:
            byte = byte * 3 + (trit + 1)
    if PER_BYTE == 5:  # the fraction of 256 just above byte / 243: ceil(256 b / 243) = b + ceil(13 b / 243)
        byte += (byte * 13 + 242) * 4316 >> 20  # floor(x / 243) for x below 2^20 / 212: 4316 243 = 2^20 + 212
    tl.store(words + (t * N + n)[:, None] * ROWS + r[None, :], byte.to(tl.int8), mask=known)


def plan(W: torch.Tensor, scale: torch.Tensor, per_byte: int = 5) -> Launch:
    """The launch of `quantize_ternary` with a scale: it fills words alone."""
    require("W", W, shape=(None, None), dtypes=WEIGHTS)
    outputs, inputs = W.shape
    if per_byte not in PER_BYTE:
        raise ValueError(f"{per_byte} weights to a byte, expected one of {PER_BYTE}")
    if outputs == 0 or not 0 < inputs <= MAX_INPUTS:
        raise ValueError(f"W has shape {(outputs, inputs)}, expected outputs and 1 to {MAX_INPUTS} inputs")
    shape = (1,) if scale.shape == (1,) else (outputs,)
    require("scale", scale, shape=shape, dtypes=(torch.float32,), device=W.device)
    tiles = -(-inputs // (per_byte * ROWS))
    if tiles * outputs * ROWS >= 2**31:
        raise ValueError(f"W has shape {(outputs, inputs)}, expected less than 2^31 bytes")
    words = W.new_empty((tiles, outputs, ROWS), dtype=torch.int8)
    return Launch(
        function=quantize_trits,
        grid=(tiles, triton.cdiv(outputs, OUTPUTS)),
        arguments={"W": W, "scale": scale, "words": words, "N": outputs, "K": inputs},
        constants={"PER_BYTE": per_byte, "PER_OUTPUT": shape == (outputs,), "ROWS": ROWS, "OUTPUTS": OUTPUTS},
        output=(words,), loop_bytes=OUTPUTS * per_byte * ROWS * W.element_size(),
        loop_weights=OUTPUTS * per_byte * ROWS, num_warps=8,
    )  # fmt: skip


def quantize_ternary(W: torch.Tensor, scale: torch.Tensor | None = None, *, per_byte: int = 5) -> TernaryWeights:
    """Round W (outputs, inputs), float16, bfloat16 or float32, to -1, 0, 1 times `scale`, and pack it.

    `scale` is float32, (1,) or (outputs,), and positive; by default the mean magnitude of the matrix, 1 for zeros.
    Where W or the scale is NaN, weights are 0. Raises `ValueError` for what does not fit.
    """
    if scale is None:
        mean = W.abs().mean(dtype=torch.float32).reshape(1)
        scale = torch.where(mean == 0, 1.0, mean)
    launch = plan(W, scale, per_byte)
    (words,) = launch.run()
    return TernaryWeights(words, scale, W.shape[0], W.shape[1], per_byte)
