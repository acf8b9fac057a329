"""From a store's rows of outliers and its records of dosed models to what is drawn.

A dose is read from a model's name (`suite.models.doses`): records whose models differ in it alone, on the same
evaluation, are one curve per method. The dial leaves the function as it was, so that the unquantized perplexity, by
which evaluations are told apart, is that of all doses. All functions are pure.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reports.entropy import Model
from reports.frontier import Point, Study
from suite.models.doses import KINDS, Dose, split_dose
from suite.store import OutlierRow, Record, SalienceRow, SmoothingRow, Store

Row = OutlierRow | SmoothingRow | SalienceRow
FIGURES = ("kurtosis", "max_to_median", "incoherence", "dynamic_range")
TENSORS = ("inputs", "weights")
ROTATIONS = ("quarot", "spinquant", "duquant")  # what the claim about doses is about
_WIDTH = re.compile(r"\bactivations=Target\(Integer\(bits=(\d+)")  # which a recipe's text begins with


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A model's rows, of one set of calibration tokens."""

    model: Model
    outliers: tuple[OutlierRow, ...]
    smoothing: tuple[SmoothingRow, ...]
    salience: tuple[SalienceRow, ...]

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Their names, the model's own first."""
        return tuple(sorted({r.coordinates for r in self.outliers}, key=_own_first))

    def layers(self, tensor: str) -> list[str]:
        """The layers with figures of `tensor`, in the order of a model."""
        return sorted({r.layer for r in self.outliers if r.tensor == tensor}, key=place)

    def figures(self, coordinates: str, tensor: str, name: str) -> np.ndarray:
        """One figure over the layers, (layers,); NaN where it is not a number."""
        found = {r.layer: getattr(r, name) for r in self.outliers
                 if (r.coordinates, r.tensor) == (coordinates, tensor)}  # fmt: skip
        return np.array(
            [np.nan if (x := found.get(layer)) is None else x for layer in self.layers(tensor)], dtype=float
        )

    def channels(self, coordinates: str, kind: str) -> int:
        """How many input channels of all layers together hold outliers of a kind, "normal" or "massive"."""
        return sum(getattr(r, kind) or 0 for r in self.outliers if r.coordinates == coordinates)

    @property
    def sites(self) -> dict[str, list[SmoothingRow]]:
        """The rows of each site over alpha, by its first layer."""
        found: dict[str, list[SmoothingRow]] = {}
        for row in sorted(self.smoothing, key=lambda r: (place(r.layer), r.alpha)):
            found.setdefault(row.layer, []).append(row)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Dosed:
    """A method's point at one dose; `kind` is empty at dose 1, where all kinds are one."""

    kind: str
    factor: int
    point: Point

    @property
    def kl(self) -> float:
        """Mean over seeds, nats."""
        return self.point.mean("kl")

    @property
    def error(self) -> float:
        """Standard error of `kl`."""
        return self.point.error("kl", "kl_se")


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One method at one width of weights and inputs, at all doses: `width` is as in W4A8."""

    method: str
    recipe: str
    width: str
    doses: tuple[Dosed, ...]

    def of(self, kind: str) -> list[Dosed]:
        """The doses of a kind, dose 1 first."""
        return sorted((d for d in self.doses if d.kind in ("", kind)), key=lambda d: d.factor)

    def at(self, kind: str, factor: int) -> Dosed | None:
        """The point at a dose."""
        return next((d for d in self.of(kind) if d.factor == factor), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Doses:
    """All curves of a model on one evaluation; `unmeasured` are the doses' cells that were skipped or failed."""

    base: str
    ppl_base: float | None
    curves: tuple[Curve, ...]
    unmeasured: tuple[Record, ...]

    @property
    def widths(self) -> tuple[str, ...]:
        """The widths, the narrowest first."""
        return tuple(sorted({c.width for c in self.curves}, key=natural))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of outliers that were dosed."""
        found = {d.kind for c in self.curves for d in c.doses}
        return tuple(kind for kind in KINDS if kind in found)


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Everything that the page of coordinates shows of a store."""

    outliers: tuple[OutlierRow, ...]
    smoothing: tuple[SmoothingRow, ...]
    salience: tuple[SalienceRow, ...]
    studies: tuple[Study, ...]

    @cached_property
    def measured(self) -> tuple[Measured, ...]:
        """The models of the rows, each on the tokens that it was measured on last."""
        rows: tuple[Row, ...] = (*self.outliers, *self.smoothing, *self.salience)
        newest: dict[tuple[str, str], Row] = {}
        for row in rows:
            key = (row.model, row.model_sha256)
            if key not in newest or row.started > newest[key].started:
                newest[key] = row
        labels = labels_of(sorted(newest))
        return tuple(
            Measured(
                model=Model(label=labels[key], name=key[0], sha256=key[1]),
                outliers=tuple(r for r in self.outliers if _same(r, last)),
                smoothing=tuple(r for r in self.smoothing if _same(r, last)),
                salience=tuple(r for r in self.salience if _same(r, last)),
            )
            for key, last in sorted(newest.items(), key=lambda item: item[0])
        )

    @cached_property
    def doses(self) -> tuple[Doses, ...]:
        """The dosed models, by name and perplexity."""
        found: list[Doses] = []
        for base in sorted({split[0] for s in self.studies if (split := _split(s.model))[1] is not None}):
            of_base = [(dose, s) for s in self.studies for name, dose in [_split(s.model)] if name == base]
            while of_base:
                same = [pair for pair in of_base if _comparable(pair[1], of_base[0][1])]
                of_base = [pair for pair in of_base if pair not in same]
                if curves := _curves(same):
                    left = tuple(r for _, s in same for r in s.unmeasured if is_dose(r.model))
                    found.append(Doses(base=base, ppl_base=same[0][1].ppl_base, curves=curves, unmeasured=left))
        return tuple(found)

    @cached_property
    def caches(self) -> tuple[Study, ...]:
        """The studies with quantized caches."""
        return tuple(
            s
            for s in self.studies
            if not is_dose(s.model) and any(np.isfinite(p.mean("cache_bytes")) for p in s.points)
        )

    @property
    def anything(self) -> bool:
        """Whether there is anything for a page to say."""
        return bool(self.outliers or self.smoothing or self.salience or self.doses or self.caches)


def read_coordinates(store: Store, studies: Sequence[Study]) -> Coordinates:
    """What a store holds about outliers and coordinates, for its studies."""
    return Coordinates(outliers=tuple(store.rows(OutlierRow)), smoothing=tuple(store.rows(SmoothingRow)),
                       salience=tuple(store.rows(SalienceRow)), studies=tuple(studies))  # fmt: skip


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """Names in the order of the numbers in them."""
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", name) if part)


_PLACES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def place(layer: str) -> tuple:
    """Layers in the order in which a model evaluates them: by the numbers in their names, then by their kind."""
    kind = kind_of(layer)
    numbers = tuple(int(part) for part in layer.split(".") if part.isdecimal())
    return numbers, _PLACES.index(kind) if kind in _PLACES else len(_PLACES), layer


def kind_of(layer: str) -> str:
    """The last part of a layer's name.

    >>> kind_of("model.layers.3.mlp.down_proj")
    'down_proj'
    """
    return layer.rsplit(".", 1)[-1]


def labels_of(models: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """What figures call models (name, hash): the last part of the name, and of the hash what tells namesakes apart."""
    keys = list(models)
    short = [re.split(r"[/\\]", name.rstrip("/\\"))[-1] or name for name, _ in keys]
    return {key: label if short.count(label) == 1 else f"{label} {key[1][:8]}"
            for key, label in zip(keys, short, strict=True)}  # fmt: skip


def _own_first(coordinates: str) -> tuple[int, str]:
    known = ("none", "smoothquant", "hadamard", "orthogonal", *ROTATIONS)
    return known.index(coordinates) if coordinates in known else len(known), coordinates


def _same(row: Row, other: Row) -> bool:
    return (row.model, row.model_sha256, row.data_sha256) == (other.model, other.model_sha256, other.data_sha256)


def _split(name: str) -> tuple[str, Dose | None]:
    """A model's name and dose; a directory may be called like a dose that there is none of."""
    try:
        return split_dose(name)
    except ValueError:
        return name, None


def is_dose(model: str) -> bool:
    """Whether a model is there for a curve of doses: it has one, and says which.

    >>> [is_dose(name) for name in ("reference+outliers:norm:4", "reference+outliers", "reference")]
    [True, False, False]
    """
    base, dose = _split(model)
    return dose is not None and model != f"{base}+outliers"


def _comparable(a: Study, b: Study) -> bool:
    return a.ppl_base == b.ppl_base or bool(a.ppl_base and b.ppl_base and abs(a.ppl_base / b.ppl_base - 1) < 1e-3)


def _curves(dosed: Sequence[tuple[Dose | None, Study]]) -> tuple[Curve, ...]:
    """One curve for each recipe that quantizes inputs and was run at more than dose 1."""
    found: dict[tuple[str, str, str], list[Dosed]] = {}
    for dose, study in dosed:
        factor = 1 if dose is None else dose.factor
        for point in study.points:
            width = width_of(point)
            if width and np.isfinite(point.mean("kl")):
                kind = "" if dose is None or factor == 1 else dose.kind
                found.setdefault((width, point.method, point.recipe), []).append(
                    Dosed(kind=kind, factor=factor, point=point))  # fmt: skip
    return tuple(Curve(method=method, recipe=recipe, width=width, doses=tuple(_once(points)))
                 for (width, method, recipe), points in sorted(found.items())
                 if any(p.factor > 1 for p in points))  # fmt: skip


def _once(points: Iterable[Dosed]) -> list[Dosed]:
    """One point for each dose: the model at dose 1 has several names."""
    return list({(p.kind, p.factor): p for p in points}.values())


def width_of(point: Point) -> str:
    """As in W4A8, and whether the cache is quantized too; empty where weights or inputs are not in so many bits."""
    found = _WIDTH.search(point.recipe)
    if found is None or point.bits is None:
        return ""
    return f"W{point.bits:g}A{found[1]}" + (" and the cache" if re.search(r"\bcache=", point.recipe) else "")


def both(row: SmoothingRow) -> float | None:
    """The root of the sum of the squared ranges of inputs and weights, as `suite.outliers.metrics.Smoothed.both`."""
    return None if row.inputs is None or row.weights is None else float(np.hypot(row.inputs, row.weights))


def optimum(rows: Sequence[SmoothingRow], value: Callable[[SmoothingRow], float | None]) -> tuple[float, bool] | None:
    """The alpha with the least value, the first of equals, and whether it is interior; None where any is missing."""
    values = [value(r) for r in rows]
    if not rows or any(v is None for v in values):
        return None
    at = min(range(len(rows)), key=lambda k: values[k])  # type: ignore[arg-type,return-value]
    return rows[at].alpha, 0 < at < len(rows) - 1


def shares(rows: Iterable[SalienceRow]) -> dict[float, float]:
    """The mean share over layers, by the fraction asked for."""
    found: dict[float, list[float]] = {}
    for row in rows:
        if row.share is not None:
            found.setdefault(row.fraction, []).append(row.share)
    return {fraction: float(np.mean(values)) for fraction, values in sorted(found.items())}
