"""What others have for the same products, where it is installed: each called as its own documentation says.

Nothing here is a dependency. A peer that is not there, or does not take a shape, raises `Absent` with the reason, which
goes into the results; one whose result is wrong is reported so and not timed. All get random weights that are exactly
representable in their own format, and the float64 product of these is their reference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from kernels.contender import Contender, n_copies
from kernels.results import Shape

GROUP = 128
NF4_BLOCK = 64  # what bitsandbytes has by default, and QLoRA (Dettmers et al. 2023, arXiv:2305.14314)
# In units of the root mean square: peers round weights to 11 or 8 bits and add partial sums in 16 bits, which gives
# about 0.01 at worst of 30,000 results. Wrong zero points, scales or orders of nibbles give errors of about 1.
TOLERANCE = 0.05


class Absent(Exception):
    """A peer that cannot be measured here, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`build(shape, seed, device, rotated_bytes)` gives the contender; it is measured beside the kernels `beside`."""

    name: str
    beside: tuple[str, ...]
    build: Callable[[Shape, int, str, int], Contender]
    slow: bool = False  # tunes or compiles for many seconds at each shape: large shapes and one small one only


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except Exception as error:  # a package for another driver fails in its own way
        raise Absent(f"cannot import {name}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True, slots=True)
class _Integers:
    """x (rows, inputs) and weights s (q - 8), with their product."""

    x: torch.Tensor
    codes: torch.Tensor  # (outputs, inputs), uint8
    scale: torch.Tensor  # (outputs, inputs / GROUP)
    product: torch.Tensor  # float64


def _integers(shape: Shape, seed: int, device: str, dtype: torch.dtype) -> _Integers:
    if shape.inputs % GROUP or shape.outputs % 64:
        raise Absent(f"{shape.outputs} x {shape.inputs} does not divide into groups of {GROUP} and tiles of 64")
    draw = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(16, (shape.outputs, shape.inputs), generator=draw, device=device, dtype=torch.uint8)
    scale = (0.01 + 0.01 * torch.rand(shape.outputs, shape.inputs // GROUP, generator=draw, device=device)).to(dtype)
    x = torch.randn(shape.rows, shape.inputs, generator=draw, device=device).to(dtype)
    weights = (codes.double() - 8).view(shape.outputs, -1, GROUP) * scale.double()[:, :, None]
    return _Integers(x, codes, scale, x.double() @ weights.view(shape.outputs, shape.inputs).T)


def gemlite(shape: Shape, seed: int, device: str, rotated_bytes: int) -> Contender:
    """GemLite (Triton): `GemLiteLinear.pack(W_q, scales, zeros)`, weights `(W_q - zeros) scales`, in float16.

    It tunes itself at the first call: its own default, a short list of launches.
    """
    made = _integers(shape, seed, device, torch.float16)
    library = _module("gemlite")

    def layer() -> Any:
        linear = library.GemLiteLinear(
            W_nbits=4, group_size=GROUP, in_features=shape.inputs, out_features=shape.outputs,
            input_dtype=library.DType.FP16, output_dtype=library.DType.FP16,
        )  # fmt: skip
        return linear.pack(made.codes, made.scale, torch.full_like(made.scale, 8), None)

    return _contender("gemlite", shape, made, layer, lambda linear: linear(made.x), rotated_bytes, "float16")


def aten(shape: Shape, seed: int, device: str, rotated_bytes: int) -> Contender:
    """PyTorch's own `_weight_int4pack_mm` (tinygemm), in bfloat16: weights `(q - 8) scale + zero`.

    The first of two weights lies in the high nibble of a byte.
    """
    made = _integers(shape, seed, device, torch.bfloat16)
    sides = torch.stack([made.scale.T, torch.zeros_like(made.scale.T)], dim=-1).contiguous()
    bytes_ = (made.codes[:, ::2] << 4) | made.codes[:, 1::2]

    def weights() -> Any:
        return torch.ops.aten._convert_weight_to_int4pack(bytes_, 8), sides.clone()

    def call(held: Any) -> torch.Tensor:
        return torch.ops.aten._weight_int4pack_mm(made.x, held[0], GROUP, held[1])

    if device != "cuda":
        raise Absent(f"on {device} this is another kernel; it is measured on cuda")
    return _contender("aten int4", shape, made, weights, call, rotated_bytes, "bfloat16")


def humming(shape: Shape, seed: int, device: str, rotated_bytes: int) -> Contender:
    """Humming (CUDA, compiled at the first call): `HummingLayer` with symmetric integers of 4 bits, in float16."""
    made = _integers(shape, seed, device, torch.float16)
    library = _module("humming.layer")
    places = 4 * torch.arange(8, device=device)
    words = (made.codes.view(shape.outputs, -1, 8).long() << places).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()

    def layer() -> Any:
        linear = library.HummingLayer(
            shape_n=shape.outputs, shape_k=shape.inputs, torch_dtype=torch.float16,
            weight_config={"dtype": "int4", "group_size": GROUP},
        )  # fmt: skip
        linear = linear.to(device)
        linear.load_from_tensors({"weight": words, "weight_scale": made.scale})
        linear.transform()
        return linear

    return _contender("humming", shape, made, layer, lambda linear: linear(made.x), rotated_bytes, "float16")


def _contender(
    name: str,
    shape: Shape,
    made: _Integers,
    build: Callable[[], Any],
    call: Callable[[Any], torch.Tensor],
    rotated_bytes: int,
    dtype: str,
) -> Contender:
    nbytes = made.codes.numel() // 2 + made.scale.nbytes
    held = [build() for _ in range(n_copies(nbytes, rotated_bytes))]
    return Contender(
        name=name, kind="peer", shape=shape, dtype=dtype, calls=tuple(lambda one=one: call(one) for one in held),  # type: ignore[misc]
        bytes_moved=nbytes + made.x.nbytes + 2 * made.product.numel(), reference=made.product, tolerance=TOLERANCE,
    )  # fmt: skip


def bitsandbytes(shape: Shape, seed: int, device: str, rotated_bytes: int) -> Contender:
    """`matmul_4bit` of bitsandbytes on NF4 in blocks of 64 with float32 scales, in float16."""
    library = _module("bitsandbytes")
    draw = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape.rows, shape.inputs, generator=draw, device=device).half()
    dense = torch.randn(shape.outputs, shape.inputs, generator=draw, device=device).half() / shape.inputs**0.5
    packed, state = library.functional.quantize_4bit(dense, blocksize=NF4_BLOCK, quant_type="nf4")
    exact = library.functional.dequantize_4bit(packed, state).double()
    states = [(packed, state)]
    nbytes = packed.nbytes + state.absmax.nbytes
    for _ in range(n_copies(nbytes, rotated_bytes) - 1):
        states.append(library.functional.quantize_4bit(dense, blocksize=NF4_BLOCK, quant_type="nf4"))
    return Contender(
        name="bitsandbytes nf4", kind="peer", shape=shape, dtype="float16",
        calls=tuple(lambda w=w, s=s: library.matmul_4bit(x, w.t(), s) for w, s in states),  # type: ignore[misc]
        bytes_moved=nbytes + x.nbytes + 2 * shape.rows * shape.outputs, reference=x.double() @ exact.T,
        tolerance=TOLERANCE,
    )  # fmt: skip


_FOUR_BITS = ("w4a16-gemv", "w4a16-gemm")
PEERS: tuple[Peer, ...] = (
    Peer(name="aten int4", beside=_FOUR_BITS, build=aten),
    Peer(name="bitsandbytes nf4", beside=("nf4a16-gemv", "nf4a16-gemm"), build=bitsandbytes),
    Peer(name="gemlite", beside=_FOUR_BITS, build=gemlite, slow=True),
    Peer(name="humming", beside=_FOUR_BITS, build=humming, slow=True),
)
