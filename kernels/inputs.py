"""What public kernel functions ask of their tensors: errors name the input, what was found and what was expected."""

from collections.abc import Sequence

import torch

ACTIVATIONS = (torch.float16, torch.bfloat16)


def require(
    name: str,
    tensor: torch.Tensor,
    *,
    shape: Sequence[int | None],
    dtypes: Sequence[torch.dtype],
    device: torch.device | None = None,
) -> None:
    """Raise `ValueError` unless `tensor` is contiguous, of one of `dtypes`, on `device`, of `shape` (None: any)."""
    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"{name} is a {type(tensor).__name__}, expected a tensor")
    found = tuple(tensor.shape)
    if len(found) != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, found, strict=True)
    ):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} has shape {found}, expected ({expected})")
    if tensor.dtype not in dtypes:
        raise ValueError(f"{name} is {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if device is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, expected {device}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} of shape {found} has strides {tensor.stride()}, expected a contiguous tensor")


def require_multiple(name: str, value: int, of: int) -> None:
    """Raise `ValueError` unless `value` is a positive multiple of `of`."""
    if value <= 0 or value % of:
        raise ValueError(f"{name} is {value}, expected a positive multiple of {of}")
