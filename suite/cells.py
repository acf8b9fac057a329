"""Cells: what a run is made of. A cell's id is a hash of its description and of nothing else."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from suite.coding import Coding
from suite.methods import METHODS, Method
from suite.recipe import Recipe, with_activations, with_cache

TierName = Literal["smoke", "default", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """How much a run takes on; None is no limit. Calibration rows are drawn by the seed, evaluation rows spread."""

    bits: tuple[int, ...]
    calibration_tokens: int | None
    evaluation_tokens: int | None
    seeds: tuple[int, ...] = (0,)


TIERS: dict[TierName, Tier] = {
    "smoke": Tier(bits=(4,), calibration_tokens=1 << 12, evaluation_tokens=1 << 13),
    "default": Tier(bits=(2, 3, 4, 8), calibration_tokens=1 << 15, evaluation_tokens=1 << 16),
    "full": Tier(bits=(1, 2, 3, 4, 5, 6, 8), calibration_tokens=1 << 15, evaluation_tokens=None, seeds=(0, 1, 2)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A recipe to run, under the name and the nominal width that its record will carry."""

    method: str
    bits: float | None
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One measurement: a model, a recipe, its seed, and the hashes of the tokens it is calibrated and evaluated on.

    `training_sha256` is of the tokens it is trained on, if it is.
    """

    model_sha256: str
    recipe: str
    bits: float | None
    seed: int
    calibration_sha256: str
    evaluation_sha256: str
    length: int
    training_sha256: str | None = None

    @property
    def id(self) -> str:
        """SHA-256 of the description."""
        told = asdict(self)
        if self.training_sha256 is None:
            del told["training_sha256"]  # as if there were no such thing: ids are compared across versions of the code
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def data_sha256(self) -> str:
        """One hash for both sets of tokens."""
        return hashlib.sha256(f"{self.calibration_sha256} {self.evaluation_sha256}".encode()).hexdigest()


def picks(
    methods: Sequence[Method],
    bits: Iterable[float],
    recipes: Iterable[Recipe] = (),
    *,
    group: int | None = None,
    activation_bits: int | None = None,
    cache_bits: int | None = None,
    coding: Coding | None = None,
    strict: bool = True,
) -> list[Pick]:
    """Every method at those of the widths that it has, then the recipes; the same recipe once. Fixed formats once.

    `group` -1 is a whole row, as is the field's custom; `coding` replaces every recipe's own. Raises `ValueError` for a
    group that a method does not take, for a method that has none of the widths, and for a width that no method has;
    unless not `strict`: then a method may be missing, has its own groups if it has no others, and only a width that no
    method of the suite has is an error.
    """
    wanted = sorted(set(bits))
    known = {width for method in (methods if strict else METHODS) for width in method.bits}
    found: dict[Recipe, Pick] = {}
    for method in methods:
        options = _layout(method, group, strict)
        widths = [width for width in wanted if width in method.bits or width not in known]
        if strict and not widths:
            widths = wanted  # which the method says that it does not take
        for width in method.bits if method.fixed else widths:
            recipe = method.recipe() if method.fixed else method.recipe(bits=width, **options)
            recipe = _as_asked(recipe, activation_bits, cache_bits, coding)
            found.setdefault(recipe, Pick(method=method.name, bits=width, recipe=recipe))
    for recipe in recipes:
        recipe = _as_asked(recipe, activation_bits, cache_bits, coding)
        found.setdefault(recipe, Pick(method=name_of(recipe), bits=_width(recipe), recipe=recipe))
    return list(found.values())


def _layout(method: Method, group: int | None, strict: bool) -> dict[str, int | str]:
    if group is None or not (method.grouped or method.fixed or strict):
        return {}
    if not (method.grouped or method.fixed):
        raise ValueError(f"group {group}: {method.name} has no groups, its codes share steps over a whole matrix")
    return {"group": "row" if group == -1 else group}


def _as_asked(recipe: Recipe, activation_bits: int | None, cache_bits: int | None, coding: Coding | None) -> Recipe:
    if activation_bits is not None:
        recipe = with_activations(recipe, activation_bits)
    if cache_bits is not None:
        recipe = with_cache(recipe, cache_bits)
    return recipe if coding is None else replace(recipe, coding=coding)


def name_of(recipe: Recipe) -> str:
    """The name of the method whose defaults give this recipe, or "custom"."""
    width = _width(recipe)
    for method in METHODS:
        # 4.0 is 4, as itself; three levels, of 1.58 bits, have codes of two
        same = method.bits if method.fixed else [bits for bits in method.bits if math.ceil(bits) == width]
        if any(method.recipe(bits=bits) == recipe for bits in same):
            return method.name
    return "custom"


def _width(recipe: Recipe) -> float:
    """The nominal width of the weights, or else of the cache."""
    if recipe.weights is None:
        return 16 if recipe.cache is None else recipe.cache.bits
    return recipe.weights.grid.bits
