"""`PackedLinear`: a linear layer whose weights stay packed."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import nn

from kernels.hadamard import hadamard_transform
from suite.quantized import Quantized
from suite.runtime.core import ByRows, Core
from suite.transforms import Frame

Prepare = Callable[[Core], ByRows]


class PackedLinear(nn.Module):
    """y = x W^T + bias from packed weights, in place of `nn.Linear`.

    What a matrix was rounded in besides its own coordinates is done to inputs and outputs as they pass: a channel
    scale, and signs and Hadamard matrices on both sides (`Frame`), in float32; so is the product with a side branch.
    """

    def __init__(self, found: Quantized, bias: torch.Tensor | None, prepare: Prepare, device: torch.device):
        super().__init__()
        self.out_features, self.in_features = found.grid.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.by_rows = prepare(core_of(found))
        self._frame = None if found.frame is None else _on(found.frame.as_stored(), device)
        self._in_scale = None if found.in_scale is None else found.in_scale.float().to(device)
        side = found.side
        self._side = None if side is None else (side.A.float().to(device), side.B.float().to(device))
        self._dressed = any(part is not None for part in (bias, self._frame, self._in_scale, self._side))

    @property
    def n_bytes(self) -> int:
        """Bytes that one token's product reads: packed weights, side branch and bias."""
        beside = (*(self._side or ()), *(() if self.bias is None else (self.bias,)))
        return self.by_rows.at(1).n_bytes + sum(part.nbytes for part in beside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (.., in) to outputs (.., out), of their type."""
        rows = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        y = self._around(rows) if self._dressed else self.by_rows.at(len(rows))(rows)
        return y if x.dim() == 2 else y.reshape(*x.shape[:-1], self.out_features)

    def _around(self, x: torch.Tensor) -> torch.Tensor:
        """The product with all that stands around it: inputs (rows, in) to outputs (rows, out)."""
        scaled = x if self._in_scale is None else x.float() / self._in_scale
        rows = scaled if self._frame is None else hadamard_transform(scaled.float() * self._frame.columns)
        y = self.by_rows.at(len(rows))(rows.to(x.dtype))
        if self._frame is not None:
            y = _out_of(self._frame, y.float())
        if self._side is not None:
            A, B = self._side
            y = y + (scaled.float() @ A.T) @ B.T
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """Sizes and products."""
        return f"{self.in_features}, {self.out_features}, {self.by_rows}"


def core_of(found: Quantized) -> Core:
    """The matrix as it comes back from bytes, without frame and channel scale."""
    return Core(found.codes, found.as_stored().grid)


def _on(frame: Frame, device: torch.device) -> Frame:
    return replace(frame, rows=frame.rows.to(device), columns=frame.columns.to(device))


def _out_of(frame: Frame, y: torch.Tensor) -> torch.Tensor:
    """Outputs (rows, out) of the matrix in its frame as those of the matrix: what `Frame.back` does to its rows."""
    return hadamard_transform(y, inverse=True) * frame.rows


def through_products(
    module: nn.Module, layers: Mapping[str, Quantized], prepare: Prepare, device: torch.device, prefix: str = ""
) -> None:
    """Put a `PackedLinear` in the place of every linear layer of `module` that is quantized, hooks and all.

    `layers` are by full name, which begins with `prefix`.
    """
    for name, found in layers.items():
        inner = name.removeprefix(prefix)
        old = module.get_submodule(inner)
        assert isinstance(old, nn.Linear), f"{name} is a {type(old).__name__}"
        new = PackedLinear(found, old.bias, prepare, device)
        new._forward_pre_hooks, new._forward_hooks = old._forward_pre_hooks, old._forward_hooks
        module.set_submodule(inner, new)
