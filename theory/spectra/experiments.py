"""Figures of a model's curvature: spectra, where rounding's errors lie in them, and what of the loss follows from it.

The quick tier looks at the last block, behind which there is only the head, on a single row of tokens; more effort at
all blocks and more rows. Source of the measures: `theory.spectra.ubaru_2017_quadrature`. Torch is imported when an
experiment runs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from theory.experiment import Experiment, Point, Setting
from theory.replication import INTERVAL, replicated, seeds_of
from theory.spectra.ubaru_2017_quadrature import Density, SpectralMeasure, density, spectral_measure

if TYPE_CHECKING:
    import torch

    from suite.models.checkpoint import Checkpoint
    from suite.tokens import Tokens
    from theory.spectra.rotation import Split

_TOKENS = 256  # a row of the shipped model
_OUTLIERS = 1 / 64  # of channels or of weights: as many as the outlier dial turns up
_LAYER = "mlp.down_proj"  # whose inputs are said to hold the outliers
_LEVELS = np.append(10.0 ** -np.arange(0, 6.5, 0.5), 0.0)  # of the largest eigenvalue
_BITS = (4, 3, 2)
_BULK = 0.01  # of the eigenvalues and more in one node: it stands for a crowd, not for single stiff directions
Measures = tuple[Density, dict[str, SpectralMeasure]]


def _open(setting: Setting, tokens: int, seed: int | None = None) -> "tuple[Checkpoint, Tokens]":
    from suite.models.checkpoint import load_model
    from suite.tokens import load_tokens

    checkpoint = load_model(setting.model)
    rows = load_tokens(None, "calibration", checkpoint, min(_TOKENS, checkpoint.context))
    return checkpoint, rows.draw(round(tokens * setting.effort), setting.seed if seed is None else seed)


def _blocks(setting: Setting, checkpoint: "Checkpoint") -> tuple[int, ...]:
    return tuple(range(checkpoint.n_blocks)) if setting.effort > 1 else (checkpoint.n_blocks - 1,)


# Densities


def densities(setting: Setting) -> list[Point]:
    """The share of eigenvalues beyond a share of the largest, for the three matrices of blocks."""
    from theory.spectra.model import How, spectra_of

    checkpoint, tokens = _open(setting, _TOKENS)
    how = How(starts=2, steps=10, seed=setting.seed, extremes="none")
    return [point for spectrum in spectra_of(checkpoint, tokens, how, _blocks(setting, checkpoint), layers=False)
            for point in _curves(spectrum.kind, spectrum.name, spectrum.density, spectrum.largest)]  # fmt: skip


def _curves(kind: str, name: str, found: Density, largest: float) -> Iterator[Point]:
    for level in _LEVELS[:-1]:
        sides = {kind: (found.above(level * largest).value, _bounds(found, level * largest))}
        if kind == "hessian":
            low, high = _bounds(found, -level * largest)
            sides["hessian, negative"] = 1 - found.above(-level * largest).value, (1 - high, 1 - low)
        for side, (share, (low, high)) in sides.items():
            if share > 0:
                yield Point(series=f"{side}, {name}", x=float(level), y=share, low=low, high=high)


def _bounds(found: Density, x: float) -> tuple[float, float]:
    low, high = np.mean([measure.bounds_above(x) for measure in found.measures], axis=0)
    return float(low), float(high)


def _of_densities(points: Sequence[Point]) -> str:
    rows = []
    for series in dict.fromkeys(point.series for point in points):
        at = [p for p in points if p.series == series and 0.0099 < p.x < 0.0101]
        rows += [f"{p.y:.2g} ({series}, within {p.low:.2g} to {p.high:.2g})" for p in at]
    return f"Shares of eigenvalues of at least a hundredth of the largest in size: {', '.join(rows)}."


# Alignment


def alignment(setting: Setting) -> list[Point]:
    """Over the share of eigenvalues above a level, the share of a vector's energy there, for errors and outliers."""
    return [point for kind, (background, found) in aligned(setting).items() for name, measure in found.items()
            for point in _shares(f"{kind}: {name}", background, measure)] + [
        Point(series="chance", x=float(x), y=float(x), predicted=True) for x in (1e-6, 1.0)]  # fmt: skip


def aligned(setting: Setting, bits: int = 3) -> dict[str, Measures]:
    """For each of the three matrices of a layer its density, and the measures of errors and of outliers in it.

    The layer is the last block's down projection. "outlier channels" are the inputs of the largest absolute values, one
    in 64, and "outlier weights" as many of the weights; each is a vector of random signs there, zero elsewhere.
    """
    import torch

    from suite.models.architecture import linear
    from suite.quantize import generator_for
    from theory.spectra.model import fronts
    from theory.spectra.pearlmutter_1994_curvature import Curvature

    checkpoint, tokens = _open(setting, _TOKENS)
    last = checkpoint.n_blocks - 1
    ((_, hidden, grams),) = fronts(checkpoint, tokens, (last,))
    W = linear(checkpoint.block(last), _LAYER).weight.detach()
    H = grams[_LAYER]
    starts: dict[str, torch.Tensor] = {method.upper(): _error(W, H, method, bits) for method in ("rtn", "gptq")}
    signs = torch.randint(2, W.shape, generator=generator_for(setting.seed, "outliers")) * 2.0 - 1
    starts["outlier channels"] = signs * _largest(H.diagonal().expand(W.shape))
    starts["outlier weights"] = signs * _largest(W.abs())
    curvature, rng = (
        Curvature(checkpoint, last, (_LAYER,), hidden, tokens.tensor()),
        np.random.default_rng(setting.seed),
    )
    found: dict[str, Measures] = {"inputs": _in_inputs(H, starts)}
    for kind, A in (("gauss-newton", curvature.gauss_newton()), ("hessian", curvature.hessian())):
        measures = {name: spectral_measure(A, x.float().numpy().ravel(), 10) for name, x in starts.items()}
        found[kind] = density(A, starts=2, steps=10, rng=rng), measures
    return found


def _error(W: "torch.Tensor", H: "torch.Tensor", method: str, bits: int) -> "torch.Tensor":
    """Q - W (out, in) of a method at its defaults."""
    from suite.methods import method_named
    from suite.quantize import generator_for, quantize_layer

    target = method_named(method).recipe(bits=bits).weights
    assert target is not None
    return quantize_layer(W, target, H, generator_for(0, "error")).dequantize() - W


def _largest(size: "torch.Tensor") -> "torch.Tensor":
    """Ones where the largest are, one value in 64 and equal ones, zeros elsewhere."""
    kept = max(1, round(_OUTLIERS * size.numel()))
    return (size >= size.flatten().topk(kept).values[-1]).float()


def _in_inputs(H: "torch.Tensor", starts: "Mapping[str, torch.Tensor]") -> Measures:
    """The measures of matrices (out, in) in I (x) H, by its eigenvectors."""
    import torch

    values, U = torch.linalg.eigh(H)
    nodes, none = values.clamp(min=0).numpy(), np.zeros(len(values))
    found = {}
    for name, x in starts.items():
        energy = (x.double() @ U).square().sum(0).numpy()
        found[name] = SpectralMeasure(nodes, energy / energy.sum(), none)
    return Density(len(nodes), [SpectralMeasure(nodes, np.full(len(nodes), 1 / len(nodes)), none)]), found


def _shares(series: str, background: Density, measure: SpectralMeasure) -> Iterator[Point]:
    for level in _LEVELS * max(background.ends[1], measure.nodes[-1]):
        rank, share = background.above(level).value, float(measure.above(level))
        if rank > 0 and share > 0:
            yield Point(series=series, x=rank, y=share)


def stiffness(setting: Setting) -> Mapping[str, float]:
    """For every matrix and vector of `aligned` u^T A u over tr A / n: 1 by chance, more along stiff directions."""
    return {f"{kind}: {name}": measure.rayleigh / (background.trace().value / background.n)
            for kind, (background, found) in aligned(setting).items() for name, measure in found.items()}  # fmt: skip


def _of_alignment(points: Sequence[Point]) -> str:
    rows = []
    for series in dict.fromkeys(point.series for point in points if not point.predicted):
        mine = [p for p in points if p.series == series]
        at = min(mine, key=lambda p: abs(np.log(p.x / 0.01)))
        rows.append(f"{at.y / at.x:.2g} ({series}, {100 * at.x:.2g}% of eigenvalues)")
    return f"Share of energy in the stiffest directions, over chance: {', '.join(rows)}."


# The change of the loss


def loss_change(setting: Setting) -> list[Point]:
    """The change of the loss by rounding a block, by gradient and curvature, from the stiffest direction on."""
    points = []
    for name, bits, found in changes(setting):
        series = f"{bits} bits, {name}"
        points += [Point(series=f"{series}: gradient and curvature", x=rank, y=nats, predicted=True)
                   for rank, nats in found["by rank"]]  # fmt: skip
        for what in ("measured", "gradient", "curvature", "Gauss-Newton"):
            points.append(Point(series=f"{series}: {what}", x=found["n"], y=found[what], predicted=what != "measured"))
    return points


def changes(setting: Setting) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """For RTN at 4, 3 and 2 bits on all layers of a block, the true change of the loss, in nats, and its terms.

    "gradient" is g . delta, "curvature" 1/2 delta^T H delta, "Gauss-Newton" likewise; "by rank" are ranks of
    eigenvalues of H, by their absolute value from the largest on, with the sum of both terms along eigenvectors up to
    there. The bulk of small eigenvalues comes in one step: a few nodes of both signs stand for nearly all of them.
    """
    from suite.models.architecture import linear
    from theory.spectra.model import fronts
    from theory.spectra.pearlmutter_1994_curvature import Curvature

    checkpoint, tokens = _open(setting, _TOKENS)
    layers, rng = checkpoint.architecture.layers, np.random.default_rng(setting.seed)
    for i, hidden, grams in fronts(checkpoint, tokens, _blocks(setting, checkpoint)):
        curvature = Curvature(checkpoint, i, layers, hidden, tokens.tensor())
        block, hessian, g = checkpoint.block(i), curvature.hessian(), curvature.gradient()
        background = density(hessian, starts=2, steps=10, rng=rng)
        for bits in _BITS:
            delta = curvature.flat({layer: _error(linear(block, layer).weight.detach(), grams[layer], "rtn", bits)
                                    for layer in layers})  # fmt: skip
            yield f"block {i}", bits, _terms(curvature, hessian, background, delta, g)


def _terms(curvature: Any, hessian: Any, background: Density, delta: np.ndarray, g: np.ndarray) -> dict[str, Any]:
    measure, size = spectral_measure(hessian, delta, 10, g), float(np.linalg.norm(delta))
    bulk = max(abs(m.nodes[m.weights >= _BULK]).max() for m in background.measures)
    levels = np.append([x for x in _LEVELS * abs(measure.nodes).max() if x > bulk], 0.0)
    ranks = background.n * np.mean([_beyond(m.above, levels) for m in background.measures], axis=0)
    nats = size * _beyond(measure.cross_above, levels) + size**2 / 2 * _beyond(measure.rayleigh_above, levels)
    return {"n": float(curvature.n), "measured": curvature.change(delta), "gradient": float(g @ delta),
            "curvature": size**2 / 2 * measure.rayleigh,
            "Gauss-Newton": float(delta @ (curvature.gauss_newton() @ delta)) / 2,
            "by rank": [(float(rank), float(y)) for rank, y in zip(ranks, nats, strict=True) if rank >= 1]}  # fmt: skip


def _beyond(above: Callable[[np.ndarray], np.ndarray], levels: np.ndarray) -> np.ndarray:
    """What is due to eigenvalues of these absolute values and more, of either sign; all of it at level 0."""
    return above(levels) + above(np.full_like(levels, -np.inf)) - above(-levels)


def _of_loss_change(points: Sequence[Point]) -> str:
    rows = []
    for measured in (p for p in points if p.series.endswith(": measured")):
        start = measured.series.removesuffix(": measured")
        terms = {what: next(p.y for p in points if p.series == f"{start}: {what}")
                 for what in ("gradient", "curvature", "Gauss-Newton")}  # fmt: skip
        listed = " + ".join(f"{terms[what]:.3g} ({what})" for what in ("gradient", "curvature"))
        rows.append(f"{start}: {measured.y:.3g} measured, {listed}, {terms['Gauss-Newton']:.3g} by Gauss-Newton")
    return f"Change of the loss in nats; {'; '.join(rows)}."


# A rotation


def rotation(setting: Setting) -> list[Point]:
    """For every layer the logarithm of what a rotation or a planted outlier does to the error, and by what."""
    found: dict[tuple[str, str], list[Split]] = {}
    for seed in seeds_of(setting):
        for split in rotation_of(setting, seed):
            found.setdefault((f"{split.rounding}, {split.change}", split.layer), []).append(split)
    order = {layer: k for k, layer in enumerate(dict.fromkeys(layer for _, layer in found))}
    return [replace(replicated(f"{name}: {what}", order[layer], [getattr(split, field) for split in splits]),
                    predicted=what in ("step", "pivots"))
            for (name, layer), splits in found.items() for what, field in _TERMS.items()]  # fmt: skip


_TERMS = {"step": "step", "pivots": "pivots", "measured": "measured",
          "measured at equal step": "measured_at_equal_step"}  # fmt: skip


_SAID = {"measured": "measured", "step": "by step", "pivots": "by pivots",
         "measured at equal step": "measured at equal step"}  # fmt: skip


def rotation_of(setting: Setting, seed: int) -> "list[Split]":
    """The splits at 4 bits, one step for a row, of a calibration draw and rotations that follow from `seed`."""
    from theory.spectra.rotation import rotation_splits

    checkpoint, tokens = _open(setting, 1 << 12, seed)
    blocks = None if setting.effort > 1 else 1
    return list(rotation_splits(checkpoint, tokens, seed=seed, blocks=blocks))


def rotation_gain(setting: Setting) -> Mapping[str, float]:
    """O7, for the setting's seed: medians over layers of every split's terms, in base-2 logarithms."""
    splits = rotation_of(setting, setting.seed)
    names = dict.fromkeys((split.rounding, split.change) for split in splits)
    return {f"{rounding}, {change}: {what}": median(getattr(split, field) for split in splits
                                                    if (split.rounding, split.change) == (rounding, change))
            for rounding, change in names for what, field in _TERMS.items()}  # fmt: skip


def _of_rotation(points: Sequence[Point]) -> str:
    rows = []
    for name in dict.fromkeys(point.series.split(":")[0] for point in points):
        middle = {what: median(p.y for p in points if p.series == f"{name}: {what}") for what in _TERMS}
        rows.append(
            f"{name}: {middle['measured']:+.2f} measured, {middle['step']:+.2f} by step, "
            f"{middle['pivots']:+.2f} by pivots, {middle['measured at equal step']:+.2f} measured at equal step"
        )
    return f"Base-2 logarithms of the error over the unchanged layer's, medians over layers; {'; '.join(rows)}."


EXPERIMENTS = (
    Experiment(name="spectra-densities", title="Eigenvalues of the three Hessians of a block", on_model=True,
               source="Ubaru, Chen, Saad 2017", x="eigenvalue, of the largest", y="share of eigenvalues beyond",
               measure=densities, sentence=_of_densities, log="xy",
               interval="bounds by the nodes around, means of two starts"),
    Experiment(name="spectra-alignment", title="Where errors and outliers lie in the spectra of a layer",
               source="Ubaru, Chen, Saad 2017", x="share of eigenvalues above", y="share of energy there",
               measure=alignment, sentence=_of_alignment, log="xy", on_model=True),
    Experiment(name="spectra-loss-change", title="The change of the loss by rounding a block, by rank of the Hessian",
               source="Pearlmutter 1994", x="eigenvalues, from the largest in size", y="change of the loss, nats",
               measure=loss_change, sentence=_of_loss_change, log="x", on_model=True),
    Experiment(name="rotation-split", title="What a rotation and planted outliers do to a layer's error",
               source="identity of `theory.spectra.rotation`", x="layer", y="log2 of the error over the unchanged one",
               measure=rotation, sentence=_of_rotation, interval=INTERVAL, on_model=True),
)  # fmt: skip
