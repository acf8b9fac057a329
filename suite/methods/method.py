"""What a published method is to the suite: a citation, and a recipe for every width it takes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypeVar

from suite.adaptation.quantization_aware import QuantizationAware
from suite.adaptation.training import Schedule
from suite.recipe import Recipe, Rounding
from suite.rounding import Feedback, Nearest, Qronos

K = TypeVar("K")
Split = tuple[int, int, int]  # codebooks, bits of a code of each, weights that share them


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


def taken(kind: type[K], options: dict[str, Any], **defaults: Any) -> K:
    """A `kind` made of the options that name its fields, which are taken out of `options`, and else of `defaults`."""
    return kind(**(defaults | {f.name: options.pop(f.name) for f in fields(kind) if f.name in options}))  # type: ignore[arg-type]


def split_of(
    bits: int, splits: Mapping[int, Split], codebooks: int | None, code_bits: int | None, length: int | None
) -> Split:
    """How `bits` per weight become codes of vectors: as given, or else as `splits` has it for this width.

    `ValueError` where codebooks, code_bits and length are not all given or none, or do not come to `bits` a weight.
    """
    if codebooks is code_bits is length is None:
        return splits[bits]
    if codebooks is None or code_bits is None or length is None:
        raise ValueError(f"codebooks, code_bits, length {(codebooks, code_bits, length)}: expected all three, or none")
    if codebooks * code_bits != bits * length:
        raise ValueError(f"{codebooks} codes of {code_bits} bits for {length} weights: they come to "
                         f"{codebooks * code_bits / length:g} bits a weight, expected {bits}")  # fmt: skip
    return codebooks, code_bits, length


def named_rounding(name: str, options: dict[str, Any]) -> Rounding:
    """What rounds weights below a rotation, "gptq", "qronos" or "rtn", made of its options, which are taken out."""
    kinds: dict[str, type] = {"gptq": Feedback, "qronos": Qronos, "rtn": Nearest}
    if name not in kinds:
        raise ValueError(f"rounding {name!r}: expected one of {', '.join(kinds)}")
    found: Rounding = taken(kinds[name], options)
    return found


# On two cores seven minutes of the shipped model's training, a tenth of what made it, at a quarter of its peak rate.
TUNING = Schedule(steps=400, rate=5e-4, warmup=0.05, weight_decay=0.0)


def training(options: dict[str, Any], schedule: Schedule = TUNING, **defaults: Any) -> QuantizationAware:
    """How a model is trained: `options` that name fields of `Schedule` or `QuantizationAware` are taken out."""
    changed = {f.name: options.pop(f.name) for f in fields(Schedule) if f.name in options}
    return taken(QuantizationAware, options, **(defaults | {"schedule": replace(schedule, **changed)}))
