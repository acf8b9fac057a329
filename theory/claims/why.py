"""Why claims came out as they did, those above all that are not simply true: a paragraph each, with its figures.

They are about the verdicts that the ledger has as earned: where a run gives another, its reader has to find another.
"""

WHY: dict[str, str] = {
    "B2": "With a key-value head for eight heads of queries, as the model was published, a 16-bit cache of 131,072 "
          "tokens is 1.15 times the weights that a token reads. With a key-value head for each head of queries it is "
          "8.1 times them, with a single one .15; and a 4-bit cache of the published layout is .36 times them. The "
          "sentence is about one layout of heads, and a cache that is not quantized.",
    "B3": "Of 32 bits 28 go where only codes are counted. A 16-bit scale for 128 weights leaves 87.1%, scales and "
          "zero points for groups of 32 leave 84.4%, and models whose embedding and head stay in 16 bits shrink by "
          "77.4 to 86.7%, the less the larger a share the vocabulary has.",
    "B5": "For one row decoding two codebooks takes .85 of the instructions that INT4 takes for a weight, since a "
          "read fetches eight weights at once. From 32 rows on it takes 1.45 to 1.67 times as many: codebooks do not "
          "fit beside the larger tiles, so that vectors are gathered from the cache. Both are counts of compiled "
          "code.",
    "B7": "BiLLM stores 3.0 bits where it says 1.08, PB-LLM 2.75 where it says 1.7, both for leaving out which "
          "weights are of which kind; KIVI 3.2 where it says 2, for scales, zero points and tokens that wait. AQLM's "
          "codebooks are .008 bits on a layer of 4,096 by 4,096, and llama.cpp counts every bit of its blocks.",
    "O7": "Channels with injected outliers do lie in stiff directions, 6 to 8 times above chance, though three draws "
          "are too few to say so with this ledger's confidence. But where outliers of equal size are put into stiff "
          "and into soft directions, the error does not differ (less than .1 bit): what costs is the step that the "
          "outlier widens for all that share it, not the curvature where it lies.",
    "G1": "A floating-point grid has small steps in the middle, which pays where the scale is set by a rare large "
          "value: one scale for a tensor (3.3 decibels on a Gaussian), or heavy tails (.6 to 2.7 in groups of 32). "
          "The largest of 32 Gaussian values is only twice the standard deviation; there equal steps are .4 better.",
    "G2": "NF4 gives its 16 levels equal probability, which makes the most of their entropy and not the least of the "
          "squared error. In its own blocks of 64 the best 16 levels have 1 / 1.11 of its error, and the limit at "
          "its true rate is 3.1 times lower. It beats INT4 and E2M1 in the same blocks by a quarter.",
    "G3": "NVFP4 beats MXFP4 on every source (.1 to 2.4 decibels at true rates), but by the precision of its scales: "
          "where scales are of one kind, blocks of 16 instead of 32 cost .5 to .9 decibels net on Gaussian and "
          "Laplacian values, and 1.0 to 1.7 with powers of two. Halving a block takes a quarter of a bit, 1.5 dB.",
    "G4": "At equal fixed rates E8 is .8 to 1.1 decibels below the best scalar levels. Equal steps with an entropy "
          "coder are 1.0 to 1.3 decibels below E8 at 3 and 4 bits: they lose 1.53 decibels of shaping to the limit "
          "at any rate, while a fixed-rate codebook also pays for covering the tails.",
    "E2": "The guarantee is better without feedback (.35 to .44 of that of nearest rounding) and, on random inputs, "
          "with it (.68). Typical errors are 1.4 times larger, since stochastic rounding has twice the variance; "
          "only weights chosen against nearest rounding, all rounded the same way along inputs that are alike, turn "
          "that around, and feedback undoes the case.",
    "E6": "The form is one of high rate: near 4 bits it is within .004 bits of what is measured. At 1.6 bits it is "
          ".12 bits off, GPTQ being nearer to the limit than it says: directions whose variance is below the step "
          "cost no rate at all, which reverse water-filling knows and the pivots' means do not.",
    "E7": "Feedback puts 2.8 times chance into the null space and empties the stiffest directions (.12 of what plain "
          "codes leave there); rounding to nearest puts nothing there but chance. At equal true bits the best "
          "expansion has 1.13 times the error of plain codes, since an added channel costs as many bits as any "
          "other.",
    "E8": "Its error is within 1.3% of the closed form. But it stores 3.0 bits, and R(D) at its error is 1.5 bits "
          "lower: a second binary pass is a quantizer of four unequal levels whose signs are stored twice, and which "
          "of two bells a weight belongs to costs a bit of its own.",
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
    "L6": "A branch that sees sums of groups adds the same to all weights of a group, which is what a zero point "
          "does: with zero points in float64 both models agree to 3e-16. Zero points are stored in float16, and then "
          "outputs differ by 4e-4 of their size, at 2 bits as at 4.",
    "M2": "Evenly spaced frequencies keep to 2 / (Omega D), with 0.47 of it at the most (0.42 to 0.52). RoPE's are "
          "105 times above it at distance 1,024 (93 to 117): spread geometrically, as many pairs lie in every "
          "octave, so that each doubling of the distance costs the same, 0.92 times ln 2 / ln b (0.85 to 0.98). The "
          "logarithmic law is off by as much as 0.094 (0.075 to 0.112), three times the margin, because 64 pairs are "
          "too few for its integral: from a distance of 22 on neighbors' angles differ by more than half a turn, and "
          "their scatter accounts for all of it (0.96 of what random angles give, 0.90 to 1.02). That same scatter "
          "leaves the exponent by which D is told from D + 8 without a value in three of six seeds.",
    "M3": "A model that is asked for all places alike recalls all of them alike: the worse end is 0.021 below the "
          "middle (0.067 below to 0.025 above), and no U is above the margin of 0.05. Asked for the ends most or "
          "only, it recalls the middle as well (depths of -0.005, -0.053 to 0.043, and 0.001, -0.032 to 0.034), with "
          "92% of right answers: to look a key up is learned once for all places, and rotary embeddings of sixteen "
          "positions do not stand in its way. What loses the middle must come from data or lengths that this task "
          "does not have.",
    "M6": "A flip of a stored bit at random costs int8 52 times less than bfloat16 in the mean (31 to 87), and int4 "
          "31 times less (20 to 49): 5.7% of bfloat16's bits move predictions by 0.1 nats or more, 0.17% and 0.19% "
          "of the integers'. A float's exponent can make one weight 10^38; a code stays within the range of its "
          "group, and only the 16 bits of a scale among 1,040 (int8) or 528 (int4) can do more, each about 2^20 or "
          "2^18 times as much as a code's. The typical flip is worse at 4 bits, ten times in the median (4 to 25), "
          "because half of bfloat16's bits are low ones of its mantissa; at 8 bits it is about bfloat16's (between a "
          "fifth and five times). Of a Hadamard rotation no effect is sure: the median is 1.3 times as large in "
          "bfloat16 (0.6 to 2.8) and 1.7 times at 4 bits (0.6 to 4.8).",
    "M7": "At 2 bits KIVI raises perplexity by 6.7% (5.7% to 7.7%) and KVQuant by 12.6% (11.1% to 14.1%) where "
          "nearly all of the cache is rounded, three and six times the margin. Values by channel cost 6.6% more KL "
          "than by token (3.4% to 9.9%), as claimed; but so do keys, 9.6% more (1.4% to 18.4%), against the claim: "
          "ranges by channel are for outlier channels, and the largest channel of this model's keys has 2.7 times "
          "the median one's root mean square (three seeds). Both are small beside the cost itself.",
}  # fmt: skip
