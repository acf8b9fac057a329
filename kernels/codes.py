"""Codes that activations are rounded to, and what they stand for: integers of 8 and 4 bits, and E4M3."""

import torch

LARGEST = {"int8": 127.0, "int4": 7.0, "e4m3": 448.0}  # symmetric integers; the largest number of E4M3
SMALLEST = 2.0**-118  # the least magnitude by which 448 can be divided in float32, in powers of two


def two_in_a_byte(codes: torch.Tensor) -> torch.Tensor:
    """Codes (rows, n) of int8 in [-8, 7] as bytes (rows, n / 2), int8: the first in the low nibble, two's complement.

    Raises `ValueError` for odd n and other codes.

    >>> two_in_a_byte(torch.tensor([[1, -1]], dtype=torch.int8)).view(torch.uint8).item() == 0xF1
    True
    """
    if codes.numel() and not -8 <= int(codes.min()) <= int(codes.max()) < 8:
        raise ValueError(f"codes lie in [{int(codes.min())}, {int(codes.max())}], expected [-8, 7]")
    if codes.shape[1] % 2:
        raise ValueError(f"rows of {codes.shape[1]} codes, expected an even number: two take a byte")
    return (codes[:, ::2] & 15) | (codes[:, 1::2] << 4)


def unpack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Integers of 4 bits (rows, 2 n), int8, from bytes (rows, n), int8, as `two_in_a_byte` packs them.

    >>> unpack_nibbles(two_in_a_byte(torch.tensor([[7, -7]], dtype=torch.int8))).tolist()
    [[7, -7]]
    """
    return torch.stack([(codes << 4) >> 4, codes >> 4], dim=-1).flatten(1)


def values(codes: torch.Tensor, format: str) -> torch.Tensor:
    """What codes (rows, bytes) of a format of `LARGEST` stand for: (rows, n) in float64."""
    return (unpack_nibbles(codes) if format == "int4" else codes).double()
