"""Claims about learning with few bits, L1 to L8: trainings of the suite, each against its own control.

A seed is one of trainings. What trains is of the nightly tier: its cells are those that `bitfrontier run` trains, and
stay in the store.
"""

from collections.abc import Mapping
from dataclasses import replace
from math import log
from statistics import mean
from typing import Any

from theory.cells import kl_of, recipe_of, records, trained
from theory.claims.frame import Claim, above, below
from theory.experiment import Setting

GROUP = "Learning"
_OWN = ("on a model of 3.7 million parameters, in 400 updates; `bitfrontier claims --run --only {} MODEL` would say it "
        "of another")  # fmt: skip
_ADAPTED = "in 200 updates on numpy's source, with adapters of rank 8"


def healed(setting: Setting) -> Mapping[str, float]:
    """L1: what LSQ leaves over its control, in nats, and over what GPTQ costs untrained."""
    cells = trained(setting, [recipe_of("lsq", bits) for bits in (4, 3, 2)])
    costs = records(setting, [recipe_of("gptq", bits) for bits in (4, 3, 2)])
    said: dict[str, float] = {}
    for bits, (_, row), gptq in zip((4, 3, 2), cells, costs, strict=True):
        assert gptq.ppl is not None and gptq.ppl_base is not None
        said |= {f"excess, {bits} bits": row.excess_nats,
                 f"excess over GPTQ's, {bits} bits": row.excess_nats / log(gptq.ppl / gptq.ppl_base)}  # fmt: skip
    return said


def steps(setting: Setting) -> Mapping[str, float]:
    """L2: excess of learned steps less that of fixed ones, and the share of codes that turn back at the end."""
    said: dict[str, float] = {}
    for bits in (4, 2):
        learned = recipe_of("lsq", bits)
        fixed = replace(learned, adaptation=replace(learned.adaptation, learned="nothing", start="range"))  # type: ignore[arg-type,type-var]
        (_, ours), (_, other) = trained(setting, [learned, fixed])
        assert ours.turning is not None
        said |= {f"learned less fixed, {bits} bits": ours.excess_nats - other.excess_nats,
                 f"codes that turn back, {bits} bits": ours.turning}  # fmt: skip
    return said


def ternary(setting: Setting) -> Mapping[str, float]:
    """L3: nats of BitNet over its control by size, and from scratch without norms before what is rounded."""
    from theory.studies import scaling

    rows, said = scaling(setting), dict[str, float]()
    for level in sorted({row.level for row in rows}):
        gaps = []
        for hidden in sorted({row.hidden for row in rows}):
            losses = {row.method: row.loss_nats for row in rows if (row.hidden, row.level) == (hidden, level)
                      and row.method in ("bitnet", "full-precision-sub-norm")}  # fmt: skip
            gaps.append(losses["bitnet"] - losses["full-precision-sub-norm"])
        said |= {f"gap of the largest less the smallest, {level:g} tokens a parameter": gaps[-1] - gaps[0],
                 f"gap of the largest, {level:g} tokens a parameter": gaps[-1]}  # fmt: skip
    normed, bare = trained(setting, [recipe_of("bitnet"), recipe_of("bitnet", sub_norm=False)])
    return said | {"loss without SubLN less with it": bare[1].loss_nats - normed[1].loss_nats}


def starts(setting: Setting) -> Mapping[str, float]:
    """L4: LoftQ's error over QLoRA's before training, and its excess less QLoRA's after it."""
    from suite.adaptation.low_rank import LowRank
    from theory.studies import adaptation

    data, said = adaptation(setting), dict[str, float]()
    for bits in (2, 4):
        both = [recipe_of(name, bits) for name in ("loftq", "qlora")]
        untrained = [replace(one, adaptation=replace(one.adaptation, schedule=None))  # type: ignore[arg-type,type-var]
                     if isinstance(one.adaptation, LowRank) and one.adaptation.rounds else replace(one, adaptation=None)
                     for one in both]  # fmt: skip
        begun = records(setting, untrained, evaluation=data["evaluation"])
        (_, ours), (_, other) = trained(setting, both, **data)
        said |= {f"start's KL over QLoRA's, {bits} bits": kl_of(begun[0]) / kl_of(begun[1]),
                 f"trained, less QLoRA, {bits} bits": ours.excess_nats - other.excess_nats}  # fmt: skip
    return said


def information(setting: Setting) -> Mapping[str, float]:
    """L5: entropy of IR-QLoRA's codes less that of QLoRA's, KL before training, and excess after it."""
    from theory.studies import adaptation

    data, said = adaptation(setting), dict[str, float]()
    for bits in (2, 4):
        both = [recipe_of(name, bits) for name in ("ir-qlora", "qlora")]
        begun = records(setting, [replace(one, adaptation=None) for one in both], evaluation=data["evaluation"])
        (_, ours), (_, other) = trained(setting, both, **data)
        entropies = [(record.bpw_entropy or 0.0) - (record.bpw or 0.0) for record in begun]
        said |= {f"entropy, {bits} bits": entropies[0] - entropies[1],
                 f"start's KL over QLoRA's, {bits} bits": kl_of(begun[0]) / kl_of(begun[1]),
                 f"trained, less QLoRA, {bits} bits": ours.excess_nats - other.excess_nats}  # fmt: skip
    return said


def merging(setting: Setting) -> Mapping[str, float]:
    """L6: how far a merged layer's outputs are from those of codes and branch, relative, before and after float16."""
    import torch

    from suite.adaptation.low_rank import LowRank
    from suite.grids import Integer
    from suite.learning.adapters import as_stored, branch_of, dense, merged
    from suite.quantize import quantize_matrix
    from suite.recipe import Recipe, Target

    generator, said = torch.Generator().manual_seed(setting.seed), dict[str, float]()
    how, wide = recipe_of("qa-lora", 4).adaptation, torch.float64
    assert isinstance(how, LowRank)
    W, x = (torch.randn(rows, 256, generator=generator, dtype=wide) for rows in (64, 128))
    for bits in (4, 2):
        found = quantize_matrix(W.float(), recipe=Recipe(weights=Target(Integer(bits=bits, group=32,
                                                                                convention="real-zero"))))  # fmt: skip
        branch = branch_of(found, how, generator, wide)
        with torch.no_grad():
            branch.B.copy_(0.02 * torch.randn(branch.B.shape, generator=generator, dtype=wide))
        A, B = (part.detach() for part in branch.merged())
        unmerged = x @ (_exact(found) + dense(branch)).T
        for name, one in (
            ("before", _exact(merged(found, B @ A))),
            ("after", as_stored(found, branch).decode().double()),
        ):
            off = float((x @ one.T - unmerged).norm() / unmerged.norm())
            said[f"{name} zero points are rounded, {bits} bits"] = off
    return said


def _exact(found: Any) -> Any:
    """What a layer of integers decodes to (out, in), with its scales and zero points taken as float64 numbers."""
    grid = found.grid.tuned({name: value.double() for name, value in found.grid.tunable().items()})
    return replace(found, grid=grid).decode()


def cheaply(setting: Setting) -> Mapping[str, float]:
    """L7: excess of ZeroQAT and L4Q less LSQ's, and the peak memory of each over inference's or LSQ's."""
    from suite.memory.ledger import Task, measured, recipe_for

    said: dict[str, float] = {}
    for bits in (4, 2):
        cells = trained(setting, [recipe_of(name, bits) for name in ("lsq", "zeroqat", "l4q")])
        lsq, *others = (row.excess_nats for _, row in cells)
        said |= {f"{name} less LSQ, {bits} bits": excess - lsq
                 for name, excess in zip(("ZeroQAT", "L4Q"), others, strict=True)}  # fmt: skip
    peaks = {}
    for name in ("lsq", "zeroqat", "l4q"):
        parts = measured(Task(model=setting.model, recipe=recipe_for(name, 4), rows=4, length=256))
        peaks[name] = parts.peak
    return said | {"peak of ZeroQAT over LSQ's": peaks["zeroqat"] / peaks["lsq"],
                   "peak of L4Q over LSQ's": peaks["l4q"] / peaks["lsq"]}  # fmt: skip


def moved(setting: Setting) -> Mapping[str, float]:
    """L8: how far ParetoQ's weights move beyond their control's, over the same at the next width."""
    widths = (1, 1.58, 2, 3, 4)
    cells = trained(setting, [recipe_of("paretoq", bits) for bits in widths])
    far: dict[float, float] = {}
    for bits, (_, row) in zip(widths, cells, strict=True):
        assert row.moved is not None and row.moved_control is not None
        far[bits] = row.moved - row.moved_control
    low, high = (mean(far[bits] for bits in part) for part in ((1, 1.58, 2), (3, 4)))
    return {"moved at 2 bits over 3": far[2] / far[3], "moved at 3 bits over 4": far[3] / far[4],
            "moved at 2 bits and below over 3 and 4": low / high} | {
        f"moved beyond the control, {bits:g} bits": value for bits, value in far.items()}  # fmt: skip


CLAIMS = (
    Claim(id="L1", group=GROUP, kind="scale-dependent", measure=healed, on_model=True, tier="nightly",
          sentence="Quantization-aware training recovers nearly full precision at 4 bits, and heals 2 and 3 bits where "
                   "methods without training fail.",
          rule=(below("excess, 4 bits", 0.02), *(below(f"excess over GPTQ's, {bits} bits", 0.5) for bits in (3, 2))),
          takes="cases", scope=_OWN.format("L1")),
    Claim(id="L2", group=GROUP, kind="mechanism", measure=steps, on_model=True, tier="nightly", takes="cases",
          sentence="Learned steps beat fixed ones; training through rounding oscillates near thresholds.",
          rule=tuple(part for bits in (4, 2) for part in (below(f"learned less fixed, {bits} bits", 0.0),
                                                          above(f"codes that turn back, {bits} bits", 0.01))),
          scope=_OWN.format("L2")),
    Claim(id="L3", group=GROUP, kind="scale-dependent", measure=ternary, on_model=True, tier="nightly", takes="cases",
          sentence="Ternary training from scratch (BitNet b1.58) closes the gap to full precision as models grow; "
                   "SubLN is needed for stability.",
          rule=(*(below(f"gap of the largest less the smallest, {level} tokens a parameter", 0.0)
                  for level in ("0.1", "0.25")), above("loss without SubLN less with it", 0.0)),
          scope="from .33 to 7.9 million parameters, trained on a tenth or a quarter of a token for each"),
    Claim(id="L4", group=GROUP, kind="mechanism", measure=starts, on_model=True, tier="nightly", takes="cases",
          sentence="LoftQ's start lowers the starting error, and wins over QLoRA's zero start, most at 2 bits.",
          rule=tuple(part for bits in (2, 4) for part in (below(f"start's KL over QLoRA's, {bits} bits", 1.0),
                                                          below(f"trained, less QLoRA, {bits} bits", 0.0))),
          scope=_ADAPTED),
    Claim(id="L5", group=GROUP, kind="mechanism", measure=information, on_model=True, tier="nightly", takes="cases",
          sentence="IR-QLoRA's calibration for entropy keeps more information than NF4, and lowers the loss.",
          rule=tuple(part for bits in (2, 4) for part in (above(f"entropy, {bits} bits", 0.0),
                                                          below(f"start's KL over QLoRA's, {bits} bits", 1.0),
                                                          below(f"trained, less QLoRA, {bits} bits", 0.0))),
          scope=_ADAPTED),
    Claim(id="L6", group=GROUP, kind="theorem", measure=merging, takes="cases",
          sentence="QA-LoRA merges exactly into the quantized weights.",
          rule=tuple(below(f"{when} zero points are rounded, {bits} bits", 1e-12) for when in ("before", "after")
                     for bits in (4, 2))),
    Claim(id="L7", group=GROUP, kind="scale-dependent", measure=cheaply, on_model=True, tier="nightly", takes="cases",
          sentence="Zeroth-order training (ZeroQAT) reaches the quality of quantization-aware training at the memory "
                   "of inference; L4Q reaches it at the cost of adapters.",
          rule=(*(below(f"{name} less LSQ, {bits} bits", 0.01) for name in ("ZeroQAT", "L4Q") for bits in (4, 2)),
                below("peak of ZeroQAT over LSQ's", 0.5), below("peak of L4Q over LSQ's", 0.75)),
          scope=_OWN.format("L7")),
    Claim(id="L8", group=GROUP, kind="scale-dependent", measure=moved, on_model=True, tier="nightly", takes="cases",
          sentence="Above 2 bits training adjusts weights, at 2 bits and below it rebuilds them.",
          rule=(above("moved at 2 bits and below over 3 and 4", 2.0), above("moved at 2 bits over 3", 1.5),
                below("moved at 3 bits over 4", 1.5)), scope=_OWN.format("L8")),
)  # fmt: skip
