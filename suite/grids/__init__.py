"""Grids: which points may a value land on?

A grid is a frozen value that says how; `fit` binds it to one tensor. A *fitted grid* offers `nearest`, `neighbors`
and `decode` on any of its columns, `refit` for columns whose values have moved, an exact `n_bits`, and the bytes
that all of it is stored in (`suite.grids.grid`).
"""

from suite.grids.integer import Integer, OutputSearch, ShrinkSearch

GRIDS = (Integer,)
GRID_PARTS = (ShrinkSearch, OutputSearch)  # what a grid's fields are made of, beside plain values

__all__ = ["GRIDS", "GRID_PARTS", "Integer", "OutputSearch", "ShrinkSearch"]
