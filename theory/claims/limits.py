"""Claims about limits of models, M1 to M7: attention, positions, memory, geometry, flipped bits and caches."""

from collections.abc import Mapping

import numpy as np

from theory.claims.frame import Claim, above, below
from theory.experiment import Setting

GROUP = "Limits of models"
_AT = 4096  # keys, where the closed form is to hold within 1%


def crowding(setting: Setting) -> Mapping[str, float]:
    """M1: slopes against ln n of what a margin gives and of what is needed, and the closed form's error."""
    from theory.limits import crowding as m

    ln_n = np.log(np.array(m.LENGTHS) - 1)
    needed = [m.needed(0.5, n, 1.0, setting.seed) for n in m.LENGTHS]
    odds = [needed[0] - one for one in needed]  # of a target whose margin is that of the shortest
    lost, half = m.lost_to_rounding(4, _AT, setting.seed)
    return {"slope of the log-odds against ln n, margin fixed": float(np.polyfit(ln_n, odds, 1)[0]),
            "margin over its closed form at 4,096": m.needed(0.5, _AT, 1.0, setting.seed) / m.margin(0.5, _AT, 1.0),
            "margin lost to 4-bit keys over half the noise": lost / half,
            "margin lost to 4-bit keys, nats": lost,
            "attention left at 16,384 of a half at 64": 1 / (1 + np.exp(-odds[-1]))}  # fmt: skip


def positions(setting: Setting) -> Mapping[str, float]:
    """M2: mean cosines of evenly and geometrically spaced frequencies over two laws, and how distances are told apart.

    Largest over distances: 2 to 32 for even spacing, below its period; 8 to 1,024, or 4,096, for RoPE.
    """
    from theory.limits import su_2021_rope as m

    near, octaves = 2.0 ** np.arange(1, 6), m.OCTAVES
    rope = m.content_kernel(octaves, "geometric", setting.seed)
    inner = octaves <= 1024
    fall = (rope[octaves == 16] - rope[octaves == 1024]).item() / 6
    return {"evenly spaced over 2 / D, largest":
            float(np.max(np.abs(m.content_kernel(near, "even", setting.seed)) * near / 2)),
            "RoPE over 2 / D, largest": float(np.max(np.abs(rope) * octaves / 2, where=inner, initial=0)),
            "RoPE off the logarithmic law, largest": float(np.abs(rope - m.logarithmic_law(octaves)).max()),
            "RoPE off the logarithmic law over what aliasing scatters":
            float(np.sqrt(np.mean((rope - m.logarithmic_law(octaves)) ** 2) / np.mean(m.scatter(octaves) ** 2))),
            "RoPE's fall a doubling over ln 2 / ln b": fall * np.log(m.BASE) / np.log(2),
            "exponent of telling D from D + 8":
            m.slope(octaves[inner], m.told_apart(octaves[inner], setting.seed))}  # fmt: skip


def middle(setting: Setting) -> Mapping[str, float]:
    """M3: the U's depth by what training asked for, and the share of right answers in the mean over places."""
    from theory.limits import liu_2023_middle as m

    found = {asked: m.recall(m.Recall(asked=asked), setting.seed) for asked in m.ASKED}
    depths = {f"depth of the U, trained on {asked}": m.depth(right) for asked, right in found.items()}
    return depths | {f"right answers, trained on {asked}": float(right.mean()) for asked, right in found.items()}


def capacity(setting: Setting) -> Mapping[str, float]:
    """M4: each memory's bits a fact over the KL bound, the least over its sizes, and the Bloom filter's false recalls.

    "falsely recalled at 8 bits" is the Bloom filter's share over 2^-8, the least that is possible.
    """
    from theory.limits import guo_2026_membership as m

    found = {name: [memory(setting.seed) for memory in sizes] for name, sizes in m.memories().items()}
    least = {f"bits over the bound, {name}": min(one.looseness for one in sizes) for name, sizes in found.items()}
    filters = [one for one in found["Bloom filter"] if one.bits >= 8]
    return least | {
        "Bloom filter over the bound times ln 2": float(np.mean([one.looseness for one in filters]) * np.log(2)),
        "falsely recalled at 8 bits over 2^-8": m.bloom(8.0, setting.seed).false * 2**8,
    }


def caches(setting: Setting) -> Mapping[str, float]:
    """M7: what caches of 2 bits cost, and base-2 logarithms of divergences by one axis over those by the other."""
    from theory.limits.liu_2024_kivi import channel_spread, costs

    found = costs(setting, 2)
    kl = {name: divergence for name, (divergence, _) in found.items()}
    gain = {f"keys by token over by channel, values by {v}, log2":
            float(np.log2(kl[f"keys by token, values by {v}"] / kl[f"keys by channel, values by {v}"]))
            for v in ("channel", "token")}  # fmt: skip
    gain |= {f"values by channel over by token, keys by {k}, log2":
             float(np.log2(kl[f"keys by {k}, values by channel"] / kl[f"keys by {k}, values by token"]))
             for k in ("channel", "token")}  # fmt: skip
    gain |= {f"largest channel of {side} over the median one": ratio
             for side, ratio in channel_spread(setting).items()}  # fmt: skip
    return gain | {f"rise of perplexity, {name}": found[name][1] for name in ("kivi", "kvquant")} | {
        f"KL in nats, {name}": kl[name] for name in ("kivi", "kvquant")}  # fmt: skip


def geometry(setting: Setting) -> Mapping[str, float]:
    """M5: TwoNN's dimension of hidden states over Gaussians', of rounded models over the model's, and in overfitting.

    Of one training, "least" is where its validation loss is least; dimensions there are of held-out states.
    """
    from theory.limits import hidden_states as m

    found = m.of_model(setting)
    two = {name: np.array([layer["TwoNN"] for layer in layers]) for name, layers in found.items()}
    told = {f"TwoNN over {name}'s, largest of layers": float((two["unquantized"] / two[name]).max())
            for name in ("isotropic Gaussian", "Gaussian of the same covariance")}  # fmt: skip
    told["TwoNN, largest of layers"] = float(two["unquantized"].max())
    for bits in m.BITS:
        wide = (found[name][-1]["MLE, 100 neighbors"] for name in (f"{bits} bits", "unquantized"))
        told[f"TwoNN at {bits} bits over unquantized, last block"] = two[f"{bits} bits"][-1] / two["unquantized"][-1]
        told[f"MLE of 100 at {bits} bits over unquantized, last block"] = next(wide) / next(wide)
    table = m.overfitted(m.Overfitting(), setting.seed)
    nats, held = table[:, m.COLUMNS.index("validation nats")], table[:, m.COLUMNS.index("TwoNN, held out")]
    least = int(nats.argmin())
    return told | {"overfitting: TwoNN at the least loss over the start": held[least] / held[0],
                   "overfitting: TwoNN at the end over that at the least loss": held[-1] / held[least],
                   "overfitting: nats at the end less the least": nats[-1] - nats[least]}  # fmt: skip


def flips(setting: Setting) -> Mapping[str, float]:
    """M6: base-2 logarithms of what a flip of a stored bit at random does, integers over bfloat16; shares of harm."""
    from theory.limits import flipped_models as m

    drawn = {(str(form), rotated): m.flips(setting, form, rotated) for form, rotated in m.WAYS}
    found = {way: m.harm(one) for way, one in drawn.items()}
    base, told = found["bf16", False], dict[str, float]()
    for form in ("int8", "int4"):
        told |= {f"{form} over bf16, {what} KL of a flip, log2": float(np.log2(found[form, False][what] / base[what]))
                 for what in ("mean", "median")}  # fmt: skip
        parts = {
            part: m.harm([one for one in drawn[form, False] if one.place.part == part]) for part in ("code", "scale")
        }
        told[f"{form}, scales over codes, mean KL of a flip, log2"] = float(
            np.log2(parts["scale"]["mean"] / parts["code"]["mean"]))  # fmt: skip
    for (form, rotated), one in found.items():
        told[f"share of harm, {form}{', rotated' if rotated else ''}"] = one["share of harm"]
    for form in ("bf16", "int4"):
        told[f"rotated over plain, {form}, median KL of a flip, log2"] = float(
            np.log2(found[form, True]["median"] / found[form, False]["median"]))  # fmt: skip
    return told


CLAIMS = (
    Claim(id="M1", group=GROUP, kind="theorem", measure=crowding, seeds=24,
          sentence="Softmax crowding: attention on a target decays with length unless its margin grows like ln N.",
          rule=(above("slope of the log-odds against ln n, margin fixed", -1.02),
                below("slope of the log-odds against ln n, margin fixed", -0.98),
                above("margin over its closed form at 4,096", 0.99),
                below("margin over its closed form at 4,096", 1.01),
                above("margin lost to 4-bit keys over half the noise", 0.8),
                below("margin lost to 4-bit keys over half the noise", 1.25)),
          scope="for independent Gaussian logits of variance below 2 ln N; above it the largest distractor decides"),
    Claim(id="M2", group=GROUP, kind="theorem", measure=positions, seeds=6, takes="cases",
          sentence="Positional encodings lose distinctness with distance: as 2 / (Omega D) for evenly spaced "
                   "frequencies, and for RoPE's; or by a logarithmic law.",
          rule=(below("evenly spaced over 2 / D, largest", 1.0), below("RoPE over 2 / D, largest", 1.0),
                below("RoPE off the logarithmic law, largest", 0.03),
                above("exponent of telling D from D + 8", -1.2), below("exponent of telling D from D + 8", -0.8)),
          scope="the mean over content of equal energy in every pair of channels, base 10,000, 64 pairs"),
    Claim(id="M3", group=GROUP, kind="mechanism", measure=middle, seeds=9, takes="cases", tier="nightly",
          sentence="Lost in the middle: recall against position is U-shaped, as the training distribution over "
                   "positions is swept.",
          rule=tuple(above(f"depth of the U, trained on {asked}", 0.05) for asked in ("uniform", "U", "ends")),
          scope="associative recall of twelve facts by LLaMAs of two blocks; a model trained on documents decides what "
                "its own data make of places"),
    Claim(id="M4", group=GROUP, kind="theorem", measure=capacity, seeds=6,
          sentence="Finite capacity forces false recall: no memory spends fewer bits on a fact than "
                   "KL(Bern(1 - fn) || Bern(fp)).",
          rule=(*(above(f"bits over the bound, {name}", 1.0) for name in
                  ("Bloom filter", "coded signatures", *(f"linear, {bits} bits" for bits in (2, 3, 4, 8)))),
                above("Bloom filter over the bound times ln 2", 0.97),
                below("Bloom filter over the bound times ln 2", 1.03),
                above("falsely recalled at 8 bits over 2^-8", 1.0)),
          scope="memories with ideal hash functions; of a trained model's facts only the bound is said"),
    Claim(id="M5", group=GROUP, kind="scale-dependent", measure=geometry, seeds=6, takes="cases", on_model=True,
          tier="nightly",
          sentence="Local intrinsic dimension of hidden states is below the ambient one, drops and then rises when a "
                   "model overfits, and quantization raises it.",
          rule=(below("TwoNN over isotropic Gaussian's, largest of layers", 0.5),
                above("TwoNN at 3 bits over unquantized, last block", 1.0),
                above("TwoNN at 2 bits over unquantized, last block", 1.0),
                below("overfitting: TwoNN at the least loss over the start", 1.0),
                above("overfitting: TwoNN at the end over that at the least loss", 1.0)),
          scope="on models of 3.7 and of 0.2 million parameters, by TwoNN on 1,000 tokens; "
                "`bitfrontier claims --run --only M5 MODEL` says the first three of another"),
    Claim(id="M6", group=GROUP, kind="scale-dependent", measure=flips, seeds=12, takes="cases", on_model=True,
          tier="full",
          sentence="Quantized models are more fragile to bit flips than full-precision ones.",
          rule=tuple(above(f"{form} over bf16, {what} KL of a flip, log2", 0.0) for what in ("mean", "median")
                     for form in ("int8", "int4")),
          scope="for one flip of a stored bit at random in a model of 3.7 million parameters, whose weights are about "
                "Gaussian; `bitfrontier claims --run --only M6 MODEL` says it of another"),
    Claim(id="M7", group=GROUP, kind="scale-dependent", measure=caches, seeds=24, takes="cases", on_model=True,
          tier="full",
          sentence="2-bit KV caches (KIVI, KVQuant) cost little; keys want per-channel, values per-token grids.",
          rule=(below("rise of perplexity, kivi", 0.02), below("rise of perplexity, kvquant", 0.02),
                above("keys by token over by channel, values by token, log2", 0.0),
                above("values by channel over by token, keys by channel, log2", 0.0)),
          scope="on a model of 3.7 million parameters with rows of 256 tokens and no natural outlier channels; "
                "`bitfrontier claims --run --only M7 MODEL` says it of another"),
)  # fmt: skip

WHY: dict[str, str] = {
    "M2": "Evenly spaced frequencies keep to 2 / (Omega D), with 0.47 of it at the most (0.42 to 0.52). RoPE's are 105 "
    "times above it at distance 1,024 (93 to 117): spread geometrically, as many pairs lie in every octave, so that "
    "each doubling of the distance costs the same, 0.92 times ln 2 / ln b (0.85 to 0.98). The logarithmic law is off "
    "by as much as 0.094 (0.075 to 0.112), three times the margin, because 64 pairs are too few for its integral: from "
    "a distance of 22 on neighbors' angles differ by more than half a turn, and their scatter accounts for all of it "
    "(0.96 of what random angles give, 0.90 to 1.02). That same scatter leaves the exponent by which D is told from "
    "D + 8 without a value in three of six seeds.",
    "M3": "A model that is asked for all places alike recalls all of them alike: the worse end is 0.021 below the "
    "middle (0.067 below to 0.025 above), and no U is above the margin of 0.05. Asked for the ends most or only, it "
    "recalls the middle as well (depths of -0.005, -0.053 to 0.043, and 0.001, -0.032 to 0.034), with 92% of right "
    "answers: to look a key up is learned once for all places, and rotary embeddings of sixteen positions do "
    "not stand in its way. What loses the middle must come from data or lengths that this task does not have.",
    "M6": "A flip of a stored bit at random costs int8 52 times less than bfloat16 in the mean (31 to 87), and int4 31 "
    "times less (20 to 49): 5.7% of bfloat16's bits move predictions by 0.1 nats or more, 0.17% and 0.19% of the "
    "integers'. A float's exponent can make one weight 10^38; a code stays within the range of its group, and only the "
    "16 bits of a scale among 1,040 (int8) or 528 (int4) can do more, each about 2^20 or 2^18 times as much as a "
    "code's. The typical flip is worse at 4 bits, ten times in the median (4 to 25), because half of bfloat16's bits "
    "are low ones of its mantissa; at 8 bits it is about bfloat16's (between a fifth and five times). Of a "
    "Hadamard rotation no effect is sure: the median is 1.3 times as large in bfloat16 (0.6 to 2.8) and 1.7 times at 4 "
    "bits (0.6 to 4.8).",
    "M7": "At 2 bits KIVI raises perplexity by 6.7% (5.7% to 7.7%) and KVQuant by 12.6% (11.1% to 14.1%) where nearly "
    "all of the cache is rounded, three and six times the margin. Values by channel cost 6.6% more KL than by token "
    "(3.4% to 9.9%), as claimed; but so do keys, 9.6% more (1.4% to 18.4%), against the claim: ranges "
    "by channel are for outlier channels, and the largest channel of this model's keys has 2.7 times the median one's "
    "root mean square (three seeds). Both are small beside the cost itself.",
}
