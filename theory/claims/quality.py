"""Claims about quality against bits, Q1 to Q11: cells of the suite, layers of the model, and sources.

Cells are those of the suite's default tier, kept in the store; a seed draws the calibration text, and what rounds at
random. Rounding to nearest draws nothing: its cells are of seed 0, once.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from math import log
from statistics import mean
from typing import TYPE_CHECKING

import numpy as np

from theory.cells import bpw_of, kl_of, recipe_of, records, worth_bits
from theory.claims.frame import Claim, Comparison, above, below
from theory.experiment import Setting

if TYPE_CHECKING:
    from suite.recipe import Recipe

GROUP = "Quality against bits"
_OWN = "on a model of 3.7 million parameters; `bitfrontier claims --run --only {} MODEL` would say it of another"
_HIGH = (8, 7, 6, 5)  # widths at which errors are small
_SCALARS, _VECTORS = ("gptq", "awq", "hqq"), ("quip-sharp", "qtip", "vptq")


def elbow(setting: Setting) -> Mapping[str, float]:
    """Q1: how KL of rounding to nearest rises a bit, and what of it is the grid's error, what the network's."""
    found = dict(zip(range(8, 1, -1), records(replace(setting, seed=0), [recipe_of("rtn", b) for b in range(8, 1, -1)]),
                     strict=True))  # fmt: skip
    kl = {bits: kl_of(record) for bits, record in found.items()}
    nmse = {bits: record.nmse or 0.0 for bits, record in found.items()}
    grid = mean(nmse[bits] * 4.0**bits for bits in _HIGH)
    network = mean(kl[bits] / nmse[bits] for bits in _HIGH)
    four = found[4]
    assert four.ppl is not None and four.ppl_base is not None
    said = {"perplexity at 4 bits over unquantized": four.ppl / four.ppl_base}
    for bits in (4, 3, 2):
        said |= {f"log4 of KL from {bits + 1} to {bits} bits": log(kl[bits] / kl[bits + 1], 4),
                 f"NMSE over 4^-b, {bits} bits": nmse[bits] * 4.0**bits / grid,
                 f"KL over NMSE, {bits} bits": kl[bits] / nmse[bits] / network}  # fmt: skip
    return said


def wall(setting: Setting) -> Mapping[str, float]:
    """Q2: how KL rises from 3 to 2 bits, for each true bit, of the best scalar and the best vector methods."""
    found = {}
    for kind, names in (("scalars", _SCALARS), ("vectors", _VECTORS)):
        cells = records(setting, [recipe_of(name, bits) for bits in (2, 3) for name in names])
        found[kind] = [min(part, key=kl_of) for part in (cells[: len(names)], cells[len(names) :])]
    slopes = {f"log4 of KL a bit, {kind}": log(kl_of(two) / kl_of(three), 4) / (bpw_of(three) - bpw_of(two))
              for kind, (two, three) in found.items()}  # fmt: skip
    return slopes | {"bits that vectors are worth at 2": worth_bits(found["vectors"][0], found["scalars"][0])}


def stack(setting: Setting) -> Mapping[str, float]:
    """Q3: what GPTQ, SmoothQuant and AWQ are worth in bits, in the mean over the others, and all of them together."""
    from suite.grids import Integer
    from suite.recipe import Recipe, Target, with_activations
    from suite.rounding import Feedback, Nearest
    from suite.transforms import AwqScale, SmoothScale

    said = {}
    for name, bits in (("3 bits", 3), ("4 bits, inputs too", 4)):
        levels = list(product((False, True), repeat=3))
        recipes = []
        for fed, smooth, aware in levels:
            transforms = (*((SmoothScale(),) if smooth else ()), *((AwqScale(),) if aware else ()))
            target = Target(Integer(bits=bits), Feedback() if fed else Nearest())
            recipe = Recipe(transforms=transforms, weights=target, inputs="quantized" if fed else "original")
            recipes.append(with_activations(recipe, 4) if "inputs" in name else recipe)
        cells = zip(levels, records(setting, recipes), strict=True)
        effects = {level: -log(kl_of(record), 4) for level, record in cells}
        for i, part in enumerate(("GPTQ", "SmoothQuant", "AWQ")):
            with_, without = ([bits_ for level, bits_ in effects.items() if level[i] is is_] for is_ in (True, False))
            said[f"{part}, {name}"] = mean(with_) - mean(without)
        said[f"all three, {name}"] = effects[True, True, True] - effects[False, False, False]
        alone = sum(effects[tuple(i == j for j in range(3))] - effects[False, False, False] for i in range(3))
        said[f"all three less their sum, {name}"] = said[f"all three, {name}"] - alone
    return said


def telescoping(setting: Setting) -> Mapping[str, float]:
    """Q4: energies of the channels' own errors over that of their sum, at the output of layers of the first block."""
    from suite.grids import Integer
    from suite.rounding import Feedback, Nearest
    from theory.bounds.instances import coded_by
    from theory.layers import layer

    found = {}
    for name in ("mlp.down_proj", "self_attn.q_proj"):
        W, H = layer(setting.model, name, setting.seed)
        for way, rounding, grams in (("GPTQ", Feedback(damping=0.01), (H,)), ("nearest", Nearest(), (None,))):
            codes, fitted = coded_by(rounding, W, Integer(bits=4), *grams)
            E = W - fitted.decode(codes).double().numpy()
            found[f"{way}, {name}"] = float((E**2 @ np.diag(H)).sum() / np.einsum("ij,jk,ik->", E, H, E))
    return found


def sawtooth(setting: Setting) -> Mapping[str, float]:
    """Q5: the largest error inside the range in steps, how often it changes its sign, and its slope outside."""
    import torch

    from suite.grids import Integer

    W = torch.from_numpy(np.random.default_rng(setting.seed).standard_normal((1, 4096)))
    fitted = Integer(bits=4, group="row", convention="full-range", scale_bits=32).fit(W)
    step, top = float(fitted.scale), float(7 * fitted.scale)
    inside, outside = (torch.linspace(low, high, 4096, dtype=torch.float64)[None] for low, high in
                       ((-top, top), (1.5 * top, 3 * top)))  # fmt: skip
    errors = [(x - fitted.decode(fitted.nearest(x)))[0].numpy() for x in (inside, outside)]
    slope = float(np.polyfit(outside[0].numpy(), errors[1], 1)[0])
    teeth = int((np.diff(errors[0] > 0)).sum())
    return {"largest error inside, steps": float(np.abs(errors[0]).max()) / step,
            "changes of its sign, for each step of the range": teeth / 14, "slope outside": slope}  # fmt: skip


def additive(setting: Setting) -> Mapping[str, float]:
    """Q6: KL and true bits of AQLM's 2-bit cell, whose codebooks are charged, over those of GPTQ at 4 bits."""
    aqlm, gptq = records(setting, [recipe_of("aqlm", 2), recipe_of("gptq", 4)])
    return {"KL of AQLM over GPTQ's": kl_of(aqlm) / kl_of(gptq), "true bits of AQLM": bpw_of(aqlm),
            "true bits of GPTQ": bpw_of(gptq)}  # fmt: skip


def balance(setting: Setting) -> Mapping[str, float]:
    """Q9: KL of error feedback on symmetric levels over that on unbalanced ones, and of an exact zero over none."""
    from suite.grids import Integer
    from suite.recipe import Recipe, Target
    from suite.rounding import Feedback

    def cell(bits: int, convention: str) -> "Recipe":
        grid = Integer(bits=bits, convention=convention)  # type: ignore[arg-type]
        return Recipe(weights=Target(grid, Feedback()), inputs="quantized")

    names = ("half-integer", "full-range", "narrow")
    found = {(bits, name): record for bits in (2, 3, 4) for name, record in
             zip(names, records(setting, [cell(bits, name) for name in names]), strict=True)}  # fmt: skip
    kl = {key: kl_of(record) for key, record in found.items()}
    said: dict[str, float] = {}
    for bits in (2, 3, 4):
        even, odd = kl[bits, "half-integer"], kl[bits, "narrow"]
        said |= {f"symmetric over unbalanced, {bits} bits": even / kl[bits, "full-range"],
                 f"with zero over without, {bits} bits, one level fewer": odd / even}  # fmt: skip
    return said


def sparse(setting: Setting) -> Mapping[str, float]:
    """Q10: bits that 2:4 sparsity with 8-bit weights is worth against dense GPTQ, true bits counted."""
    sparse_, four, five = records(setting, [recipe_of("sparsegpt-24", 8), recipe_of("gptq", 4), recipe_of("gptq", 5)])
    return {"worth against dense 4 bits": worth_bits(sparse_, four), "worth against dense 5 bits":
            worth_bits(sparse_, five), "true bits": bpw_of(sparse_)}  # fmt: skip


def linear(setting: Setting) -> Mapping[str, float]:
    """Q11: measured KL over that predicted by slopes and relative squared errors of weights, for arms and widths."""
    from theory.bounds.malinovskii_2025_linearity import EXPERIMENT

    points = EXPERIMENT.measure(setting)
    measured = {(p.series, p.x): p.y for p in points if not p.predicted}
    return {f"{p.series.partition(':')[0]}, {p.x:g} bits": measured[p.series.partition(":")[0], p.x] / p.y
            for p in points if p.series.endswith(": predicted")}  # fmt: skip


def fluency(setting: Setting) -> Mapping[str, float]:
    """Q7: perplexity over the unquantized model's, and how much of its multi-step accuracy is left, at each width."""
    from theory.studies import reasoning

    rows = reasoning(setting, (4, 3, 2))
    whole, said = rows[16], dict[str, float]()
    for bits in (4, 3, 2):
        row = rows[bits]
        assert row.ppl is not None and row.ppl_base is not None
        said |= {f"perplexity over unquantized, {bits} bits": row.ppl / row.ppl_base,
                 f"all steps right over the steps' product, {bits} bits over unquantized": row.excess / whole.excess,
                 f"share of right problems kept, {bits} bits": row.right / whole.right,
                 f"share of right steps kept, {bits} bits": row.step / whole.step}  # fmt: skip
    return said


def budgets(setting: Setting) -> Mapping[str, float]:
    """Q8: nats that fewer bits in a larger model have over more bits in a smaller one, of equal bytes, in the mean."""
    from theory.studies import scaling

    rows, said = scaling(setting), dict[str, float]()
    for level in sorted({row.level for row in rows}):
        known = [row for row in rows if row.level == level and row.method == "paretoq"]
        curves = {bits: sorted((row.model_bytes, row.loss_nats) for row in known if row.bits == bits)
                  for bits in (1, 1.58, 2, 4)}  # fmt: skip
        for few, many in ((2, 4), (1, 2), (1.58, 2)):
            sizes, losses = (np.array(column) for column in zip(*curves[many], strict=True))
            other, at = (np.array(column) for column in zip(*curves[few], strict=True))
            inside = (sizes >= other[0]) & (sizes <= other[-1])
            ours = np.interp(np.log(sizes[inside]), np.log(other), at)
            said[f"{few:g} bits less {many:g}, {level:g} tokens a parameter"] = float((ours - losses[inside]).mean())
    return said


def _each(quantities: Iterable[str], low: float, high: float) -> tuple[Comparison, ...]:
    return tuple(compared for name in quantities for compared in (above(name, low), below(name, high)))


CLAIMS = (
    Claim(id="Q1", group=GROUP, kind="scale-dependent", measure=elbow, on_model=True, tier="full", takes="cases",
          sentence="Between 8 and 4 bits the quality curve is almost flat; below 4 it falls off a cliff.",
          rule=(below("perplexity at 4 bits over unquantized", 1.02),
                *_each(["log4 of KL from 5 to 4 bits"], 0.8, 1.25),
                *(above(f"{what}, {bits} bits", 1.25) for what in ("NMSE over 4^-b", "KL over NMSE")
                  for bits in (3, 2)),
                *(above(f"log4 of KL from {bits + 1} to {bits} bits", 1.25) for bits in (3, 2))),
          scope=_OWN.format("Q1")),
    Claim(id="Q2", group=GROUP, kind="scale-dependent", measure=wall, on_model=True, tier="full", takes="cases",
          sentence="Scalar post-training quantization hits a wall below 3 bits; vector quantization does not.",
          rule=(above("log4 of KL a bit, scalars", 1.25), below("log4 of KL a bit, vectors", 1.25),
                above("bits that vectors are worth at 2", 0.25)), scope=_OWN.format("Q2")),
    Claim(id="Q3", group=GROUP, kind="scale-dependent", measure=stack, on_model=True, tier="full", takes="cases",
          sentence="GPTQ, SmoothQuant and AWQ together shift the quality curve left, each by its own part.",
          rule=tuple(above(f"{part}, {name}", 0.05) for name in ("3 bits", "4 bits, inputs too")
                     for part in ("all three", "GPTQ", "SmoothQuant", "AWQ")), scope=_OWN.format("Q3")),
    Claim(id="Q4", group=GROUP, kind="mechanism", measure=telescoping, on_model=True, seeds=6,
          sentence="GPTQ's output error telescopes where that of rounding to nearest walks at random.",
          rule=tuple(part for name in ("mlp.down_proj", "self_attn.q_proj")
                     for part in (above(f"GPTQ, {name}", 2.0), *_each([f"nearest, {name}"], 0.8, 1.25))),
          takes="cases", scope=_OWN.format("Q4")),
    Claim(id="Q5", group=GROUP, kind="theorem", measure=sawtooth,
          sentence="The error of rounding to nearest is a sawtooth inside the range and linear outside.",
          rule=(*_each(["largest error inside, steps"], 0.49, 0.501),
                *_each(["changes of its sign, for each step of the range"], 1.8, 2.2),
                *_each(["slope outside"], 1 - 1e-9, 1 + 1e-9))),
    Claim(id="Q6", group=GROUP, kind="scale-dependent", measure=additive, on_model=True, tier="full",
          sentence="AQLM at 2.5 bits rivals GPTQ at 4.",
          rule=(below("KL of AQLM over GPTQ's", 1.25), below("true bits of AQLM", 2.6)),
          scope="of layers of 256 channels, whose codebooks are small to be paid for; "
                "`bitfrontier claims --run --only Q6 MODEL` would say it of larger ones"),
    Claim(id="Q7", group=GROUP, kind="scale-dependent", measure=fluency, tier="nightly", takes="cases",
          sentence="Four bits cost 1 or 2% of perplexity, two or three bits are catastrophic; fluency survives longer "
                   "than reasoning in several steps.",
          rule=(below("perplexity over unquantized, 4 bits", 1.02),
                *(above(f"perplexity over unquantized, {bits} bits", 1.5) for bits in (3, 2)),
                *(below(f"all steps right over the steps' product, {bits} bits over unquantized", 1.0)
                  for bits in (4, 3, 2))),
          scope="of a model of 3.7 million parameters that learned nested arithmetic"),
    Claim(id="Q8", group=GROUP, kind="scale-dependent", measure=budgets, tier="nightly", takes="cases",
          sentence="For a fixed memory a larger model of 2 bits beats a smaller one of 4; binary falls off, ternary "
                   "and 2 bits are on the frontier.",
          rule=tuple(part for level in ("0.1", "0.25") for part in
                     (below(f"2 bits less 4, {level} tokens a parameter", 0.0),
                      above(f"1 bits less 2, {level} tokens a parameter", 0.0),
                      *_each([f"1.58 bits less 2, {level} tokens a parameter"], -0.02, 0.02))),
          scope="from .33 to 7.9 million parameters, trained on a tenth or a quarter of a token for each"),
    Claim(id="Q9", group=GROUP, kind="mechanism", measure=balance, on_model=True, tier="full", takes="cases",
          sentence="At low bits a symmetric grid beats an unbalanced one, and an exact zero helps.",
          rule=tuple(below(f"{what}, {bits} bits{end}", 1.0) for bits in (2, 3, 4) for what, end in
                     (("symmetric over unbalanced", ""), ("with zero over without", ", one level fewer"))),
          scope=_OWN.format("Q9")),
    Claim(id="Q10", group=GROUP, kind="scale-dependent", measure=sparse, on_model=True, tier="full", takes="cases",
          sentence="2:4 sparsity with 8-bit weights beats dense weights of 4 bits at equal bytes.",
          rule=(above("worth against dense 4 bits", 0.0), above("worth against dense 5 bits", 0.0)),
          scope=_OWN.format("Q10")),
    Claim(id="Q11", group=GROUP, kind="mechanism", measure=linear, on_model=True, tier="full", takes="cases",
          sentence="KL rises in proportion to the layers' relative squared errors.",
          rule=tuple(part for arm in ("nearest", "nearest, rotated", "GPTQ") for bits in (4, 3, 2)
                     for part in _each([f"{arm}, {bits} bits"], 0.8, 1.2)), scope=_OWN.format("Q11")),
)  # fmt: skip
