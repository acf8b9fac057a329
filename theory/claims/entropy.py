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
          tier="full",          scope=_OWN.format("N8"),
          sentence="Two-part description length has its minimum at an interior bit width, which rises one bit for "
                   "fourfold text where KL = c / 4^b.",
          rule=(*(above(f"bits beyond the best, {end}, {n} tokens a weight", 0.0)
                  for end in ("narrowest", "widest") for n in (3, 20)),
                above("bits per fourfold text, 4 to 7 bits", 0.95),
                below("bits per fourfold text, 4 to 7 bits", 1.05))),
)  # fmt: skip

WHY: dict[str, str] = {
    "N1": "gzip leaves 92.7% of trained FP32 weights, 92.6% of initial ones and 92.6% of Gaussian noise: it is the "
          "format that it sees, not the training. Exponents have 2.6 bits of entropy of 8, so that no more than 83% "
          "is needed, and 84.7% is left where each plane of bytes is coded for itself; in the high nineties a coder "
          "would find next to nothing in the byte that holds them. Weights rounded to BF16 and widened again give "
          "45%, for half of their bytes are zeros.",
    "N2": "At a fixed step training adds 1.54 bits per weight, and the growth of the spreads alone gives 1.55; at a "
          "step that goes with the spread it takes .003 bits away. Initial weights are Gaussian, which has the "
          "largest entropy of all laws of one variance, so that nothing a training does can raise it there. gzip "
          "leaves .09 points more of trained than of initial weights, and .05 more than of noise: what looks random "
          "to gzip may as well not be trained at all. What little it finds is in the last byte, 7.89 bits of entropy "
          "before training and 8.00 after: the random generator's coarseness, which training wears off.",
    "N3": "The gain grows with the group, because a larger group has a larger maximum and its codes crowd about "
          "zero: 1.09 with groups of 32, 1.13 of 64, 1.18 of 128, 1.23 with one scale a row, and 1.53 with one a "
          "matrix. For groups of 32 and 128 the closed form for a Gaussian has 1.09 and 1.18 as well. Groups take "
          "off what an entropy coder would, at the price of their scales.",
    "N4": "Exponents concentrate, 2.58 bits of entropy in BF16 and 2.56 in E4M3, but a Gaussian's have 2.54: a "
          "smooth density of one scale is all it takes. Sign and mantissa of E4M3 are nearly full, so that its words "
          "need 6.50 bits, not 4.67, which counts one bit of mantissa; BF16 needs 10.6. Weights are not alpha- "
          "stable: Hill's index is 10, where it would be below 2, and the best stable law (alpha 1.99) is .0006 nats "
          "less likely than the best rival; sums of 16 keep alpha only because it is that of a Gaussian, nearly, "
          "before. The published bound falls as tails get heavier, while the entropy rises: samples of alpha 1.8, "
          "1.5 and 1.2 are .13, .50 and .89 bits above it.",
    "N6": "The divergence rises by a factor of 4 for each random bit and has no threshold. As much as 8-bit codes "
          "make, 4.7e-5 nats, is reached at 17.4 random bits of 32, more than half; a hundredth of it, which is lost "
          "in the noise of any evaluation, at 14.1, 44% of a weight and 61% of its mantissa. So most of the mantissa "
          "is noise, and most of the word only where 8-bit codes pass for lossless.",
    "N7": "With five seeds no comparison is decided: ZIP less random rows is -.03 nats on plain text, -.11 where "
          "half of the rows are copies, and +.24 where a quarter of the rows are tokens drawn at random. ZIP does "
          "what it is meant to: of the copies it takes 20% where half are, and its selections compress less in all "
          "three corpora, by factors of 2.6 for 3.2, 2.9 for 4.4 and 2.1 for 2.6. It takes nearly all of the random "
          "rows, 74% of its selection, since nothing compresses less, so that there the lower ratio comes with the "
          "higher loss in the mean.",
    "N8": "From 4 to 7 bits the best width rises .966 bits for fourfold text, between .952 and .979: a little less "
          "than one, since KL from 8 to 4 bits grows a little less than fourfold for a bit. At 20 tokens a weight it "
          "is 3.59 bits, where the law says 3.44, and at 3 tokens 2.66 where it says 2.08: below 3 bits KL grows "
          "faster than the law, which keeps the minimum up, and its rise from 1.5 to 3.5 bits is only .67. Six, 12 "
          "and 24 seeds left the lower margin of .95 open, and 48 decided.",
}  # fmt: skip
