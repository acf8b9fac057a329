"""Bounds on what rounding does to a layer's outputs: one file for each result, named by author, year and keyword.

Letters are those of `suite`: `W` (out, in), `X` (tokens, in), `H = X^T X / tokens`, `Q` what is left of W, steps `s`.
Errors are tr (W - Q) H (W - Q)^T, per token. `pivots` are what all of them are made of, `instances` what they are tried
on, and `hook` is how a bound gets beside a measured error.
"""
