"""Claims about bits, bytes and bandwidth, B1 to B7: counted where they are counts, timed where they are times.

What is timed has earned no verdict that a test could ask for again: machines differ, and so do their hours.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

from theory.claims.frame import Claim, above, below
from theory.experiment import Setting
from theory.roofline import (
    BYTE,
    DECODERS,
    DENSE_BITS,
    FLOAT32_BITS,
    CacheFormat,
    double_quantized_bits,
    stored_bits,
)

GROUP = "Bits, bytes and bandwidth"
_TOKENS = 128 * 1024
_FOUR = stored_bits(4, 128, 16)
_SIDE = 4096  # inputs and outputs of a layer that is timed or counted: as models of 7 billion weights have them
_ROUNDS = 7
_QUOTED = {"billm": 1.08, "pb-llm": 1.7, "q2_k": 2.625, "q4_k": 4.5}  # bits a weight, as papers and files name them


def products(setting: Setting) -> Mapping[str, float]:
    """B1 and B4: times of products of one layer, each the median of rounds that take turns, over other times."""
    import torch

    from suite.grids import Integer
    from suite.quantize import quantize_matrix
    from suite.recipe import Recipe, Target
    from suite.runtime.core import Prepared
    from suite.runtime.linear import core_of
    from suite.runtime.products import product_named

    generator = torch.Generator().manual_seed(setting.seed)
    W = torch.randn(_SIDE, _SIDE, generator=generator)
    core = core_of(quantize_matrix(W, recipe=Recipe(weights=Target(Integer(bits=4, convention="full-range")))))
    cpu, made = torch.device("cpu"), dict[str, Prepared]()
    for name in ("dense", "int4pack", "dequantize"):
        made[name] = product_named(name).prepare(core, torch.bfloat16, cpu)
    one, many = (torch.randn(rows, _SIDE, generator=generator, dtype=torch.bfloat16) for rows in (1, 256))
    read = torch.ones(_SIDE, _SIDE, dtype=torch.bfloat16).view(torch.int64)
    calls: dict[str, Callable[[], object]] = {f"{name}, {len(x)}": partial(product, x)
                                              for name, product in made.items() for x in (one, many)}  # fmt: skip
    found = _seconds(calls | {"read": lambda: read.sum()})
    return {"product over reading its weights, 1 row": found["dense, 1"] / found["read"],
            "product over reading its weights, 256 rows": found["dense, 256"] / found["read"],
            "4 bits over 16, 1 row": found["int4pack, 1"] / found["dense, 1"],
            "4 bits over 16, 256 rows": found["int4pack, 256"] / found["dense, 256"],
            "4 bits dequantized apart over 16, 1 row": found["dequantize, 1"] / found["dense, 1"]}  # fmt: skip


def _seconds(calls: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each of `calls`; they take turns, with caches filled by something else in between."""
    import time
    from statistics import median

    import torch

    other, times = torch.ones(1 << 26), dict[str, list[float]]()
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            other.sum()
            begun = time.perf_counter()
            call()
            times.setdefault(name, []).append(time.perf_counter() - begun)
    return {name: median(values[1:]) for name, values in times.items()}


def long_cache(setting: Setting) -> Mapping[str, float]:
    """B2: bytes of the cache over bytes of 4-bit weights that a token reads, 70 billion parameters, 131,072 tokens."""
    model, found = DECODERS["Llama 3.1 70B"], dict[str, float]()
    for heads in (1, 8, 64):
        one = replace(model, kv_heads=heads)
        for bits in (DENSE_BITS, 4):
            held = CacheFormat(bits=bits).n_bytes(one, _TOKENS)
            found[f"{bits}-bit cache over weights, {heads} of 64 heads"] = held / one.token_bytes(_FOUR)
    return found


def shrinking(setting: Setting) -> Mapping[str, float]:
    """B3: by how much FP32 shrinks to INT4: codes, linear layers with their scales, and whole models."""
    whole = [1 - d.stored_bytes(_FOUR) / d.stored_bytes(FLOAT32_BITS, FLOAT32_BITS) for d in DECODERS.values()]
    return {"codes alone": 1 - 4 / FLOAT32_BITS, "linear layers, a 16-bit scale for 128": 1 - _FOUR / FLOAT32_BITS,
            "linear layers, scale and zero point for 32": 1 - stored_bits(4, 32, 32) / FLOAT32_BITS,
            "the model that shrinks most, 16 bits elsewhere": max(whole),
            "the model that shrinks least, 16 bits elsewhere": min(whole)}  # fmt: skip


def decoding(setting: Setting) -> Mapping[str, float]:
    """B5: instructions a weight that decoding codebooks takes over those of INT4, as compiled for one and many rows."""
    from kernels.machine_code import kept

    def slots(kernel: str, size: str) -> float:
        return next(float(row["slots_per_weight"]) for row in kept()
                    if (row["kernel"], row["dtype"], row["architecture"]) == (kernel, "float16", "90")
                    and row["size"].startswith(size) and row["slots_per_weight"])  # fmt: skip

    found = dict[str, float]()
    for size in ("1 x 28672", "32 x 28672", "64 x 28672"):
        rows = size.split()[0]
        way = "gemv" if rows == "1" else "gemm"
        found[f"AQLM 2x8 over INT4, {rows} rows"] = slots(f"aqlm-2x8-{way}", size) / slots(f"w4a16-{way}", size)
    return found


def double_quantization(setting: Setting) -> Mapping[str, float]:
    """B6: bits a weight that double quantization saves, in closed form, and of a layer as it is stored."""
    import torch

    from suite.quantize import quantize_matrix

    W = torch.randn(512, 1024, generator=torch.Generator().manual_seed(setting.seed))
    stored = [quantize_matrix(W, method="nf4", double=double).n_bits / W.numel() for double in (False, True)]
    return {"saved, closed form": 32 / 64 - double_quantized_bits(8, 64, 32, 256),
            "saved, a layer of 512 x 1,024": stored[0] - stored[1]}  # fmt: skip


def recounted(setting: Setting) -> Mapping[str, float]:
    """B7: bits a weight (of a cache: a value) that are stored beyond what is quoted."""
    import torch

    from suite.quantize import quantize_matrix

    generator = torch.Generator().manual_seed(setting.seed)
    W, X = (torch.randn(rows, 1024, generator=generator) for rows in (256, 2048))
    H = X.T @ X / len(X)
    found = {name: quantize_matrix(W, method=name, H=H).n_bits / W.numel() - quoted for name, quoted in _QUOTED.items()}
    # two codebooks of 256 vectors of eight 16-bit values, and a 16-bit scale for each output
    found["aqlm, 4,096 x 4,096"] = (2 * 256 * 8 * 16 + 16 * _SIDE) / _SIDE**2
    model, tokens = DECODERS["Llama 2 7B"], 4096
    values = model.blocks * 2 * tokens * model.kv_heads * model.head
    found["kivi, 4,096 tokens"] = CacheFormat(bits=2).n_bytes(model, tokens) * BYTE / values - 2
    return {f"bits beyond those quoted, {name}": beyond for name, beyond in found.items()}


CLAIMS = (
    Claim(id="B1", group=GROUP, kind="mechanism", measure=products, tier="full", seeds=8, takes="cases",
          sentence="Dense decoding is memory-bound: tokens per second are bandwidth over bytes per token.",
          rule=(*(below(f"product over reading its weights, {rows}", 1.5) for rows in ("1 row", "256 rows")),
                *(below(f"4 bits over 16, {rows}", 0.5) for rows in ("1 row", "256 rows"))),
          scope="of a processor's cores and memory; `bitfrontier kernels --bench` on a GPU would say it of that"),
    Claim(id="B2", group=GROUP, kind="theorem", measure=long_cache, takes="cases",
          sentence="A 70B model at 4 bits with 128K tokens of context reads about as many bytes of the cache as of the "
                   "weights for each token.",
          rule=tuple(part for bits in (16, 4) for heads in (1, 8, 64)
                     for part in (above(f"{bits}-bit cache over weights, {heads} of 64 heads", 0.5),
                                  below(f"{bits}-bit cache over weights, {heads} of 64 heads", 2.0)))),
    Claim(id="B3", group=GROUP, kind="theorem", measure=shrinking, takes="cases",
          sentence="FP32 to INT4 shrinks a model by 87.5%.",
          rule=tuple(above(what, 0.8749) for what in
                     ("codes alone", "linear layers, a 16-bit scale for 128",
                      "linear layers, scale and zero point for 32", "the model that shrinks most, 16 bits elsewhere",
                      "the model that shrinks least, 16 bits elsewhere"))),
    Claim(id="B4", group=GROUP, kind="mechanism", measure=products, tier="full", seeds=8,
          sentence="Without fusing dequantization into the matrix product there is no saving of bandwidth.",
          rule=(above("4 bits dequantized apart over 16, 1 row", 1.0), below("4 bits over 16, 1 row", 1.0)),
          scope="of a processor's cores and memory; `bitfrontier kernels --bench` on a GPU would say it of that"),
    Claim(id="B5", group=GROUP, kind="scale-dependent", measure=decoding, takes="cases",
          sentence="Codebook formats (AQLM) save memory but decode slower than INT4 once instructions decide.",
          rule=tuple(above(f"AQLM 2x8 over INT4, {rows} rows", 1.0) for rows in (1, 32, 64)),
          scope="instructions as this project's kernels are compiled for an H100; what a codebook's reads wait for is "
                "not among them, and `bitfrontier kernels --bench` on a GPU would say"),
    Claim(id="B6", group=GROUP, kind="theorem", measure=double_quantization,
          sentence="Double quantization of scales saves 0.37 bits a parameter.",
          rule=tuple(compared for what in ("closed form", "a layer of 512 x 1,024")
                     for compared in (above(f"saved, {what}", 0.365), below(f"saved, {what}", 0.375)))),
    Claim(id="B7", group=GROUP, kind="mechanism", measure=recounted, takes="cases",
          sentence="Rates that methods quote leave out part of the bytes.",
          rule=tuple(above(f"bits beyond those quoted, {name}", 0.05) for name in
                     (*_QUOTED, "aqlm, 4,096 x 4,096", "kivi, 4,096 tokens"))),
)  # fmt: skip
