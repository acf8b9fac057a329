"""Names of models with the outlier dial on: `MODEL+outliers[:KIND][:FACTOR]`. Imports no torch: reports read them too.

A dose is a kind of outlier and its size. Dose 1 is the model itself, under another name.
"""

import re
from dataclasses import dataclass

KINDS: dict[str, tuple[str, ...]] = {"norm": ("norm",), "linear": ("linear",), "both": ("norm", "linear")}
MOST = 256  # outliers of real models are about 100 times their neighbors (Xiao et al. 2022, arXiv:2211.10438)
_DIALED = re.compile(r"(.+)\+outliers((?::[^/\\]*)?)")


@dataclass(frozen=True, slots=True)
class Dose:
    """`factor`-fold outliers of `kind` "norm", "linear" or "both"."""

    kind: str = "both"
    factor: int = 64

    def name(self, base: str) -> str:
        """What the model `base` is called at this dose.

        >>> Dose("linear", 16).name("reference"), Dose().name("reference")
        ('reference+outliers:linear:16', 'reference+outliers')
        """
        return f"{base}+outliers" + ("" if self == Dose() else f":{self.kind}:{self.factor}")


def split_dose(name: str) -> tuple[str, Dose | None]:
    """The model that a name begins with, and its dose, None without one.

    Raises `ValueError` in one line for a suffix that is no dose.

    >>> split_dose("org/model+outliers:norm:4")
    ('org/model', Dose(kind='norm', factor=4))
    >>> split_dose("reference+outliers"), split_dose("reference")
    (('reference', Dose(kind='both', factor=64)), ('reference', None))
    """
    found = _DIALED.fullmatch(name)
    if not found:
        return name, None
    base, suffix = found.groups()
    parts = suffix.split(":")[1:]
    kind = parts.pop(0) if parts and parts[0] in KINDS else Dose().kind
    factor = int(parts.pop(0)) if parts and re.fullmatch("[0-9]{1,3}", parts[0]) else Dose().factor
    if parts or not _is_power(factor):
        raise ValueError(f"{name}: expected {base}+outliers[:KIND][:FACTOR], KIND one of {', '.join(KINDS)}, "
                         f"FACTOR a power of two from 1 to {MOST}")  # fmt: skip
    return base, Dose(kind, factor)


def _is_power(factor: int) -> bool:
    return 1 <= factor <= MOST and not factor & (factor - 1)
