"""What ceilings, compiled code and measurements say of claims B1 to B6, on bits, bytes and bandwidth, in sentences."""

from reports.kernels import Found
from reports.kernels_ceilings import (
    CODEBOOKS,
    FOUR,
    GPU,
    GROUP,
    INTEGERS,
    LAYOUTS,
    LONG,
    TOKENS,
    cache_of,
    formats,
    label,
    place,
    shrunk,
)
from theory.roofline import DECODERS, FLOAT32_BITS, Decoder, break_even_bits, double_quantized_bits, stored_bits


def speed_claim(found: Found) -> str:
    """Claim B1: what was measured of the ceilings."""
    gpus = [row for row in found.speeds if row.device != "cpu"]
    text = "Claim B1, tokens per second are bandwidth over bytes, is what these ceilings are made of. "
    if not gpus:
        text += "On a GPU nothing has been measured. "
    if not found.speeds:
        return text + "Nor has a model been timed on a CPU."
    reached = sorted((row.decode / row.roofline, f"{label(row)} on {place(row)}") for row in found.speeds)
    (least, at_least), (most, at_most) = reached[0], reached[-1]
    shares = f"{least:.2f} of the roofline at the bandwidth measured ({at_least})"
    if len(reached) > 1:
        shares += f" to {most:.2f} ({at_most})"
    return f"{text}Models that were timed reach {shares}."


def cache_claim() -> str:
    """Claim B2 in one sentence."""
    tokens = TOKENS[-1]
    eight, all_of, one = LAYOUTS
    weights = eight.token_bytes(FOUR)

    def said(d: Decoder, bits: int) -> str:
        held = cache_of(bits).n_bytes(d, tokens)
        return f"{held / 1e9:.1f} GB of a {bits}-bit cache, {held / d.token_bytes(FOUR):.2f} times as much"

    return (
        f"Claim B2 holds for one layout of heads: with 4-bit weights a token of {LONG.name} reads {weights / 1e9:.1f} "
        f"GB of them, and at {tokens // 1024}K tokens, with a key-value head for 8 heads of queries, "
        f"{said(eight, 16)}; it does not with a key-value head for each ({said(all_of, 16)}), with one for all "
        f"({said(one, 16)}), nor as it is with {said(eight, 4)}."
    )


def size_claim() -> str:
    """Claim B3 in one sentence."""
    whole = {name: 1 - d.stored_bytes(FOUR) / d.stored_bytes(FLOAT32_BITS, FLOAT32_BITS)
             for name, d in DECODERS.items()}  # fmt: skip
    least, most = min(whole, key=whole.__getitem__), max(whole, key=whole.__getitem__)
    return (
        f"Claim B3, 87.5% from FP32 to INT4, is true of codes alone: with a 16-bit scale for {GROUP} weights linear "
        f"layers shrink by {shrunk(FOUR):.1%}, with zero points and groups of 32 by "
        f"{shrunk(stored_bits(4, 32, 32)):.1%}; and whole models, embedding and head in 16 bits, by {whole[least]:.1%} "
        f"({least}) to {whole[most]:.1%} ({most})."
    )


def fusion_claim(found: Found) -> str:
    """Claim B4, with what models that were timed both ways say of it."""
    text = (
        "Claim B4 is arithmetic: a pass of its own that dequantizes writes 16 bits and reads them back, which with the "
        "codes is more than the 16 of plain weights at any width, unless a cache holds them."
    )
    timed = {(row.model_sha256, place(row), row.product): row for row in found.speeds}
    for (model, where, product), row in timed.items():
        apart = timed.get((model, where, "dequantize"))
        if product == "auto" and apart and row.decode_ratio and apart.decode_ratio:
            text += (f" Measured ({label(row)}, {where}): {apart.decode_ratio:.2f} times the speed of bfloat16 where "
                     f"weights are dequantized apart, {row.decode_ratio:.2f} as products were chosen.")  # fmt: skip
    return text


def codebook_claim(found: Found) -> str:
    """Claim B5: whether codebooks are held back by instructions, as far as compiled code says."""
    known = {one.kernel: one for one in formats(found)}
    integers, codebooks = known[INTEGERS], [known[name] for name in CODEBOOKS if known[name].instructions]
    if not codebooks or integers.instructions is None:
        return "Claim B5 is open: the kernels have not been compiled, nor timed."
    assert GPU.issue is not None
    said = [f"{one.label}, takes {one.per_weight:.2f} instructions a weight, which are the lower roof of an {GPU.name} "
            f"below {break_even_bits(GPU.issue, GPU.bandwidth, one.per_weight or 0.0):.2f} bits, and may reach "
            f"{one.most:.1f} times the speed of 16 bits" for one in codebooks]  # fmt: skip
    timed = [one for one in (integers, *codebooks) if one.measured is not None]
    end = "; ".join(f"{one.label} {one.measured:.2f} times on {one.on}" for one in timed)
    return (
        f"Claim B5 is open: {'; '.join(said)}; {integers.label}, {integers.most:.1f}. What the reads of a codebook "
        f"wait for is not in these roofs. Measured: {end or 'nothing yet'}."
    )


def scale_claim() -> str:
    """Claim B6 in one sentence."""
    once, twice = 32 / 64, double_quantized_bits(8, 64, 32, 256)
    return (
        f"Claim B6 is arithmetic: a scale of 32 bits for 64 weights is {once:g} bits a weight, one of 8 that shares a "
        f"32-bit scale with 255 others {twice:.3f}: {once - twice:.3f} saved."
    )
