"""Grids: which points may a value land on?

A grid is a frozen value that says how; `fit` binds it to one tensor. A *fitted grid* offers `nearest`, `neighbors`
and `decode` on any of its columns, `refit` for columns whose values have moved, an exact `n_bits`, and the `streams`
that its parameters are stored as.
"""

from suite.grids.integer import Integer, OutputSearch, ShrinkSearch

GRIDS = (Integer,)

__all__ = ["GRIDS", "Integer", "OutputSearch", "ShrinkSearch"]
