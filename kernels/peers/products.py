"""Products of others: PyTorch's own with integers and E4M3, and packages for weights of 4 bits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from kernels.contender import Absent, Contender, n_copies
from kernels.peers.package import TOLERANCE, module

GROUP = 128
NF4_BLOCK = 64  # what bitsandbytes has by default, and QLoRA (Dettmers et al. 2023, arXiv:2305.14314)


@dataclass(frozen=True, slots=True)
class _Integers:
    """x (rows, inputs) and weights s (q - 8), with their product."""

    x: torch.Tensor
    codes: torch.Tensor  # (outputs, inputs), uint8
    scale: torch.Tensor  # (outputs, inputs / GROUP)
    product: torch.Tensor  # float64


def _integers(size: Any, seed: int, device: str, dtype: torch.dtype) -> _Integers:
    if size.inputs % GROUP or size.outputs % 64:
        raise Absent(f"{size.outputs} x {size.inputs} does not divide into groups of {GROUP} and tiles of 64")
    draw = torch.Generator(device).manual_seed(seed)
    codes = torch.randint(16, (size.outputs, size.inputs), generator=draw, device=device, dtype=torch.uint8)
    scale = (0.01 + 0.01 * torch.rand(size.outputs, size.inputs // GROUP, generator=draw, device=device)).to(dtype)
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).to(dtype)
    weights = (codes.double() - 8).view(size.outputs, -1, GROUP) * scale.double()[:, :, None]
    return _Integers(x, codes, scale, x.double() @ weights.view(size.outputs, size.inputs).T)


def gemlite(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """GemLite (Triton): `GemLiteLinear.pack(W_q, scales, zeros)`, weights `(W_q - zeros) scales`, in float16.

    It tunes itself at the first call: its own default, a short list of launches.
    """
    made = _integers(size, seed, device, torch.float16)
    library = module("gemlite")

    def layer() -> Any:
        linear = library.GemLiteLinear(
            W_nbits=4, group_size=GROUP, in_features=size.inputs, out_features=size.outputs,
            input_dtype=library.DType.FP16, output_dtype=library.DType.FP16,
        )  # fmt: skip
        return linear.pack(made.codes, made.scale, torch.full_like(made.scale, 8), None)

    return _contender("gemlite", made, layer, lambda linear: linear(made.x), rotated_bytes, "float16")


def aten(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """PyTorch's own `_weight_int4pack_mm` (tinygemm), in bfloat16: weights `(q - 8) scale + zero`.

    The first of two weights lies in the high nibble of a byte.
    """
    made = _integers(size, seed, device, torch.bfloat16)
    sides = torch.stack([made.scale.T, torch.zeros_like(made.scale.T)], dim=-1).contiguous()
    bytes_ = (made.codes[:, ::2] << 4) | made.codes[:, 1::2]

    def weights() -> Any:
        return torch.ops.aten._convert_weight_to_int4pack(bytes_, 8), sides.clone()

    def call(held: Any) -> torch.Tensor:
        return torch.ops.aten._weight_int4pack_mm(made.x, held[0], GROUP, held[1])

    if device != "cuda":
        raise Absent(f"on {device} this is another kernel; it is measured on cuda")
    return _contender("aten int4", made, weights, call, rotated_bytes, "bfloat16")


def humming(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """Humming (CUDA, compiled at the first call): `HummingLayer` with symmetric integers of 4 bits, in float16."""
    made = _integers(size, seed, device, torch.float16)
    library = module("humming.layer")
    places = 4 * torch.arange(8, device=device)
    words = (made.codes.view(size.outputs, -1, 8).long() << places).sum(-1)
    words = torch.where(words >= 2**31, words - 2**32, words).int()

    def layer() -> Any:
        linear = library.HummingLayer(
            shape_n=size.outputs, shape_k=size.inputs, torch_dtype=torch.float16,
            weight_config={"dtype": "int4", "group_size": GROUP},
        )  # fmt: skip
        linear = linear.to(device)
        linear.load_from_tensors({"weight": words, "weight_scale": made.scale})
        linear.transform()
        return linear

    return _contender("humming", made, layer, lambda linear: linear(made.x), rotated_bytes, "float16")


def _contender(
    name: str,
    made: _Integers,
    build: Callable[[], Any],
    call: Callable[[Any], torch.Tensor],
    rotated_bytes: int,
    dtype: str,
) -> Contender:
    nbytes = made.codes.numel() // 2 + made.scale.nbytes
    held = [build() for _ in range(n_copies(nbytes, rotated_bytes))]
    return Contender(
        name=name, kind="peer", dtype=dtype, calls=tuple(partial(call, one) for one in held),
        bytes_moved=nbytes + made.x.nbytes + 2 * made.product.numel(), bytes_written=2 * made.product.numel(),
        reference=made.product, tolerance=TOLERANCE,
    )  # fmt: skip


def bitsandbytes(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """`matmul_4bit` of bitsandbytes on NF4 in blocks of 64 with float32 scales, in float16."""
    library = module("bitsandbytes")
    draw = torch.Generator(device).manual_seed(seed)
    x = torch.randn(size.rows, size.inputs, generator=draw, device=device).half()
    dense = torch.randn(size.outputs, size.inputs, generator=draw, device=device).half() / size.inputs**0.5
    packed, state = library.functional.quantize_4bit(dense, blocksize=NF4_BLOCK, quant_type="nf4")
    exact = library.functional.dequantize_4bit(packed, state).double()
    states = [(packed, state)]
    nbytes = packed.nbytes + state.absmax.nbytes
    for _ in range(n_copies(nbytes, rotated_bytes) - 1):
        states.append(library.functional.quantize_4bit(dense, blocksize=NF4_BLOCK, quant_type="nf4"))
    return Contender(
        name="bitsandbytes nf4", kind="peer", dtype="float16",
        calls=tuple(partial(library.matmul_4bit, x, w.t(), s) for w, s in states),
        bytes_moved=nbytes + x.nbytes + 2 * size.rows * size.outputs, bytes_written=2 * size.rows * size.outputs,
        reference=x.double() @ exact.T, tolerance=TOLERANCE,
    )  # fmt: skip


def int_mm(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """PyTorch's `_int_mm`: int8 by int8 to int32, without scales. On a GPU it takes more than 16 rows."""
    draw = torch.Generator(device).manual_seed(seed)
    x, weights = (
        torch.randint(-128, 128, (rows, size.inputs), generator=draw, device=device, dtype=torch.int8)
        for rows in (size.rows, size.outputs)
    )

    def call(held: torch.Tensor) -> torch.Tensor:
        return torch._int_mm(x, held.T)

    return _bytes_by_bytes("int_mm", x, weights, call, 4, 0.0, rotated_bytes)


def scaled_mm(size: Any, seed: int, device: str, rotated_bytes: int) -> Contender:
    """PyTorch's `_scaled_mm`: E4M3 by E4M3 with a scale of 1 for every row of both, to bfloat16."""
    draw = torch.Generator(device).manual_seed(seed)
    x, weights = (
        torch.randn(rows, size.inputs, generator=draw, device=device).to(torch.float8_e4m3fn)
        for rows in (size.rows, size.outputs)
    )
    ones = torch.ones(size.rows, 1, device=device), torch.ones(1, size.outputs, device=device)

    def call(held: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(x, held.T, *ones, out_dtype=torch.bfloat16)

    return _bytes_by_bytes("scaled_mm", x, weights, call, 2, TOLERANCE, rotated_bytes)


def _bytes_by_bytes(
    name: str,
    x: torch.Tensor,
    weights: torch.Tensor,
    call: Callable[[torch.Tensor], torch.Tensor],
    result_bytes: int,  # of one number
    tolerance: float,
    rotated_bytes: int,
) -> Contender:
    copies = [weights] + [weights.clone() for _ in range(n_copies(weights.nbytes, rotated_bytes) - 1)]
    product = x.double() @ weights.double().T
    written = result_bytes * product.numel()
    return Contender(
        name=name, kind="peer", dtype=str(x.dtype).removeprefix("torch."),
        calls=tuple(partial(call, one) for one in copies), bytes_moved=x.nbytes + weights.nbytes + written,
        bytes_written=written, reference=product, tolerance=tolerance,
    )  # fmt: skip
