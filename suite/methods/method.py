"""What a published method is to the suite: a citation, and a recipe for every width it takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from suite.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A row of `METHODS`. `build(bits=..., **options)` gives the recipe; those of more than one width take `group`.

    A number format of one width is built without `bits`. What is not `grouped` has steps for whole matrices.
    """

    name: str
    paper: str
    arxiv: str | None
    needs: Literal["nothing", "calibration", "training"]
    bits: tuple[float, ...]
    build: Callable[..., Recipe]
    grouped: bool = True

    @property
    def fixed(self) -> bool:
        """Whether the method is of one width and one layout, and so ignores what is asked of both."""
        return len(self.bits) == 1

    def recipe(self, *, bits: float | None = None, **options: Any) -> Recipe:
        """The method's recipe at this width; `ValueError` for a width or an option that it does not take."""
        if not self.fixed and bits not in self.bits:
            raise ValueError(f"bits {bits!r}: {self.name} takes {self.bits[0]} to {self.bits[-1]}")
        try:
            return self.build(**options) if self.fixed else self.build(bits=bits, **options)
        except TypeError as error:
            raise ValueError(f"{self.name}: {error}") from error

    @property
    def targets(self) -> tuple[str, ...]:
        """What is quantized: weights, activations, the cache."""
        recipe = self.recipe(bits=self.bits[-1])
        return tuple(name for name in ("weights", "activations", "cache") if getattr(recipe, name) is not None)
