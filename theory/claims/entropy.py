"""Claims about entropy and description length, N1 to N8.

Of a model's weights a seed draws rows, and of an initialization its random numbers; where text is read it draws rows of
it, and where a model is trained its initialization, its data and their order.
"""

from theory.claims.frame import Claim, above, below
from theory.entropy import (
    coded_against_grouped,
    codes,
    description_length,
    exponents,
    mantissa_noise,
    puzzle,
    zip_selection,
)

GROUP = "Entropy"
_SOURCES = ("Gaussian", "Laplacian", "Student's t of 3", "a layer", "a layer's outputs")
_OWN = ("of one model of 3.7 million parameters, trained and kept in FP32; `bitfrontier claims --run --only {} MODEL` "
        "says it of another")  # fmt: skip
_TEXT = ("of a model of 0.2 million parameters on 65 thousand tokens, twice; the instruction tuning of large models "
         "that the paper is about is out of reach here. Differences scatter by .06 nats (plain), .15 (redundant) and "
         ".08 (random) from seed to seed: about 30 seeds, 20 minutes of a core, would decide the two last")  # fmt: skip

CLAIMS = (
    Claim(id="N1", group=GROUP, kind="mechanism", measure=puzzle.shares, on_model=True, seeds=6,
          scope=_OWN.format("N1"), sentence="gzip leaves FP32 weights in the high nineties of percent.",
          rule=(above("gzip on FP32, trained", 0.95),)),
    Claim(id="N2", group=GROUP, kind="mechanism", measure=puzzle.growth, on_model=True, seeds=6, takes="cases",
          scope=_OWN.format("N2"),
          sentence="Trained weights have higher entropy than initial ones; well trained and looking random to gzip are "
                   "nearly the same.",
          rule=(above("bits, share of the spread", 0.0), above("bits, fixed step", 0.0),
                above("gzip's share, trained less noise", -0.01), above("gzip's share, trained less initial", 0.01))),
    Claim(id="N3", group=GROUP, kind="mechanism", measure=codes.by_group, on_model=True, seeds=6, takes="cases",
          scope=_OWN.format("N3"), sentence="Entropy-coding 4-bit codes makes them smaller by a further 1.3 times.",
          rule=tuple(above(f"gain, {group}", 1.3) for group in
                     ("groups of 32", "groups of 64", "groups of 128", "one scale a row", "one scale a tensor"))),
    Claim(id="N4", group=GROUP, kind="mechanism", measure=exponents.concentration, on_model=True, seeds=12,
          takes="cases", scope=_OWN.format("N4"),
          sentence="Exponents of trained weights concentrate; the lossless limit is near 4.67 bits for FP8 and about "
                   "11 bits for BF16; the cause is alpha-stable weights.",
          rule=(below("BF16, exponents", 3.0), below("E4M3, exponents", 3.0),
                below("FP8 (E4M3) off 4.67 bits by", 0.25), below("BF16 off 11 bits by", 0.5),
                below("tail index", 2.0), below("alpha of sums of 16 less of one", 0.05),
                above("nats, stable over the best rival", 0.0),
                *(above(f"bound less entropy, alpha {alpha}", 0.0) for alpha in (1.2, 1.5, 1.8)))),
    Claim(id="N5", group=GROUP, kind="mechanism", measure=coded_against_grouped.worst, on_model=True, seeds=4,
          takes="cases",
          scope="by squared errors of weights and of one layer's outputs; divergences of whole models are in the "
                "benchmark's own tables",
          sentence="Entropy-coded scalar quantization at 4 bits and below beats fixed-width grouped quantization at "
                   "equal bytes.",
          rule=tuple(below(f"{source}, {bits} bits", 1.0) for source in _SOURCES
                     for bits in coded_against_grouped.BITS)),
    Claim(id="N6", group=GROUP, kind="mechanism", measure=mantissa_noise.free_bits, on_model=True, seeds=6,
          takes="cases", scope=_OWN.format("N6"),
          sentence="Most of an FP32 weight is noise to the next-token loss: more than half of its 32 bits can be "
                   "random before the divergence moves.",
          rule=(above("bits at 1% of 8-bit codes' divergence", 16.0),
                above("bits at 100% of 8-bit codes' divergence", 16.0))),
    Claim(id="N7", group=GROUP, kind="scale-dependent", measure=zip_selection.compared, seeds=5, takes="cases",
          tier="nightly", scope=_TEXT,
          sentence="The Entropy Law: at equal tokens, training data that compress less give lower loss.",
          rule=tuple(below(f"ZIP less random rows, {kind} text", 0.0) for kind in zip_selection.CORPORA)),
    Claim(id="N8", group=GROUP, kind="theorem", measure=description_length.two_parts, on_model=True, seeds=48,
          tier="full", scope=_OWN.format("N8"),
          sentence="Two-part description length has its minimum at an interior bit width, which rises one bit for "
                   "fourfold text where KL = c / 4^b.",
          rule=(*(above(f"bits beyond the best, {end}, {n} tokens a weight", 0.0)
                  for end in ("narrowest", "widest") for n in (3, 20)),
                above("bits per fourfold text, 4 to 7 bits", 0.95),
                below("bits per fourfold text, 4 to 7 bits", 1.05))),
)  # fmt: skip
