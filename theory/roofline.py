"""How large a language model is, and how fast a memory at most lets it generate: closed forms, nothing measured.

Decoding a token reads every weight and the whole cache of keys and values once, and hardly computes: over bytes per
second the bytes are the least time that a token takes, its *roofline* (Williams, Waterman, Patterson 2009, "Roofline:
An Insightful Visual Performance Model for Multicore Architectures"). A *ceiling* is a rate that nothing exceeds as long
as no cache of the processor holds what is read; what is measured lies below.

A second roof is what decoding a weight costs: a processor starts so many instructions in a second, and no product is
faster than all that its code must start. Imports neither numpy nor torch.
"""

from dataclasses import dataclass
from typing import Literal

BYTE = 8  # bits
DENSE_BITS = 16  # of bfloat16 and float16: weights and caches that are not quantized
FLOAT32_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoder:
    """A decoder of `blocks` equal blocks by its sizes: attention of `heads` queries on `kv_heads`, then a feed-forward.

    `width` is that of the residual stream, `inner` of the feed-forward, which has three matrices where it is `gated`,
    else two. Norms are of root mean squares (a gain), of these and of each head's queries and keys too, or of layers (a
    gain and an offset); `norms` is how many there are in a block. A `tied` head shares the embedding's weights.
    """

    name: str
    blocks: int
    width: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    vocabulary: int
    tied: bool = False
    gated: bool = True
    norm: Literal["rms", "rms and heads", "layer"] = "rms"
    norms: int = 2

    @property
    def linear(self) -> int:
        """Weights of the blocks' linear layers, which are what is quantized."""
        attention = 2 * self.width * self.head * (self.heads + self.kv_heads)
        return self.blocks * (attention + (3 if self.gated else 2) * self.width * self.inner)

    @property
    def gains(self) -> int:
        """Parameters of all norms, the last one included."""
        one = self.width * (2 if self.norm == "layer" else 1)
        of_heads = 2 * self.head if self.norm == "rms and heads" else 0
        return self.blocks * (self.norms * one + of_heads) + one

    @property
    def embedding(self) -> int:
        """Weights of the embedding; a head that is not tied has as many."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.linear + self.gains + self.embedding * (1 if self.tied else 2)

    def stored_bytes(self, bits: float, outside_bits: float = DENSE_BITS) -> float:
        """What it takes with linear layers at `bits`, scales included, and all else at `outside_bits`.

        >>> DECODERS["Llama 3.1 8B"].stored_bytes(16) / 1e9  # doctest: +ELLIPSIS
        16.06...
        """
        outside = self.parameters - self.linear
        return (self.linear * _positive(bits) + outside * _positive(outside_bits)) / BYTE

    def token_bytes(self, bits: float, outside_bits: float = DENSE_BITS) -> float:
        """Of that, what decoding one token reads: all but the embedding, of which it reads a row; the head whole."""
        outside = self.gains + self.embedding
        return (self.linear * _positive(bits) + outside * _positive(outside_bits)) / BYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFormat:
    """Keys by channel in groups of `group` tokens, values by token in groups of `group` channels, or plain 16 bits.

    Every group stores `beside_bits` for its scale and zero point. Of the newest tokens, fewer than `window` keys and at
    most `window` values wait in 16 bits: the layout of KIVI (Liu et al. 2024, arXiv:2402.02750), whose figures these
    are. With 16 bits nothing is grouped and nothing waits.
    """

    bits: int
    group: int = 32
    beside_bits: int = 32
    window: int = 128

    def __post_init__(self) -> None:
        if not (1 <= self.bits <= 8 or self.bits == DENSE_BITS):
            raise ValueError(f"bits {self.bits}: a cache holds 1 to 8 or {DENSE_BITS}")
        if self.group < 1 or self.window < self.group or self.window % self.group:
            raise ValueError(f"window {self.window}, group {self.group}: keys wait for whole groups of 1 token or more")

    def n_bytes(self, decoder: Decoder, tokens: int) -> int:
        """What is held after `tokens` tokens of one sequence, and read for the next one, in all blocks."""
        if tokens < 0:
            raise ValueError(f"tokens {tokens}: a cache holds 0 or more")
        if self.bits == DENSE_BITS:
            return decoder.blocks * 2 * tokens * self._exact(decoder)
        keys = tokens // self.window * self.window
        values = max(0, tokens - self.window)
        heads, channels = decoder.kv_heads, decoder.head
        of_group = -(-heads * channels * (self.bits * self.group + self.beside_bits) // BYTE)  # keys of `group` tokens
        groups = heads * -(-channels // self.group)  # of one token's values
        of_token = -(-(heads * channels * self.bits + groups * self.beside_bits) // BYTE)
        waiting = (2 * tokens - keys - values) * self._exact(decoder)
        return decoder.blocks * (keys // self.group * of_group + values * of_token + waiting)

    @staticmethod
    def _exact(decoder: Decoder) -> int:
        return decoder.kv_heads * decoder.head * DENSE_BITS // BYTE


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A processor by its memory: bytes per second and bytes; `source` says who states them.

    `issue` is how many instructions it starts in a second, one for each of a warp's lanes counted; None where unknown.
    """

    name: str
    bandwidth: float
    memory: float | None
    source: str
    issue: float | None = None


def ceiling(bandwidth: float, weights: float, cache: float = 0.0, sequences: int = 1) -> float:
    """Tokens per second, of all `sequences` together: a step reads the `weights` once and a `cache` for each sequence.

    `bandwidth` in bytes per second, `weights` and `cache` in bytes.

    >>> ceiling(4.8e12, 16e9)
    300.0
    """
    return sequences * _positive(bandwidth) / (_positive(weights) + sequences * cache)


def stored_bits(code_bits: float, group: float, beside_bits: float) -> float:
    """Bits per weight of codes that share `beside_bits` of scales and zero points in groups.

    >>> stored_bits(4, 128, 16)
    4.125
    """
    return code_bits + beside_bits / _positive(group)


def double_quantized_bits(scale_bits: float, group: float, second_bits: float, second_group: float) -> float:
    """Bits per weight that scales take which are quantized themselves (QLoRA: Dettmers et al. 2023, arXiv:2305.14314).

    >>> 32 / 64 - double_quantized_bits(8, 64, 32, 256)  # what the paper calls 0.37
    0.373046875
    """
    return stored_bits(scale_bits, second_group, second_bits) / _positive(group)


def moved_bits(bits: float, *, fused: bool) -> float:
    """Bits that a product moves for each weight of `bits`: these; and where a pass of its own dequantizes, 32 more.

    Then 16 are written and read back, unless a cache holds them.

    >>> moved_bits(4.125, fused=True), moved_bits(4.125, fused=False)
    (4.125, 36.125)
    """
    return _positive(bits) + (0 if fused else 2 * DENSE_BITS)


def instruction_ceiling(issue: float, per_weight: float) -> float:
    """Weights per second that a code decodes at most which starts `per_weight` instructions for each."""
    return _positive(issue) / _positive(per_weight)


def break_even_bits(issue: float, bandwidth: float, per_weight: float) -> float:
    """The bits per weight at which memory and instructions take as long: with fewer, instructions decide."""
    return BYTE * _positive(bandwidth) / instruction_ceiling(issue, per_weight)


def _positive(value: float) -> float:
    if not value > 0:
        raise ValueError(f"expected a number above 0, got {value}")
    return value


def _decoders(*all_of: Decoder) -> dict[str, Decoder]:
    return {one.name: one for one in all_of}


# sizes as in the models' published configurations
DECODERS = _decoders(
    Decoder(name="Qwen3 0.6B", blocks=28, width=1024, heads=16, kv_heads=8, head=128, inner=3072, vocabulary=151_936,
            tied=True, norm="rms and heads"),
    Decoder(name="Llama 2 7B", blocks=32, width=4096, heads=32, kv_heads=32, head=128, inner=11_008, vocabulary=32_000),
    Decoder(name="Llama 3.1 8B", blocks=32, width=4096, heads=32, kv_heads=8, head=128, inner=14_336,
            vocabulary=128_256),
    Decoder(name="Llama 2 13B", blocks=40, width=5120, heads=40, kv_heads=40, head=128, inner=13_824,
            vocabulary=32_000),
    Decoder(name="Llama 3.1 70B", blocks=80, width=8192, heads=64, kv_heads=8, head=128, inner=28_672,
            vocabulary=128_256),
    Decoder(name="Falcon 180B", blocks=80, width=14_848, heads=232, kv_heads=8, head=64, inner=59_392,
            vocabulary=65_024, gated=False, norm="layer"),
    Decoder(name="Llama 3.1 405B", blocks=126, width=16_384, heads=128, kv_heads=8, head=128, inner=53_248,
            vocabulary=128_256),
)  # fmt: skip

# 132 multiprocessors with 4 schedulers of 32 lanes (NVIDIA H100 architecture whitepaper); 1,980 MHz is the highest
# clock that the driver of an H100 SXM or H200 allows, so no run starts more
_HOPPER_ISSUE = 132 * 4 * 32 * 1.98e9

DEVICES = (
    Device(name="Snapdragon X Elite", bandwidth=135e9, memory=64e9, source="Qualcomm: LPDDR5x-8448, 128 bits"),
    Device(name="Jetson AGX Orin", bandwidth=204.8e9, memory=64e9, source="NVIDIA: LPDDR5, 256 bits"),
    Device(name="Apple M4 Max", bandwidth=546e9, memory=128e9, source="Apple, technical specifications of MacBook Pro"),
    Device(
        name="Apple M3 Ultra", bandwidth=819e9, memory=512e9, source="Apple, technical specifications of Mac Studio"
    ),
    Device(name="H100 SXM", bandwidth=3.35e12, memory=80e9, source="NVIDIA H100 datasheet", issue=_HOPPER_ISSUE),
    Device(name="H200", bandwidth=4.8e12, memory=141e9, source="NVIDIA H200 datasheet", issue=_HOPPER_ISSUE),
    Device(name="B200", bandwidth=8e12, memory=180e9, source="NVIDIA DGX B200 datasheet: 64 TB/s, 1,440 GB, 8 GPUs"),
)
