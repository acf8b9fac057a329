"""How a peer's package is imported, and how far its results may be from exact ones."""

from importlib import import_module
from typing import Any

from kernels.contender import Absent

# In units of the root mean square: peers round weights to 11 or 8 bits and add partial sums in 16 bits, which gives
# about 0.01 at worst of 30,000 results. Wrong zero points, scales or orders of nibbles give errors of about 1.
TOLERANCE = 0.05


def module(name: str) -> Any:
    """The module of that name. Raises `Absent` where it cannot be imported, for whatever reason."""
    try:
        return import_module(name)
    except Exception as error:  # a package for another driver fails in its own way
        raise Absent(f"cannot import {name}: {type(error).__name__}: {error}") from error
