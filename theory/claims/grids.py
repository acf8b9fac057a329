"""Claims about grids, G1 to G5 and O1, on sources whose limits are known; a seed draws the samples."""

from collections.abc import Mapping

from theory.claims.frame import Claim, above, below
from theory.experiment import Setting

GROUP = "Grids"
_TAILS = {"Gaussian": 0.0, "t10": 0.1, "t3": 1 / 3}  # 1 / degrees of freedom
_SOURCES = ("Gaussian", "Laplacian", "Student's t of 3")
_BITS = (2, 3, 4)
_FULL_DB = 1.533


def floats(setting: Setting) -> Mapping[str, float]:
    """G1: decibels that E2M1 has over INT4, by source and by what shares a scale."""
    from theory.grids.element_formats import gains

    return {f"{name}, {'one scale' if group == 'tensor' else f'groups of {group}'}": gain
            for name, tail in _TAILS.items() for group, gain in gains(setting.seed, tail).items()}  # fmt: skip


def normal_float(setting: Setting) -> Mapping[str, float]:
    """G2: NF4's error over that of other tables of 16 levels on a Gaussian, at true rates, and over the limit."""
    from theory.grids.element_formats import four_bit_tables

    found = {name: outcome.over_gaussian for name, outcome in four_bit_tables(setting.seed).items()}
    nf4 = found["NF4, blocks"]
    others = {f"NF4 over {name}": nf4 / value for name, value in found.items() if name != "NF4, blocks"}
    return {"NF4 over the limit": nf4} | others


def blocks(setting: Setting) -> Mapping[str, float]:
    """G3: decibels that blocks of 16 leave less than blocks of 32 once their bits are paid for."""
    from theory.grids.block_sizes import by_block, gain_db

    found = {}
    for source in _SOURCES:
        known = by_block(source, setting.model, setting.seed)
        for scale in ("E4M3", "powers of two"):
            found[f"16 over 32, {scale}, {source}"] = gain_db(known, (scale, 16), (scale, 32))
        found[f"NVFP4 over MXFP4, {source}"] = gain_db(known, ("E4M3", 16), ("powers of two", 32))
    return found


def lattice(setting: Setting) -> Mapping[str, float]:
    """G4: decibels that E8P leaves less than scalar grids on a Gaussian at the same true rate."""
    from theory.grids.distance import RIVALS, e8_against

    return {f"over {rival}, {bits} bits": e8_against(rival, bits, setting.seed) for rival in RIVALS for bits in _BITS}


def shaping(setting: Setting) -> Mapping[str, float]:
    """G5: shaping gains of lattices and trellises in decibels."""
    from theory.grids.distance import lattice_gain_db, net_gain_db

    found = {name: lattice_gain_db(name, setting.seed) for name in ("D4", "E8")}
    return found | {f"trellis, {bits} bits": net_gain_db("Gaussian", "trellis", bits, setting.seed) for bits in (2, 3)}


def one_outlier(setting: Setting) -> Mapping[str, float]:
    """O1: the share of values in [-1, 1] that decode to zero beside one of 100."""
    from theory.grids.one_outlier import zeroed

    return {f"share of zeros, {'one scale' if group == 'tensor' else f'groups of {group}'}":
            zeroed(100.0, group, setting.seed) for group in ("tensor", 128, 32)}  # type: ignore[arg-type]  # fmt: skip


CLAIMS = (
    Claim(id="O1", group="Outliers and coordinates", kind="theorem", measure=one_outlier,
          sentence="One value of 100 among values in [-1, 1] collapses the rest to zero at INT4 with min-max scaling.",
          rule=(above("share of zeros, one scale", 0.99),)),
    Claim(id="G1", group=GROUP, kind="mechanism", measure=floats, seeds=5, takes="cases",
          sentence="FP4 (E2M1) has a better signal-to-noise ratio than INT4 on bell-shaped and heavy-tailed data.",
          rule=tuple(above(f"{name}, {how}", 0.0) for name in _TAILS for how in ("one scale", "groups of 32"))),
    Claim(id="G2", group=GROUP, kind="mechanism", measure=normal_float, seeds=5, takes="every",
          sentence="NF4 is information-theoretically optimal for Gaussian weights.",
          rule=(below("NF4 over best levels, blocks", 1.01), below("NF4 over the limit", 1.01))),
    Claim(id="G3", group=GROUP, kind="mechanism", measure=blocks, seeds=5, takes="cases",
          sentence="Finer blocks (NVFP4's 16 against MXFP4's 32) buy more than their scales cost.",
          rule=tuple(above(f"{what}, {source}", 0.0) for what in ("NVFP4 over MXFP4", "16 over 32, E4M3")
                     for source in _SOURCES)),
    Claim(id="G4", group=GROUP, kind="theorem", measure=lattice, seeds=5, takes="cases",
          sentence="On a Gaussian source E8 beats any scalar grid at the same rate; and entropy-coded scalar "
                   "quantization.",
          rule=tuple(above(f"over {rival}, {bits} bits", 0.0) for rival in ("Lloyd-Max", "entropy-coded steps")
                     for bits in _BITS)),
    Claim(id="G5", group=GROUP, kind="mechanism", measure=shaping, seeds=5,
          sentence="The shaping gain of every grid used here is above 0 and below 1.53 dB.",
          rule=tuple(rule for name in ("D4", "E8", "trellis, 2 bits", "trellis, 3 bits")
                     for rule in (above(name, 0.0), below(name, _FULL_DB)))),
)  # fmt: skip
