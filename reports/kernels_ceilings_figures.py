"""The figures of ceilings: each with a caption, a description in words, and the numbers behind it."""

from reports.figures import Plot
from reports.kernels import Found
from reports.kernels_ceilings import (
    CACHE_BITS,
    FOUR,
    GPU,
    GROUP,
    TOKENS,
    WIDTHS,
    cache_of,
    decoders_of_caches,
    devices,
    formats,
    place,
    shrunk,
)
from reports.kernels_ceilings_drawing import draw_caches, draw_formats, draw_rooflines, draw_sizes
from reports.kernels_claims import (
    cache_claim,
    codebook_claim,
    fusion_claim,
    scale_claim,
    size_claim,
    speed_claim,
)
from reports.page import number
from theory.roofline import DECODERS, FLOAT32_BITS, ceiling, stored_bits

_GIGA = 1e9


def ceiling_plots(found: Found) -> list[tuple[Plot, tuple[str, ...]]]:
    """The figures, each with the sentences on claims that stand above it."""
    return [
        (rooflines_plot(found), (speed_claim(found),)),
        (caches_plot(), (cache_claim(),)),
        (sizes_plot(), (size_claim(), scale_claim())),
        (formats_plot(found), (fusion_claim(found), codebook_claim(found))),
    ]


def rooflines_plot(found: Found) -> Plot:
    """Ceilings of every device, model and width, short texts."""
    where, reads = devices(found), {name: [d.token_bytes(bits) for _, bits in WIDTHS] for name, d in DECODERS.items()}
    in_sight = [row for row in found.speeds if row.token_bytes >= min(min(read) for read in reads.values())]
    caption = (
        "A line is a device's bandwidth over the bytes of a token: the most tokens that it decodes in a second, one "
        "text at a time. Below, what models read: linear layers in 16 bits, or in 8, 4 and 2 with a 16-bit scale for "
        f"{GROUP} weights, head and norms in 16, no context; go up from a mark to a line. Bandwidths are datasheets', "
        "in bold measured. Lines are ceilings and no measurements. "
    )
    small = len(found.speeds) - len(in_sight)
    caption += (f"Crosses are models that were timed; {small} that read less than is shown are in the table."
                if found.speeds else "No model has been timed.")  # fmt: skip
    rows = [(device.name, device.source, number(device.bandwidth / _GIGA), "ceiling", name, str(width), f"{bits:g}",
             number(d.token_bytes(bits) / _GIGA), _fits(device.memory, d.stored_bytes(bits)),
             number(ceiling(device.bandwidth, d.token_bytes(bits))))
            for device in where for name, d in DECODERS.items() for width, bits in WIDTHS]  # fmt: skip
    rows += [(f"{place(row)}, measured", "the run below", number(row.bandwidth / _GIGA), "measured",
              f"{row.model} ({row.method})", "" if row.bits is None else f"{row.bits:g}", "",
              number(row.token_bytes / _GIGA), "yes", number(row.decode)) for row in found.speeds]  # fmt: skip
    four = [f"{device.name} {number(ceiling(device.bandwidth, DECODERS['Llama 3.1 8B'].token_bytes(FOUR)), 3)}"
            for device in where]  # fmt: skip
    return Plot(
        key="rooflines", title="Tokens per second that bandwidth allows", caption=caption,
        description=f"Lines of {len(where)} devices fall as one over the bytes of a token. Llama 3.1 8B with 4-bit "
                    f"weights, tokens per second at most: {', '.join(four)}.",
        header=("device", "source", "GB/s", "kind", "model", "bits", "with scales", "GB a token", "fits in memory",
                "tokens/s"),
        rows=tuple(rows), curves=(), figure=draw_rooflines(where, reads, in_sight),
    )  # fmt: skip


def _fits(memory: float | None, stored: float) -> str:
    return "unknown" if memory is None else "yes" if stored <= memory else "no"


def caches_plot() -> Plot:
    """Bytes of weights and caches against context."""
    decoders = decoders_of_caches()
    weights = {(d.name, width): d.token_bytes(bits) for d in decoders for width, bits in WIDTHS}
    held = {(d.name, bits): [cache_of(bits).n_bytes(d, tokens) for tokens in TOKENS]
            for d in decoders for bits in CACHE_BITS}  # fmt: skip
    one = cache_of(4)
    caption = (
        "What decoding one token reads: weights, dotted, and the cache of one text, whether or not a model was "
        f"trained on texts as long. Caches of 8, 4 and 2 bits are laid out as KIVI's: groups of {one.group} with a "
        f"scale and a zero point of 16 bits each, which is one bit more than their name, and the newest {one.window} "
        "tokens in 16 bits. Where a curve crosses a line, cache and weights cost as much. The last three panels are "
        "one model as it is, and as it would be with more or fewer key-value heads."
    )
    words = [f"{d.name} at {TOKENS[-1] // 1024}K tokens: " + ", ".join(
        f"{bits} bits {number(held[d.name, bits][-1] / _GIGA, 3)} GB" for bits in CACHE_BITS)
        + f"; 4-bit weights {number(weights[d.name, 4] / _GIGA, 3)} GB" for d in decoders]  # fmt: skip
    rows = [(d.name, str(bits), f"{tokens:,}", number(cache / _GIGA), number(weights[d.name, 4] / _GIGA),
             number(cache / weights[d.name, 4], 3), number(ceiling(GPU.bandwidth, weights[d.name, 4], cache)))
            for d in decoders for bits in CACHE_BITS
            for tokens, cache in zip(TOKENS, held[d.name, bits], strict=True)]  # fmt: skip
    return Plot(
        key="caches", title="Weights and cache against context", caption=caption, description=". ".join(words) + ".",
        header=("model", "cache bits", "tokens", "cache, GB", "4-bit weights, GB", "cache over weights",
                f"{GPU.name}, tokens/s at most"),
        rows=tuple(rows), curves=(), figure=draw_caches(decoders, weights, held),
    )  # fmt: skip


def sizes_plot() -> Plot:
    """How much smaller than FP32 four bits are, with all that is counted."""
    grouped = stored_bits(4, 32, 32)
    shares = {
        "codes alone": [shrunk(4)] * len(DECODERS),
        f"linear layers, {FOUR:g} bits": [shrunk(FOUR)] * len(DECODERS),
        f"linear layers, {grouped:g} bits": [shrunk(grouped)] * len(DECODERS),
        "the whole model": [1 - d.stored_bytes(FOUR) / d.stored_bytes(FLOAT32_BITS, FLOAT32_BITS)
                            for d in DECODERS.values()],
    }  # fmt: skip
    caption = (
        f"By how much INT4 is smaller than FP32. {FOUR:g} bits are 4 and a 16-bit scale for {GROUP} weights, "
        f"{grouped:g} a scale and a zero point of 16 bits each for 32. The whole model has linear layers at "
        f"{FOUR:g} bits and all else in 16."
    )
    header = ("model", "parameters", "FP32, GB", "four bits, GB", *(f"{name} (%)" for name in shares))
    rows = [(name, f"{d.parameters:,}", number(d.stored_bytes(FLOAT32_BITS, FLOAT32_BITS) / _GIGA),
             number(d.stored_bytes(FOUR) / _GIGA), *(f"{100 * values[i]:.2f}" for values in shares.values()))
            for i, (name, d) in enumerate(DECODERS.items())]  # fmt: skip
    return Plot(key="sizes", title="From FP32 to four bits, everything counted", caption=caption,
                description=size_claim(), header=header, rows=tuple(rows), curves=(),
                figure=draw_sizes(list(DECODERS), shares))  # fmt: skip


def formats_plot(found: Found) -> Plot:
    """What bytes and instructions allow each format's product with one token."""
    every = formats(found)
    caption = (
        "A product with one token, in units of the speed of 16 bits at full bandwidth. The bar ends at the lower one "
        f"of two roofs: bytes, and the instructions that the compiled kernel starts for a weight, on an {GPU.name} "
        f"({GPU.bandwidth / 1e12:g} TB/s, highest clock). Triangles are bytes where a pass of its own dequantizes "
        "weights. Ceilings, no measurements: reads of tables and waiting are not counted. "
    )
    caption += ("Crosses are measured, beside the dense product of the same run." if any(one.measured for one in every)
                else "No kernel has been timed on a GPU.")  # fmt: skip
    words = [f"{one.label}: {one.fused:.2f} by bytes, {one.unfused:.2f} dequantized apart"
             + (f", {one.instructions:.2f} by instructions" if one.instructions else "")
             + (f", {one.measured:.2f} measured" if one.measured else "") for one in every]  # fmt: skip
    rows = [(one.kernel, one.label, f"{one.bits:g}", number(one.per_weight), f"{one.fused:.3f}", f"{one.unfused:.3f}",
             _two(one.instructions), f"{one.most:.3f}", _two(one.measured), one.on) for one in every]  # fmt: skip
    return Plot(
        key="formats", title="Two roofs over every format", caption=caption,
        description="Times as fast as 16 bits, at most. " + "; ".join(words) + ".",
        header=("kernel", "format", "bits", "instructions a weight", "bytes", "bytes, dequantized apart",
                "instructions", "lower roof", "measured", "on"),
        rows=tuple(rows), curves=(), figure=draw_formats(every),
    )  # fmt: skip


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
