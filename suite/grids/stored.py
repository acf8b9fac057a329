"""Parameters as they are stored: real numbers as the bits of float16 or float32, and back."""

import torch


def stored_type(width: int) -> torch.dtype:
    """The floating-point type of 16 or 32 bits."""
    return {16: torch.float16, 32: torch.float32}[width]


def to_bits(values: torch.Tensor, width: int) -> torch.Tensor:
    """Real numbers as the bits, int64, of the floating-point type of `width` bits."""
    if width == 16:
        return values.half().view(torch.int16).to(torch.int64) & 0xFFFF
    return values.float().contiguous().view(torch.int32).to(torch.int64) & 0xFFFFFFFF


def from_bits(values: torch.Tensor, width: int) -> torch.Tensor:
    """The inverse of `to_bits`, in float32."""
    whole = torch.int16 if width == 16 else torch.int32
    return values.to(whole).view(stored_type(width)).float()
