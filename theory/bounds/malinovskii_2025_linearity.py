r"""The linearity theorem: what a model loses is a sum over layers, of a slope times the relative squared error.

Malinovskii, Panferov, Ilin, Guo, Richtarik, Alistarh, "Pushing the Limits of Large Language Model Quantization via the
Linearity Theorem", arXiv:2411.17525 (NAACL 2025, "HIGGS"), for the perplexity. For KL(unquantized || quantized) per
token it needs no trained model: KL and its gradient vanish where nothing is changed, and to second order

    KL = 1/2 sum_lk vec(E_l)^T F_lk vec(E_k),    F the Fisher information per token, E_l = Q_l - W_l.

If errors of different layers are uncorrelated and those of one layer isotropic, of mean square t_l^2 |W_l|^2 / n_l in
each of its n_l weights, cross terms vanish in the mean and of each layer's block its trace is left:

    E KL = sum_l a_l t_l^2,    a_l = |W_l|^2 tr(F_ll) / (2 n_l),    t_l^2 = |E_l|^2 / |W_l|^2.

Rounding to nearest in the coordinates of a random rotation makes such errors; error feedback makes errors that are
large where F is small, and the theorem does not apply to it: what it says then is what an isotropic error of the same
size would cost. Where F_ll is nearly B x H, H the Gram matrix of the inputs (K-FAC), and errors are isotropic over
outputs alone, the relative error that takes the place of t_l^2 is tr(E_l H E_l^T) n_in / (|W_l|^2 tr H). Nor does the
theorem say where second order ends. All of this is measured here, on tokens that slopes have not seen.

Slopes are the suite's (`suite.allocation.sensitivity.linearity`): Gaussian noise on one layer at a time.

Imports no torch.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from theory.experiment import Experiment, Point, Setting

_BITS = (2, 3, 4, 5, 6, 8)
_GROUP = 128
_TOKENS = 1024
_MARGIN = 0.2  # of claim Q11
_ARMS = ("nearest, rotated", "nearest", "GPTQ")


def divergence(slopes: Mapping[str, float], relative: Mapping[str, float]) -> float:
    """Nats per token: the sum over layers of slope times relative squared error.

    Raises `ValueError` unless both are of the same layers.

    >>> divergence({"a": 2.0, "b": 1.0}, {"a": 0.25, "b": 0.5})
    1.0
    """
    if set(slopes) != set(relative):
        raise ValueError(f"slopes and errors of different layers: {sorted(set(slopes) ^ set(relative))}")
    return sum(slopes[name] * relative[name] for name in slopes)


def isotropic_slope(W: np.ndarray, F: np.ndarray) -> float:
    """The slope |W|^2 mean(F) / 2 of a layer of weights `W` and diagonal Fisher information `F` of the same shape.

    >>> isotropic_slope(np.ones((2, 2)), np.full((2, 2), 0.5))
    1.0
    """
    return float((np.asarray(W, dtype=float) ** 2).sum() * np.mean(F, dtype=float) / 2)


def _measure(setting: Setting) -> list[Point]:
    from suite.allocation.sensitivity import Noise, linearity
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint, tokens = load_model(setting.model), round(_TOKENS * setting.effort)
    length = min(256, checkpoint.context)
    told, asked = (load_tokens(None, part, checkpoint, length).draw(tokens, setting.seed)
                   for part in ("calibration", "validation"))  # fmt: skip
    noise = Noise(sizes=(0.1,), draws=max(1, round(setting.effort)))
    slopes = linearity(checkpoint, told, seed=setting.seed, threads=1, noise=noise)
    nats, se = {name: a.nats for name, a in slopes.items()}, {name: a.se for name, a in slopes.items()}
    points = []
    for arm, bits, relative, output, kl, kl_se in _outcomes(checkpoint, told, asked, setting.seed):
        points.append(Point(series=arm, x=bits, y=kl, low=kl - 1.96 * kl_se, high=kl + 1.96 * kl_se))
        for name, errors in (("predicted", relative), ("predicted by outputs", output)):
            y = divergence(nats, errors)
            half = 1.96 * float(np.sqrt(sum((se[layer] * errors[layer]) ** 2 for layer in se)))
            points.append(Point(series=f"{arm}: {name}", x=bits, y=y, low=y - half, high=y + half, predicted=True))
    return points


def _outcomes(checkpoint: Any, told: Any, asked: Any, seed: int) -> Any:
    """For every arm and width: relative errors of weights and outputs by layer, KL on `asked`, its standard error."""
    import torch

    from suite.evaluation import Ended, clustered_se, compare
    from suite.grids import Integer
    from suite.models.architecture import linear
    from suite.quantize import generator_for, quantize_layer, squared_error
    from suite.recipe import Target
    from suite.rounding import Feedback, Nearest
    from suite.statistics import quadratic
    from suite.transforms import Incoherence

    grams = _grams(checkpoint, told)
    names, ids = checkpoint.architecture, asked.tensor()
    hidden = checkpoint.embed(ids)
    for i in range(checkpoint.n_blocks):
        hidden = checkpoint.run(i, checkpoint.block(i), hidden)
    base = Ended(checkpoint, hidden)
    for arm in _ARMS:
        for bits in _BITS:
            target = Target(Integer(bits=bits, group=_GROUP), Feedback() if arm == "GPTQ" else Nearest())
            relative, output, hidden = {}, {}, checkpoint.embed(ids)
            for i in range(checkpoint.n_blocks):
                block = checkpoint.block(i)
                for layer in names.layers:
                    name, weight = names.full_name(i, layer), linear(block, layer).weight
                    generator = generator_for(seed, name)
                    frame = (
                        Incoherence().fit((weight.shape[0], weight.shape[1]), generator) if "rotated" in arm else None
                    )
                    Q = quantize_layer(weight, target, grams[name], generator, frame=frame).dequantize()
                    relative[name] = squared_error(weight, Q)
                    undirected = float(weight.double().square().sum() * grams[name].diagonal().mean())
                    output[name] = quadratic(weight - Q, grams[name]) / undirected
                    with torch.no_grad():
                        weight.copy_(Q)
                hidden = checkpoint.run(i, block, hidden)
            kl = compare(Ended(checkpoint, hidden), base, ids).paired.kl  # type: ignore[union-attr]
            yield arm, bits, relative, output, float(kl.mean()), clustered_se(kl, asked.clusters)


def _grams(checkpoint: Any, told: Any) -> dict[str, Any]:
    """H of every layer's input in the unquantized model, by full name."""
    from suite.calibration import gather

    hidden = checkpoint.embed(told.tensor())
    found: dict[str, Any] = {}
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        for site in checkpoint.architecture.sites:
            gram = gather(checkpoint, i, block, hidden, site).gram
            found |= {checkpoint.architecture.full_name(i, layer): gram for layer in site.layers}
        hidden = checkpoint.run(i, block, hidden)
    return found


def _sentence(points: Sequence[Point]) -> str:
    parts = []
    for arm in _ARMS:
        measured = {p.x: p.y for p in points if p.series == arm}
        for by in ("predicted", "predicted by outputs"):
            ratios = {p.x: measured[p.x] / p.y for p in points if p.series == f"{arm}: {by}"}
            held = [f"{bits:g}" for bits, ratio in sorted(ratios.items()) if abs(ratio - 1) <= _MARGIN]
            listed = ", ".join(f"{ratios[bits]:.2f} at {bits:g}" for bits in sorted(ratios))
            within = f"within {_MARGIN:.0%} at {', '.join(held)} bits" if held else f"never within {_MARGIN:.0%}"
            parts.append(f"{arm}, {by}: {listed} ({within})")
    return f"Measured over predicted KL on held-out tokens, {'; '.join(parts)}."


EXPERIMENT = Experiment(
    name="linearity",
    title="KL from slopes and relative squared errors against KL measured",
    source="Malinovskii et al., arXiv:2411.17525",
    x="bits",
    y="KL (nats per token)",
    measure=_measure,
    sentence=_sentence,
    log="y",
    interval="95%, clustered by source file; of predictions by the slopes' standard errors",
)
