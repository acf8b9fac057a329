"""What a store says of memory in training: the parts and the peak of each, measured beside predicted."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

from suite.store import MemoryRow, Store

PARTS = ("weights", "adapters", "gradients", "states", "activations")
FULL = ("lsq", "paretoq", "full")  # methods that train all weights, in the order in which a sentence takes one
_KEY = ("model", "model_sha256", "rows", "length", "width", "checkpointing")


@dataclass(frozen=True, slots=True)
class Training:
    """A training's bytes, measured, predicted or both."""

    measured: MemoryRow | None
    predicted: MemoryRow | None

    @property
    def drawn(self) -> MemoryRow:
        """What is measured, if anything is."""
        found = self.measured or self.predicted
        assert found is not None
        return found

    @property
    def rows(self) -> tuple[MemoryRow, ...]:
        """Both, as far as there are."""
        return tuple(row for row in (self.measured, self.predicted) if row is not None)

    @property
    def label(self) -> str:
        """The method, its nominal bits where it has any, and whether its states are paged."""
        row = self.drawn
        name = row.method if row.bits is None else f"{row.method} {row.bits:g}"
        return f"{name}, paged" if row.paged else name


@dataclass(frozen=True, slots=True)
class Held:
    """The trainings of one model by micro-batches of one size, in the order of their peaks."""

    trainings: tuple[Training, ...]

    @property
    def any(self) -> MemoryRow:
        """One of the rows, for what all of them say."""
        return self.trainings[0].drawn

    @property
    def unit(self) -> tuple[str, int]:
        """What figures count in."""
        return unit_of(max(row.peak for one in self.trainings for row in one.rows))

    @property
    def title(self) -> str:
        """The model, the micro-batch and the numbers."""
        row = self.any
        again = ", activations computed again" if row.checkpointing else ""
        return f"{row.model}, {row.rows} rows of {row.length} tokens, numbers of {row.width} bytes{again}"

    def of(self, method: str) -> list[Training]:
        """The trainings by a method that are not paged, measured."""
        return [one for one in self.trainings if one.drawn.method == method and one.measured and not one.drawn.paged]


def read_memory(store: Store) -> list[Held]:
    """The trainings of a store by model and micro-batch, models that are there first, then shapes, by size.

    Of rows that differ in code and environment the newest.
    """
    newest: dict[tuple, MemoryRow] = {}
    for row in store.rows(MemoryRow):
        key = tuple(getattr(row, f.name) for f in fields(row)
                    if f.name in (*_KEY, "recipe", "method", "bits", "kind", "paged"))  # fmt: skip
        if key not in newest or (row.started, row.code, row.env) > (newest[key].started, newest[key].code,
                                                                   newest[key].env):  # fmt: skip
            newest[key] = row
    settings: dict[tuple, list[MemoryRow]] = {}
    for row in newest.values():
        settings.setdefault(tuple(getattr(row, name) for name in _KEY), []).append(row)
    made = [Held(_trainings(rows)) for _, rows in sorted(settings.items())]
    return sorted(made, key=lambda held: (not held.any.model_sha256, max(one.drawn.weights for one in held.trainings)))


def _trainings(rows: Iterable[MemoryRow]) -> tuple[Training, ...]:
    by_kind: dict[tuple, dict[str, MemoryRow]] = {}
    for row in rows:
        by_kind.setdefault((row.method, row.recipe, row.bits or 0.0, row.paged), {})[row.kind] = row
    found = [Training(one.get("measured"), one.get("predicted")) for _, one in sorted(by_kind.items())]
    return tuple(sorted(found, key=lambda one: -one.drawn.peak))


def memory_verdict(held: Held) -> str:
    """Peaks of QLoRA and L4Q against training all weights, and how far the prediction is off; as far as measured."""
    full = next((min(found, key=lambda one: one.drawn.peak) for method in FULL if (found := held.of(method))), None)
    said = []
    for method in ("qlora", "l4q"):
        own = held.of(method)
        if full is not None and own:
            least = min(own, key=lambda one: one.drawn.peak)
            share = least.drawn.peak / full.drawn.peak
            said.append(f"{least.label} peaks at {size(least.drawn.peak)}, {100 * share:.3g}% of {full.label}'s "
                        f"{size(full.drawn.peak)}")  # fmt: skip
    both = [one for one in held.trainings if one.measured and one.predicted]
    if both:
        off = [one.predicted.peak / one.measured.peak - 1 for one in both if one.predicted and one.measured]
        worst = max(range(len(off)), key=lambda i: abs(off[i]))
        said.append(f"predicted peaks are off by {100 * off[worst]:+.2g}% at most ({both[worst].label})")
    return "; ".join(said) + "." if said else ""


def unit_of(n_bytes: int) -> tuple[str, int]:
    """MiB, or GiB from 10 of these on, with the bytes of one."""
    return ("GiB", 2**30) if n_bytes >= 10 * 2**30 else ("MiB", 2**20)


def size(n_bytes: int) -> str:
    """Bytes in their unit.

    >>> size(3 * 2**19), size(48 * 2**30)
    ('1.5 MiB', '48 GiB')
    """
    unit, n = unit_of(n_bytes)
    return f"{n_bytes / n:.4g} {unit}"
