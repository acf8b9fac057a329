"""What a store says of forgetting: what trained cells gained on one text and lost on another, beside their controls."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan, sqrt

import numpy as np

from reports.frontier import Point, Study
from suite.store import Record, RetentionRow, Store


@dataclass(frozen=True, slots=True)
class Kept:
    """The cells of one recipe, one for each seed, and what they keep of one text."""

    label: str
    pairs: tuple[tuple[Record, RetentionRow], ...]

    @property
    def method(self) -> str:
        """What it was made by."""
        return self.pairs[0][0].method

    def mean(self, name: str) -> float:
        """A field of the rows in the mean over seeds; NaN as soon as one is missing."""
        return float(np.mean(self._values(name)))

    def error(self, name: str) -> float:
        """The standard error of the mean of `name`: of the tokens, which all seeds share, and between seeds."""
        values, tokens = self._values(name), np.nan_to_num(self._values(name.replace("_nats", "_se")), posinf=0.0)
        between = values.var(ddof=1) / len(values) if len(values) > 1 and np.isfinite(values).all() else 0.0
        return sqrt(float(np.mean(tokens**2)) + float(between))

    def _values(self, name: str) -> np.ndarray:
        return np.array([nan if (x := getattr(row, name)) is None else x for _, row in self.pairs], dtype=float)


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What the cells of a study keep of `text`, in the order of methods and bits."""

    study: Study
    text: str
    text_sha256: str
    kept: tuple[Kept, ...]

    @property
    def drawn(self) -> list[Kept]:
        """Those with both a gain and a loss."""
        return [k for k in self.kept if isfinite(k.mean("gained_nats")) and isfinite(k.mean("forgotten_nats"))]


def read_forgetting(store: Store, found: Sequence[Study]) -> list[Forgetting]:
    """The rows of the newest records of these studies, by study and text."""
    rows: dict[tuple[str, str, str], list[RetentionRow]] = {}
    for row in store.rows(RetentionRow):
        rows.setdefault((row.cell, row.code, row.env), []).append(row)
    made = []
    for study in found:
        texts: dict[str, dict[Point, list[tuple[Record, RetentionRow]]]] = {}
        for point in study.points:
            for record in point.records:
                for row in rows.get((record.cell, record.code, record.env), []):
                    texts.setdefault(row.text_sha256, {}).setdefault(point, []).append((record, row))
        for sha256, points in sorted(texts.items()):
            kept = _labeled(list(points.values()))
            made.append(Forgetting(study, kept[0].pairs[0][1].text, sha256, kept))
    return made


def _labeled(series: list[list[tuple[Record, RetentionRow]]]) -> tuple[Kept, ...]:
    series.sort(key=lambda s: (s[0][0].method, s[0][0].bits or 0.0, s[0][0].recipe))
    plain = [r.method if r.bits is None else f"{r.method} {r.bits:g}" for r in (s[0][0] for s in series)]
    count = Counter(plain)
    return tuple(Kept(name + (f" ({s[0][0].cell[:8]})" if count[name] > 1 else ""), tuple(s))
                 for name, s in zip(plain, series, strict=True))  # fmt: skip


def forgetting_verdict(forgetting: Forgetting) -> str:
    """The least and the most that cells forgot beyond their controls; empty where none has a control."""
    found = sorted((k for k in forgetting.kept if isfinite(k.mean("excess_nats"))), key=lambda k: k.mean("excess_nats"))
    if not found:
        return ""
    words = [f"{k.label} forgets {_signed(k, 'forgotten_nats')} nats of {forgetting.text} for "
             f"{_signed(k, 'gained_nats')} gained, {_signed(k, 'excess_nats')} more than its control"
             for k in dict.fromkeys((found[0], found[-1]))]  # fmt: skip
    first = f"of {len(found)} trained models, from the least beyond its control to the most: " if len(found) > 1 else ""
    return first + "; ".join(words) + "."


def _signed(kept: Kept, name: str) -> str:
    error = kept.error(name)
    text = f"{kept.mean(name):.3g}" + (f" ± {error:.1g}" if error > 0 else "")
    return text.replace("-", "−")
