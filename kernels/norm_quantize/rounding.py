"""Moved to `kernels.rounding`."""

from kernels.rounding import nearest_integer

__all__ = ["nearest_integer"]
