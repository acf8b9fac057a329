"""What a model's matrices take in one number format after the other, under one coder after the other.

Weights as they are, in FP32 and BF16, are coded in planes of bytes, the exponent moved to a byte of its own as ZipNN
does (Hershcovitch et al. 2024, arXiv:2411.05239): a word is turned left by one bit, so that its sign follows its
mantissa. General-purpose coders get the words as they lie in a file. Quantized weights, FP8 (E4M3, a scale per row)
among them, are coded alphabet by alphabet, with everything beside the codes charged as it is stored.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch

from suite.coding import Ans, Exponents, Gzip, Huffman, Lzma, Zstd, entropy_bits
from suite.grids import Integer, Scaled
from suite.grids.layout import Group
from suite.methods import method_named
from suite.models.architecture import linear
from suite.models.checkpoint import Checkpoint
from suite.quantize import generator_for, quantize_layer
from suite.recipe import Recipe, Target
from suite.store import CodedSize, WeightShape

Coder = Huffman | Ans | Exponents | Gzip | Zstd | Lzma
_ORDER_0 = (Huffman(), Ans())
_GENERAL = (Gzip(), Zstd(), Lzma())
_EDGES = np.linspace(-16, 16, 1025)


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A way to write weights down: a method's recipe at one width and group, or weights as they are, `recipe` None.

    `swept` formats are there for their group only, and no general-purpose coder is tried on them.
    """

    name: str
    recipe: Recipe | None = None
    swept: bool = False

    @property
    def target(self) -> Target | None:
        """How weights are rounded."""
        return None if self.recipe is None else self.recipe.weights


def formats(methods: Sequence[str], bits: Iterable[float], groups: Sequence[Group]) -> list[Format]:
    """FP32, BF16 and FP8, and every method at every width that it takes, and in every group that its grid can have.

    Raises `ValueError` for a method that needs more than the weights.
    """
    found = [Format(name=name) for name in ("fp32", "bf16")] + [Format(name="fp8", recipe=_fp8())]
    wanted = sorted(set(bits))
    for method in (method_named(name) for name in methods):
        if method.needs != "nothing":
            raise ValueError(f"{method.name} needs {method.needs}: only the weights are looked at here")
        widths = [method.recipe()] if method.fixed else [method.recipe(bits=b) for b in wanted if b in method.bits]
        for recipe in widths:
            found.append(Format(name=method.name, recipe=recipe))
            found += [Format(name=method.name, recipe=other, swept=True)
                      for group in groups for other in _regrouped(recipe, group) if other != recipe]  # fmt: skip
    return list({(f.name, str(f.recipe)): f for f in reversed(found)}.values())[::-1]


def _fp8() -> Recipe:
    return replace(method_named("fp8").recipe(), coding=Exponents(exponent_bits=4, mantissa_bits=3))


def _regrouped(recipe: Recipe, group: Group) -> list[Recipe]:
    """The recipe with another group, where its format leaves that open."""
    target = recipe.weights
    if target is None or not isinstance(target.grid, Integer | Scaled) or getattr(target.grid, "pad", False):
        return []
    if target.grid.axis == 0 or (target.grid.axis == "flat" and not isinstance(group, int)):
        return []
    grid = replace(target.grid, group=group)
    return [] if grid.unsupported else [replace(recipe, weights=replace(target, grid=grid))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What every row says of where it comes from."""

    model: str
    model_sha256: str
    code: str
    env: str
    command: str
    started: str


@torch.no_grad()
def coded_sizes(checkpoint: Checkpoint, i: int, chosen: Sequence[Format], origin: Origin) -> list[CodedSize]:
    """The rows of block `i`'s linear layers, in every format under every coder."""
    block = checkpoint.block(i)
    found: list[CodedSize] = []
    for layer in checkpoint.architecture.layers:
        name, W = checkpoint.architecture.full_name(i, layer), linear(block, layer).weight.float()
        for form in chosen:
            size = CodedSize(
                layer=name, format=form.name, recipe="" if form.recipe is None else str(form.recipe), bits=0.0,
                group="", coder="", n_weights=W.numel(), n_bits=0.0, beside_bits=0, nmse=0.0, **asdict(origin),
            )  # fmt: skip
            found += _plain(W, form.name, size) if form.target is None else _quantized(W, form, size, name)
    return found


def _plain(W: torch.Tensor, kind: str, size: CodedSize) -> Iterator[CodedSize]:
    """Rows of weights as they are, in FP32 or rounded to BF16."""
    Q = W if kind == "fp32" else W.bfloat16()
    width = 8 * Q.element_size()
    words = Q.contiguous().view(torch.int32 if width == 32 else torch.int16).numpy().reshape(-1)
    size = replace(size, bits=width, nmse=_nmse(W, Q.float()))
    planes = byte_planes(words)
    yield from _rows(size, {"fixed": width * W.numel(), "entropy": sum(map(_entropy, planes))})
    yield from _rows(size, {coder.name: 8 * sum(len(coder.encode(p)) for p in planes) for coder in _ORDER_0})
    yield from _rows(size, {coder.name: 8 * len(coder.encode(words.view(np.uint8))) for coder in _GENERAL})
    exponents, parts = Exponents(exponent_bits=8, mantissa_bits=7), float_parts(words, 8, width - 9)
    top = words if width == 16 else words >> 16  # FP32's lower 16 bits stay as they are
    rest = 8 * len(exponents.encode(top.astype(np.uint16))) + (width - 16) * W.numel()
    yield from _rows(size, {exponents.name: rest, **parts})


def _quantized(W: torch.Tensor, form: Format, size: CodedSize, name: str) -> Iterator[CodedSize]:
    """Rows of weights rounded to a grid."""
    assert form.target is not None and form.recipe is not None
    found = quantize_layer(W, form.target, None, generator_for(0, name))
    grid, streams = form.target.grid, [s.numpy() for s in found.grid.streams(found.codes)]
    beside = 8 * -(-found.grid.beside_bits // 8)
    size = replace(size, bits=grid.bits, beside_bits=beside, nmse=_nmse(W, found.dequantize()),
                   group=str(getattr(grid, "group", "")))  # fmt: skip
    yield from _rows(size, {"fixed": found.n_bits, "entropy": found.entropy_bits})
    coders: list[Coder] = [*_ORDER_0] if form.swept else [*_ORDER_0, *_GENERAL]
    if isinstance(form.recipe.coding, Exponents):
        coders.append(form.recipe.coding)
        parts = float_parts(streams[0], form.recipe.coding.exponent_bits, form.recipe.coding.mantissa_bits)
        yield from _rows(replace(size, beside_bits=0), parts)
    yield from _rows(size, {coder.name: beside + 8 * sum(len(coder.encode(s)) for s in streams) for coder in coders})


def _rows(size: CodedSize, bits: dict[str, float]) -> Iterator[CodedSize]:
    return (replace(size, coder=coder, n_bits=float(n)) for coder, n in bits.items())


def byte_planes(words: np.ndarray) -> list[np.ndarray]:
    """Floating-point words (n,), int16 or int32, as planes of bytes, the exponent's first, the sign's last.

    >>> byte_planes(np.array([0x3F80], dtype=np.int16))  # 1.0 in BF16: exponent 127, mantissa 0, sign 0
    [array([127], dtype=uint8), array([0], dtype=uint8)]
    """
    width = 8 * words.itemsize
    unsigned = words.view(f"u{words.itemsize}")
    turned = unsigned << np.array(1, unsigned.dtype) | unsigned >> np.array(width - 1, unsigned.dtype)
    return [(turned >> np.array(shift, unsigned.dtype)).astype(np.uint8) for shift in range(width - 8, -1, -8)]


def float_parts(words: np.ndarray, exponent_bits: int, mantissa_bits: int) -> dict[str, float]:
    """Total bits of sign, exponent and mantissa at their empirical entropies.

    A mantissa of more than 8 bits is taken in its top 7 bits and then bytes: an upper bound of its entropy, since no
    sample is large enough for the alphabet of all of them.
    """
    unsigned = words.view(f"u{words.itemsize}").astype(np.uint32)
    mantissa = unsigned & np.uint32((1 << mantissa_bits) - 1)
    cuts = [mantissa_bits] if mantissa_bits <= 8 else [mantissa_bits, *range(mantissa_bits - 7, 0, -8)]
    pieces = [mantissa % (1 << high) >> low for high, low in zip(cuts, [*cuts[1:], 0], strict=True)]
    exponent = unsigned >> mantissa_bits & np.uint32((1 << exponent_bits) - 1)
    return {"sign": _entropy(unsigned >> (exponent_bits + mantissa_bits) & np.uint32(1)),
            "exponent": _entropy(exponent), "mantissa": sum(map(_entropy, pieces))}  # fmt: skip


def _entropy(symbols: np.ndarray) -> float:
    return entropy_bits(torch.from_numpy(symbols.astype(np.int64)))


def _nmse(W: torch.Tensor, Q: torch.Tensor) -> float:
    energy = float((W.double() ** 2).sum())
    return float(((W.double() - Q.double()) ** 2).sum()) / energy if energy else 0.0


@torch.no_grad()
def weight_shapes(checkpoint: Checkpoint, i: int, origin: Origin) -> list[WeightShape]:
    """How the weights of block `i`'s linear layers are distributed."""
    block, found = checkpoint.block(i), []
    for layer in checkpoint.architecture.layers:
        W = linear(block, layer).weight.double()
        rms = float(W.square().mean().sqrt())
        scaled = (W / (rms or 1.0)).clamp(-16, 16).numpy()
        found.append(WeightShape(
            model=origin.model, model_sha256=origin.model_sha256, layer=checkpoint.architecture.full_name(i, layer),
            n_weights=W.numel(), rms=rms, counts=np.histogram(scaled, _EDGES)[0].astype(np.int64),
        ))  # fmt: skip
    return found
