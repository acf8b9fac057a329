"""Model expansion: more channels than the data has directions, and what else the same bits could buy.

Letters are those of `suite`: `W` (out, in), `H = X^T X / tokens` (in, in). `T` (in, wide) has orthonormal rows; inputs
become X T and weights W T, and their product stays the same.
"""
