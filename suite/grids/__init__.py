"""Grids: which points may a value land on?

A grid is a frozen value that says how; `fit` binds it to one tensor. A *fitted grid* offers `nearest`, `neighbors`
and `decode` on any of its columns, `refit` for columns whose values have moved, an exact `n_bits`, and the bytes
that all of it is stored in (`suite.grids.grid`).
"""

from suite.grids.bell_split import BellSplit
from suite.grids.bfloat16 import BFloat16
from suite.grids.codebooks import Codebooks
from suite.grids.e8p import E8P
from suite.grids.exl2 import Exl2
from suite.grids.integer import ClipRatio, Integer, OutputSearch, ShrinkSearch
from suite.grids.k_quants import Gguf
from suite.grids.least_squares import LeastSquares
from suite.grids.lloyd_max import GaussianTable, KMeansTable
from suite.grids.nested import DoubleQuantized, TwoLevel
from suite.grids.outlier_columns import OutlierColumns
from suite.grids.partly_binary import PartlyBinary
from suite.grids.residual_binary import ResidualBinary
from suite.grids.scaled import Scaled
from suite.grids.scales import PowerOfTwo, RealScale, Unscaled
from suite.grids.shifted import Shifted
from suite.grids.sparse import Sparse
from suite.grids.steps import Steps
from suite.grids.trellis import Trellis
from suite.grids.two_sided import TwoSided

GRIDS = (
    Integer, Scaled, Gguf, Sparse, Exl2, BFloat16, Steps, Codebooks, ResidualBinary, PartlyBinary, BellSplit, E8P,
    Trellis, OutlierColumns, TwoSided, Shifted,
)  # fmt: skip
SCALES = (RealScale, LeastSquares, PowerOfTwo, TwoLevel, DoubleQuantized, Unscaled)
# what a grid's fields are made of
GRID_PARTS = (ShrinkSearch, OutputSearch, ClipRatio, GaussianTable, KMeansTable, *SCALES)

__all__ = [
    "E8P",
    "GRIDS",
    "GRID_PARTS",
    "SCALES",
    "BFloat16",
    "BellSplit",
    "ClipRatio",
    "Codebooks",
    "DoubleQuantized",
    "Exl2",
    "GaussianTable",
    "Gguf",
    "Integer",
    "KMeansTable",
    "LeastSquares",
    "OutlierColumns",
    "OutputSearch",
    "PartlyBinary",
    "PowerOfTwo",
    "RealScale",
    "ResidualBinary",
    "Scaled",
    "Shifted",
    "ShrinkSearch",
    "Sparse",
    "Steps",
    "Trellis",
    "TwoLevel",
    "TwoSided",
    "Unscaled",
]
