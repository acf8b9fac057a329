"""Floating-point weights with the scales that their standards give them (`kernels.float_product`): MX, NVFP4, FP8.

With m the largest magnitude of a group and T the format's largest number, floor(log2 T) = E:

- "e8m0": 2^(floor(log2 m) - E), as OCP Microscaling Formats (MX) 1.0, section 6.3, has it: what exceeds T saturates.
- "e4m3": m / T / g in E4M3, from 2^-6 to 448, with g = max |W| / (448 T) for the matrix (NVIDIA 2025,
  arXiv:2509.25149; the least E4M3 scale is the smallest normal one). Values are multiplied by (1 / g) / scale. The
  matrix's largest magnitude must be known before: it is read once more for that, unless it is given.
- "float32", "float16": m / T, stored in float32 or with the digits of float16, for a group of inputs, an output, or a
  block of 128 outputs by 128 inputs. Values are multiplied by 1 / scale.

Every quotient and product is rounded to float32, and values to nearest, halves to the even code. Signs of zeros stay.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl

from kernels import rounding
from kernels.float_product.formats import FORMATS, FloatFormat, layout_of
from kernels.float_product.packing import SPREAD, TOP, FloatWeights
from kernels.inputs import require
from kernels.launch import Launch
from kernels.quantize_pack import triton as shared
from kernels.quantize_pack.tables import absmax

SCALES = {"e8m0": 32, "e4m3": 16, "float16": None, "float32": None}  # and how many inputs share one, by its standard
NOT_A_NUMBER = 255  # a byte that no scale of a finite group has
LARGEST_E4M3 = 448.0


@triton.jit
def power_of_two(
    low, high, usable, factor, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, REACH: tl.constexpr
):
    """`SCALE` in E8M0: its byte plus 1, 0 for a group whose codes are all zero, 255 for one that is not finite."""
    most = tl.where(usable, tl.maximum(0.0 - low, high), 0.0)
    exponent = (most.to(tl.int32, bitcast=True) >> 23) - exponent_of(REACH)
    exponent = tl.maximum(exponent, 0)
    inverse = ((254 - exponent) << 23).to(tl.float32, bitcast=True)  # 2^(127 - exponent)
    LEAST: tl.constexpr = halfway(BITS, MANTISSA)  # up to here, halves to even included, codes are 0
    stored = tl.where(most * inverse > LEAST, exponent + 1, 0)
    return tl.where(usable, stored, 255), stored, (inverse, usable)


@triton.jit
def two_levels(
    low, high, usable, factor, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, REACH: tl.constexpr
):
    """`SCALE` in E4M3 under the float32 number at `factor`: as `FloatWeights` has it, 255 for one not finite."""
    most = tl.where(usable, tl.maximum(0.0 - low, high), 0.0)
    g = tl.zeros_like(most) + tl.load(factor)
    wanted = tl.div_rn(tl.div_rn(most, tl.full(most.shape, REACH, tl.float32)), g)
    code = rounding.e4m3(tl.minimum(tl.maximum(wanted, 0.015625), 448.0)).to(tl.int32) & 0xFF
    scale = ((code + 960) << 20).to(tl.float32, bitcast=True)  # the bias 127 instead of 7; none is subnormal
    inverse = tl.div_rn(tl.div_rn(tl.full(most.shape, 1.0, tl.float32), g), scale)
    stored = code + 120  # of 128 times the scale, bits 7 to 14 in half precision: the bias 15, and 7 for 128
    return tl.where(usable, stored, 255), stored, (inverse, usable)


@triton.jit
def element(
    x, side, table, RULE: tl.constexpr, BITS: tl.constexpr, MANTISSA: tl.constexpr, REACH: tl.constexpr
):  # fmt: skip
    """`ENCODE` to sign, exponent and mantissa; codes of groups that are not finite are 0.

    The power of two at or below a magnitude, at least the smallest normal number's, times 2^(23 - mantissa) is a number
    whose last place is the format's step there: adding it rounds, and leaves the steps in the lowest bits. Rounding up
    carries into the exponent.
    """
    inverse, usable = side
    y = rounding.times(x, inverse[:, None])
    LEAST: tl.constexpr = 128 - bias_of(BITS, MANTISSA)  # the exponent field, in float32, of the smallest normal number
    size = tl.minimum(tl.abs(y), REACH)
    power = tl.maximum(size.to(tl.int32, bitcast=True) & 0x7F800000, LEAST << 23)
    adder = power + ((23 - MANTISSA) << 23)
    steps = (size + adder.to(tl.float32, bitcast=True)).to(tl.int32, bitcast=True) - adder
    code = steps + (power >> (23 - MANTISSA)) - (LEAST << MANTISSA)
    code |= (y.to(tl.int32, bitcast=True) >> (32 - BITS)) & (1 << (BITS - 1))
    return tl.where(usable[:, None], code, 0)


@triton.constexpr_function
def bias_of(bits, mantissa):
    """The exponent bias of a format of so many bits."""
    return 2 ** (bits - mantissa - 2) - 1


@triton.constexpr_function
def halfway(bits, mantissa):
    """Half of a format's smallest number."""
    return 2.0 ** (1 - bias_of(bits, mantissa) - mantissa - 1)


@triton.constexpr_function
def exponent_of(reach):
    """Of the largest power of two that is not above `reach`."""
    return math.frexp(reach)[1] - 1


def plan(
    W: torch.Tensor,
    format: FloatFormat,
    scales: str,
    group: int | None = None,
    block: int = 1,
    largest: torch.Tensor | None = None,
) -> Launch:
    """The launch of `quantize_floats`: it fills words and scales, powers of two as `power_of_two` has them."""
    if format not in FORMATS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(known.name for known in FORMATS)}")
    if scales not in SCALES:
        raise ValueError(f"scales are {scales!r}, expected one of {', '.join(SCALES)}")
    if scales == "e4m3" and format.bits != 4:
        raise ValueError(f"scales are 'e4m3' with {format.name}, expected a format of 4 bits")
    if SCALES[scales] is not None and group not in (None, SCALES[scales]):
        raise ValueError(f"group is {group} with {scales!r} scales, expected {SCALES[scales]}")
    if block != 1 and not (block == 128 and SCALES[scales] is None):
        raise ValueError(f"block is {block} with {scales!r} scales, expected 1, or 128 with float scales")
    group = SCALES[scales] or group
    require("W", W, shape=(None, None), dtypes=shared.WEIGHTS)
    how: dict[str, Any] = {"scale": absmax, "scale_type": torch.float32}
    if scales == "e8m0":
        how = {"scale": power_of_two, "scale_type": torch.int32 if format.bits == 4 else torch.uint8}
    elif scales == "e4m3":
        how = {"scale": two_levels, "scale_type": torch.int64, "factor": _factor(W, format, largest)}
    return shared.plan(
        W, layout=layout_of(format, group or 0), group=group, encode=element, rule=scales, mantissa=format.mantissa,
        reach=reach_of(format), block=block, **how,
    )  # fmt: skip


def reach_of(format: FloatFormat) -> float:
    """The largest number of a format."""
    e, m = divmod(format.top, 2**format.mantissa)
    return math.ldexp(m + 2**format.mantissa, e - format.bias - format.mantissa)


def _factor(W: torch.Tensor, format: FloatFormat, largest: torch.Tensor | None) -> torch.Tensor:
    """The float32 scale of the matrix (1,) above scales in E4M3; of a matrix of zeros 1."""
    if largest is None:
        low, high = torch.aminmax(W)
        largest = torch.maximum(-low, high).float().reshape(1)
    require("largest", largest, shape=(1,), dtypes=(torch.float32,), device=W.device)
    g = largest / torch.full_like(largest, LARGEST_E4M3 * reach_of(format))
    return torch.where(g == 0, 1.0, g.clamp(min=torch.finfo(torch.float32).tiny))


def quantize_floats(
    W: torch.Tensor,
    format: FloatFormat,
    scales: str,
    group: int | None = None,
    *,
    block: int = 1,
    largest: torch.Tensor | None = None,
) -> FloatWeights:
    """Round W (outputs, inputs), float16, bfloat16 or float32, to `format`, and pack it.

    `scales` is "e8m0" (32 inputs), "e4m3" (16 inputs, formats of 4 bits), "float16" or "float32" (`group` inputs, a
    multiple of 32, all of an output if None; with `block` 128 also so many outputs). `largest` (1,), float32, is the
    largest magnitude of the matrix, should it be known. Raises `ValueError` for what does not fit; with E8M0 and E4M3
    for NaN and infinity, too, where other scales are NaN, and for E8M0 scales that span more than 2^125.
    """
    launch = plan(W, format, scales, group, block, largest)
    words, scale = launch.run()
    factor, spread = 1.0, 0
    if SCALES[scales] is not None:
        octets = scale.view(torch.uint8)
        if bool((octets == NOT_A_NUMBER).any()):
            raise ValueError(f"W of shape {tuple(W.shape)} has NaN or infinity, expected numbers")
        if scales == "e8m0":
            factor, spread = _relative(octets)
        else:
            given = launch.arguments["factor"]
            assert given is not None
            factor = float(given) / 128
    return FloatWeights(
        words=words, scale=scale, factor=factor, scales=scales if SCALES[scales] else "float32", format=format,
        outputs=W.shape[0], inputs=W.shape[1], group=launch.constants["GROUP"], block=block, spread=spread,
    )  # fmt: skip


def _relative(octets: torch.Tensor) -> tuple[float, int]:
    """Turn bytes of `power_of_two` into exponents relative to the largest; give that scale, and the span in bits."""
    used = octets > 0
    if not bool(used.any()):
        octets.fill_(TOP)
        return 1.0, 0
    largest, smallest = int(octets.max()), int(octets[used].min())
    if largest - smallest > SPREAD:
        raise ValueError(f"scales span 2^{largest - smallest}, from 2^{smallest - 128} on, expected at most 2^{SPREAD}")
    octets.copy_(torch.where(used, octets.to(torch.int16) - largest + TOP, TOP))
    return 2.0 ** (largest - 128), largest - smallest
