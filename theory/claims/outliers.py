"""Claims about outliers and coordinates, O2 to O6: what a model's calibration text says of them.

A seed is a draw of calibration rows; of a model whose layers differ, what is replicated is the median or the share over
all of its layers.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median
from typing import TYPE_CHECKING

from theory.cells import kl_of, recipe_of, records
from theory.claims.frame import Claim, above, below
from theory.experiment import Setting

if TYPE_CHECKING:
    import torch

    from suite.bench import Bench
    from suite.statistics import LayerStatistics

GROUP = "Outliers and coordinates"
_CALIBRATION, _EVALUATION = 1 << 12, 1 << 13  # tokens in the quick tier, as in the suite's smoke tier
_TOP = 0.01
_SALIENT_BITS = 3  # as in `suite.outliers`: few enough that some weights are worth keeping
_HESSIANS = ("inputs", "gauss-newton", "hessian")
_ALPHAS = tuple(i / 10 for i in range(11))
_OWN = ("on a model of 3.7 million parameters without natural outliers; `bitfrontier claims --run --only {} MODEL` "
        "with one of 100 million or more would say it of those")  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Site:
    """What reads the same inputs in a block: `weights` (out, in) by full name, and the inputs' statistics."""

    weights: "dict[str, torch.Tensor]"
    statistics: "LayerStatistics"


@lru_cache(maxsize=1)
def _bench(setting: Setting) -> "Bench":
    import suite.bench

    limits = suite.bench.Setting(model=setting.model, calibration_tokens=round(_CALIBRATION * setting.effort),
                                 evaluation_tokens=round(_EVALUATION * setting.effort))  # fmt: skip
    bench = suite.bench.open_bench(limits, setting.seed)
    if not isinstance(bench, suite.bench.Bench):
        raise ValueError(f"model {setting.model}: claims about outliers want one that is not quantized")
    return bench


def _sites(setting: Setting, coordinates: str = "none") -> Iterator[_Site]:
    """A model's sites, block by block, in the coordinates of `suite.outliers`."""
    from suite.blockwise import transform_block
    from suite.calibration import Calibration
    from suite.models.architecture import linear
    from suite.outliers.figures import recipe_of
    from suite.turning import turned_for

    bench, recipe = _bench(setting), recipe_of(coordinates)
    checkpoint = turned_for(bench.checkpoint, recipe, bench.calibration, seed=bench.seed, threads=1)
    kept = Calibration.of(checkpoint, bench.calibration, 1)
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        changed = transform_block(checkpoint, i, block, recipe, kept.statistics(i), bench.seed)
        for site in checkpoint.architecture.sites:
            weights = {checkpoint.architecture.full_name(i, layer): linear(block, layer).weight.detach()
                       for layer in site.layers}  # fmt: skip
            yield _Site(weights, changed.statistics[site.layers[0]])


def salience(setting: Setting) -> Mapping[str, float]:
    """O2: the share of a layer's output error that goes when the top 1% of channels are kept, by two yardsticks.

    Channels by their inputs' mean |x|, as AWQ takes them, and by their weights' mean |w|; medians over layers.
    """
    from suite.methods import method_named
    from suite.outliers.metrics import captured
    from suite.quantize import generator_for, quantize_layer

    target = method_named("rtn").recipe(bits=_SALIENT_BITS).weights
    assert target is not None
    by_inputs: list[float] = []
    by_weights: list[float] = []
    kept = []
    for site in _sites(setting):
        for name, W in site.weights.items():
            E = quantize_layer(W, target, None, generator_for(0, name)).dequantize() - W
            for found, salient in ((by_inputs, site.statistics.mean_abs), (by_weights, W.abs().mean(0))):
                ((fraction, share),) = captured(E, site.statistics.gram, salient, (_TOP,))
                found.append(share)
            kept.append(by_inputs[-1] / fraction)
    return {"share by inputs": median(by_inputs), "share by weights": median(by_weights),
            "share by inputs over the channels' own share": median(kept),
            "inputs over weights": median(by_inputs) / median(by_weights)}  # fmt: skip


def smoothing(setting: Setting) -> Mapping[str, float]:
    """O3: where the optimum over alpha is, and what scaling does to both dynamic ranges there; medians over sites."""
    from suite.outliers.metrics import dynamic_range
    from suite.transforms.scale import smooth_scale

    interior, inputs, weights = [], [], []
    for site in _sites(setting):
        X, W = site.statistics.sample.double(), list(site.weights.values())
        ranges = []
        for alpha in _ALPHAS:
            s = smooth_scale(W, site.statistics.max_abs, alpha).double()
            ranges.append((dynamic_range(X / s), median(dynamic_range(w * s) for w in W)))
        at = min(range(len(ranges)), key=lambda k: ranges[k][0] ** 2 + ranges[k][1] ** 2)
        interior.append(0 < at < len(ranges) - 1)
        plain = dynamic_range(X), median(map(dynamic_range, W))
        inputs.append(ranges[at][0] / plain[0])
        weights.append(ranges[at][1] / plain[1])
    return {
        "share of sites with an interior optimum": sum(interior) / len(interior),
        "inputs' range there over none": median(inputs),
        "weights' range there over none": median(weights),
    }


def rotation(setting: Setting) -> Mapping[str, float]:
    """O4: the inputs' excess kurtosis without and with QuaRot's rotation, and what that does to the function."""
    from suite.outliers.metrics import excess_kurtosis

    before, after = (median(abs(excess_kurtosis(site.statistics.sample)) for site in _sites(setting, coordinates))
                     for coordinates in ("none", "quarot"))  # fmt: skip
    return {"kurtosis without": before, "kurtosis rotated": after, "rotated over without": after / before,
            "relative change of logits": _turned_change(setting)}  # fmt: skip


def _turned_change(setting: Setting) -> float:
    """|f'(x) - f(x)| / |f(x)| over the logits of a few rows, of the rotated model without any rounding."""
    import torch

    from suite.methods import method_named
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens
    from suite.turning import turned_for

    plain = load_model(setting.model)
    tokens = load_tokens(None, "calibration", plain, min(256, plain.context)).draw(1024, setting.seed)
    recipe = method_named("quarot").recipe(bits=4)
    turned = turned_for(plain, recipe, tokens, seed=setting.seed, threads=1)
    logits = []
    for checkpoint in (plain, turned):
        hidden = checkpoint.embed(tokens.tensor())
        for i in range(checkpoint.n_blocks):
            hidden = checkpoint.run(i, checkpoint.block(i), hidden)
        logits.append(checkpoint.logits(hidden).double())
    return float(torch.linalg.norm(logits[1] - logits[0]) / torch.linalg.norm(logits[0]))


def learned_rotations(setting: Setting) -> Mapping[str, float]:
    """O5: KL at 4-bit weights and inputs, of the plain model and of one with 64-fold outliers of kind linear."""
    dosed = f"{setting.model}+outliers:linear:64"
    plain, hard = (_kl(model, ("quarot", "spinquant", "duquant"), setting) for model in (setting.model, dosed))
    return {
        "learned over random": plain["spinquant"] / plain["quarot"],
        "learned over random, outliers": hard["spinquant"] / hard["quarot"],
        "DuQuant over the better rotation, outliers": hard["duquant"] / min(hard["quarot"], hard["spinquant"]),
        "DuQuant over the better rotation": plain["duquant"] / min(plain["quarot"], plain["spinquant"]),
    }


def _kl(model: str, methods: tuple[str, ...], setting: Setting) -> dict[str, float]:
    """Each method's divergence in nats at 4 bits, of weights and inputs, by the suite's own cells of the smoke tier."""
    from suite.recipe import with_activations

    recipes = [with_activations(recipe_of(name, 4), 4) for name in methods]
    found = records(replace(setting, model=model), recipes, tier="smoke")
    return {name: kl_of(record) for name, record in zip(methods, found, strict=True)}


def stiffness(setting: Setting) -> Mapping[str, float]:
    """O7: how stiff outlier channels are over chance, and what planting an outlier there costs more than elsewhere.

    Logarithms of base 2 of errors at 4 bits, medians over layers: stiffest less softest channel, at an equal step.
    """
    from theory.spectra.experiments import rotation_gain
    from theory.spectra.experiments import stiffness as over_chance

    stiff, cost = over_chance(setting), rotation_gain(setting)
    found = {f"outlier channels over chance, {kind}": stiff[f"{kind}: outlier channels"]
             for kind in _HESSIANS}  # fmt: skip
    for rounding in ("nearest", "feedback"):
        planted = (cost[f"{rounding}, planted {where}: measured"] for where in ("stiff", "soft"))
        found[f"stiff less soft, {rounding}"] = next(planted) - next(planted)
        found[f"rotated, {rounding}: by step"] = cost[f"{rounding}, rotated: step"]
        found[f"rotated, {rounding}: measured"] = cost[f"{rounding}, rotated: measured"]
    return found


def massive(setting: Setting) -> Mapping[str, float]:
    """O6: which share of the channels with massive outliers feed a down projection; NaN where there are none."""
    from suite.outliers.metrics import outlier_channels

    down = total = 0
    for site in _sites(setting):
        count = int(outlier_channels(site.statistics.sample, site.statistics.max_abs).massive.sum())
        total += count
        down += count * any("down_proj" in name for name in site.weights)
    return {"channels with massive outliers": float(total),
            "share of them in down projections": down / total if total else float("nan")}  # fmt: skip


CLAIMS = (
    Claim(id="O2", group=GROUP, kind="mechanism", measure=salience, on_model=True, seeds=6, scope=_OWN.format("O2"),
          sentence="Salience follows the inputs' magnitude, not the weights'; the top 1% of channels carry a "
                   "disproportionate share of the output error.",
          rule=(above("inputs over weights", 1.0), above("share by inputs over the channels' own share", 2.0))),
    Claim(id="O3", group=GROUP, kind="mechanism", measure=smoothing, on_model=True, seeds=6, scope=_OWN.format("O3"),
          sentence="SmoothQuant's effective dynamic range against alpha has an interior optimum; it moves outliers "
                   "into the weights.",
          rule=(above("share of sites with an interior optimum", 0.5), below("inputs' range there over none", 1.0),
                above("weights' range there over none", 1.0))),
    Claim(id="O4", group=GROUP, kind="mechanism", measure=rotation, on_model=True, seeds=6, scope=_OWN.format("O4"),
          sentence="A random Hadamard rotation lowers kurtosis toward a Gaussian's and leaves the function unchanged.",
          rule=(below("rotated over without", 0.5), below("relative change of logits", 1e-4))),
    Claim(id="O5", group=GROUP, kind="scale-dependent", measure=learned_rotations, on_model=True, tier="full", seeds=6,
          takes="cases", scope=_OWN.format("O5"),
          sentence="A learned rotation (SpinQuant) beats a random one; DuQuant's rotation plus zigzag permutation "
                   "beats both when outliers are massive.",
          rule=(below("learned over random", 1.0), below("learned over random, outliers", 1.0),
                below("DuQuant over the better rotation, outliers", 1.0))),
    Claim(id="O6", group=GROUP, kind="scale-dependent", measure=massive, on_model=True, scope=_OWN.format("O6"),
          sentence="Massive outliers live in the inputs of down-projections.",
          rule=(above("share of them in down projections", 0.5),)),
    Claim(id="O7", group=GROUP, kind="mechanism", measure=stiffness, on_model=True, scope=_OWN.format("O7"),
          sentence="The outliers that break quantization are the stiff directions of the Hessian: they are stiff, and "
                   "it is by that that they cost.",
          rule=(*(above(f"outlier channels over chance, {kind}", 1.0) for kind in _HESSIANS),
                *(above(f"stiff less soft, {rounding}", 0.5) for rounding in ("nearest", "feedback")))),
)  # fmt: skip
