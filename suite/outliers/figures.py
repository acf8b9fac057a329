"""From a model and its calibration tokens to figures of its outliers, in the coordinates of one method after another.

Figures of inputs are of the sampled rows (at most 512, the same in all coordinates), apart from what the Gram matrix
says of all tokens, and from massive outliers, which are few: those are looked for in the largest values of all tokens
where these are known, which is where inputs are as they were or merely scaled. Salience is that of at most 512 rows of
the weights, spread evenly.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from suite.bench import Bench
from suite.blockwise import transform_block
from suite.calibration import Calibration
from suite.grids import Integer
from suite.methods import method_named
from suite.models.architecture import linear
from suite.outliers.metrics import (
    captured,
    dynamic_range,
    eigenvector_incoherence,
    excess_kurtosis,
    incoherence,
    max_to_median,
    outlier_channels,
    saliences,
    smoothed,
)
from suite.quantize import generator_for, quantize_activations, quantize_layer
from suite.recipe import Recipe, canonical, parse
from suite.statistics import SAMPLE, LayerStatistics
from suite.store import OutlierRow, SalienceRow, SmoothingRow
from suite.turning import turned_for

COORDINATES = ("none", "smoothquant", "hadamard", "orthogonal", "quarot", "spinquant", "duquant")
_PLAIN = {"none": "()", "smoothquant": "(SmoothScale(),)", "hadamard": "(RotateResidual(kind='hadamard'),)",
          "orthogonal": "(RotateResidual(kind='orthogonal'),)"}  # fmt: skip
METHOD_BITS = 4  # what a method's coordinates are made for, where they are made for a width at all
SALIENT_BITS = 3  # what OWQ's and SpQR's papers are about: few enough that some weights are worth keeping
SMOOTHED_BITS = 4
ALPHAS = tuple(i / 20 for i in range(21))  # SmoothQuant's range, in the steps of its release's search
FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)  # AWQ and OWQ keep 1%, SpQR about as much


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What every row says of where it comes from."""

    model: str
    model_sha256: str
    data_sha256: str
    code: str
    env: str
    command: str
    started: str


@dataclass(frozen=True, slots=True)
class Found:
    """Rows of one model, in the coordinates that were `asked` for."""

    asked: str
    outliers: list[OutlierRow]
    smoothing: list[SmoothingRow]
    salience: list[SalienceRow]


def recipe_of(coordinates: str) -> Recipe:
    """The recipe whose transforms make these coordinates: a name in `COORDINATES`, a method's, or transforms as text.

    Raises `ValueError` naming what is wrong.

    >>> recipe_of("(SmoothScale(alpha=0.25),)").transforms[0].alpha
    0.25
    """
    if coordinates in _PLAIN or coordinates.startswith("("):
        return parse(f"Recipe(transforms={_PLAIN.get(coordinates, coordinates)})")
    method = method_named(coordinates)
    return method.recipe() if method.fixed else method.recipe(bits=METHOD_BITS)


@torch.no_grad()
def measure_outliers(bench: Bench, coordinates: str, origin: Origin) -> Found:
    """The rows of all layers of a model in these coordinates; ranges over alpha where there are none."""
    recipe, found = recipe_of(coordinates), Found(coordinates, [], [], [])
    threads = bench.setting.threads
    checkpoint = turned_for(bench.checkpoint, recipe, bench.calibration, seed=bench.seed, threads=threads)
    kept = Calibration.of(checkpoint, bench.calibration, threads)
    about: dict[str, Any] = {"coordinates": coordinates if coordinates in COORDINATES else _short(coordinates),
             "transforms": canonical(recipe.transforms), **asdict(origin)}  # fmt: skip
    for i in range(checkpoint.n_blocks):
        block = checkpoint.block(i)
        changed = transform_block(checkpoint, i, block, recipe, kept.statistics(i), bench.seed)
        for site in checkpoint.architecture.sites:
            statistics = changed.statistics[site.layers[0]]
            weights = {checkpoint.architecture.full_name(i, layer): linear(block, layer).weight.detach()
                       for layer in site.layers}  # fmt: skip
            found.outliers.extend(_shapes(weights, statistics, about))
            found.salience.extend(_salience(weights, statistics, about))
            if not recipe.transforms:
                found.smoothing.extend(_smoothing(weights, statistics, origin))
    return found


def _short(coordinates: str) -> str:
    return coordinates if not coordinates.startswith("(") else "custom"


def _shapes(
    weights: dict[str, torch.Tensor], statistics: LayerStatistics, about: dict[str, Any]
) -> Iterator[OutlierRow]:
    X = statistics.sample
    outliers = outlier_channels(X, statistics.max_abs)
    yield OutlierRow(
        layer=next(iter(weights)), tensor="inputs", n_channels=X.shape[1], **_figures(X),
        incoherence=_finite(eigenvector_incoherence(statistics.gram)), normal=int(outliers.normal.sum()),
        massive=int(outliers.massive.sum()), **about,
    )  # fmt: skip
    for name, W in weights.items():
        yield OutlierRow(layer=name, tensor="weights", n_channels=W.shape[1], **_figures(W),
                         incoherence=_finite(incoherence(W)), normal=None, massive=None, **about)  # fmt: skip


def _figures(x: torch.Tensor) -> dict[str, Any]:
    return {"kurtosis": _finite(excess_kurtosis(x)), "max_to_median": _finite(max_to_median(x)),
            "dynamic_range": _finite(dynamic_range(x))}  # fmt: skip


def _finite(x: float) -> float | None:
    return None if math.isnan(x) else x


def _smoothing(weights: dict[str, torch.Tensor], statistics: LayerStatistics, origin: Origin) -> Iterator[SmoothingRow]:
    grid = Integer(bits=SMOOTHED_BITS, group="row", convention="full-range", scale_bits=32)
    found = smoothed(list(weights.values()), statistics.sample, statistics.max_abs, ALPHAS,
                     lambda x: quantize_activations(x, grid, 0.0))  # fmt: skip
    for f in found:
        yield SmoothingRow(layer=next(iter(weights)), alpha=f.alpha, bits=SMOOTHED_BITS, inputs=_finite(f.inputs),
                           weights=_finite(f.weights), error=_finite(f.error), **asdict(origin))  # fmt: skip


def _salience(
    weights: dict[str, torch.Tensor], statistics: LayerStatistics, about: dict[str, Any]
) -> Iterator[SalienceRow]:
    target = method_named("rtn").recipe(bits=SALIENT_BITS).weights
    assert target is not None
    for name, full in weights.items():
        W = full[torch.linspace(0, len(full) - 1, min(SAMPLE, len(full))).round().to(torch.int64)]
        E = quantize_layer(W, target, None, generator_for(0, name)).dequantize() - W
        for criterion, salience in saliences(W, E, statistics.gram, statistics.mean_abs).items():
            shares = captured(E, statistics.gram, salience, FRACTIONS)
            for fraction, (protected, share) in zip(FRACTIONS, shares, strict=True):
                yield SalienceRow(layer=name, criterion=criterion, fraction=fraction, bits=SALIENT_BITS,
                                  protected=protected, share=_finite(share), **about)  # fmt: skip
