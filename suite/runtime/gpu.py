"""Our own kernels as products: integers, floating point, tables of up to 16 levels, E8P, trellises, AQLM's codebooks.

Each decodes exactly what it is given and sums in float32, in and out in float16 or bfloat16. On the way to it, scales
and zero points of integers are rounded to float16, which most are stored in; those of floating point stay as they are,
powers of two or float32; entries of a table are rounded to the type of the inputs. What is looked up for vectors is
decoded to that type too, sums of codebooks and of two lattice points rounded in it. E8M0 of MX is stored in its 8 bits;
scales that a format holds in other ways, such as NVFP4's E4M3, are computed beforehand and take 32.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from kernels import (
    codebook_product,
    float_product,
    integer_product,
    lattice_product,
    table_product,
    trellis_product,
)
from kernels.float_product.formats import FORMATS
from suite.grids import PowerOfTwo
from suite.grids.codebooks import FittedCodebooks
from suite.grids.e8p import FittedE8P
from suite.grids.lattice_codebooks import e8_points, patterns
from suite.grids.scaled import FittedScaled
from suite.grids.trellis import FittedTrellis
from suite.grids.trellis_codes import hyb_table
from suite.runtime.core import Core, Unfit, zero_of

_FORMATS = {known.name: known for known in FORMATS}
_RUN = 16  # inputs: the least group of a table
_ENTRIES = 16


@dataclass(frozen=True, slots=True)
class Kernel:
    """Weights as one of our kernels reads them, and that kernel."""

    weights: Any
    product: Callable[[torch.Tensor, Any], torch.Tensor]

    @classmethod
    def prepare(cls, core: Core, dtype: torch.dtype, device: torch.device) -> "Kernel":
        """Lay out the matrix for the first kernel that takes its format; `Unfit` where there is none."""
        reasons: list[str] = []
        for layout in (_lattice, _trellis, _codebooks, _integers, _floats, _levels):
            try:
                return cls(*layout(core, device))
            except Unfit as error:
                reasons.append(str(error))
        raise Unfit("; ".join(filter(None, reasons)))

    @property
    def n_bytes(self) -> int:
        """Of all tensors."""
        parts = [getattr(self.weights, field.name) for field in fields(self.weights)]
        return sum(part.nbytes for part in parts if isinstance(part, torch.Tensor))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """See `Prepared`."""
        return self.bare(x)().to(x.dtype)

    def bare(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """See `Prepared`."""
        half = x if x.dtype in (torch.float16, torch.bfloat16) else x.to(torch.bfloat16)
        return partial(self.product, half.contiguous(), self.weights)


def _lattice(core: Core, device: torch.device) -> tuple[Any, Any]:
    fitted = core.fitted
    if not isinstance(fitted, FittedE8P):
        raise Unfit
    weights = lattice_product.pack(
        core.codes.to(device), torch.from_numpy(patterns()).to(device), fitted.scale.reshape(1).float().to(device),
        inputs=fitted.shape[1], points=e8_points().to(device) if fitted.grid.bits == 3 else None,
        residual=1.0 if fitted.grid.bits == 2 else fitted.grid.ratio,
    )  # fmt: skip
    return weights, lattice_product.lattice_product


def _trellis(core: Core, device: torch.device) -> tuple[Any, Any]:
    fitted = core.fitted
    if not isinstance(fitted, FittedTrellis):
        raise Unfit
    grid, (n_out, n_in) = fitted.grid, fitted.shape
    if grid.code not in trellis_product.packing.STEP_VALUES or (grid.L, *grid.tile) != (16, 16, 16):
        raise Unfit(f"the code is {grid.code} of {grid.L} bits in tiles {grid.tile}: expected 16 bits in 16 x 16")
    table = (hyb_table() if fitted.table is None else fitted.table) if grid.code == "hyb" else None
    try:
        weights = trellis_product.pack(
            core.codes.to(device), fitted.scale.reshape(1).half().to(device),
            None if table is None else table.half().to(device), code=grid.code, bits=grid.bits, outputs=n_out,
            inputs=n_in,
        )  # fmt: skip
    except ValueError as error:
        raise Unfit(str(error)) from error
    return weights, trellis_product.trellis_product


def _codebooks(core: Core, device: torch.device) -> tuple[Any, Any]:
    fitted = core.fitted
    if not isinstance(fitted, FittedCodebooks):
        raise Unfit
    if fitted.grid.axis != 1 or fitted.codebooks.shape[2] != codebook_product.packing.LENGTH:
        raise Unfit(f"its codebooks have shape {tuple(fitted.codebooks.shape)}: expected eight inputs an entry")
    scale = torch.ones(1) if fitted.scale is None else fitted.scale[:, 0]
    try:
        weights = codebook_product.pack(core.codes.to(device), fitted.codebooks.half().to(device),
                                        scale.half().to(device), inputs=fitted.shape[1])  # fmt: skip
    except ValueError as error:
        raise Unfit(str(error)) from error
    return weights, codebook_product.codebook_product


def _integers(core: Core, device: torch.device) -> tuple[Any, Any]:
    found = core.affine
    bits = next(bits for bits in integer_product.packing.WIDTHS if found.top < 2**bits)
    scale, zero = found.scale, zero_of(found)
    middle = bool((zero == 2 ** (bits - 1)).all())
    weights = integer_product.pack(
        found.codes.to(device), scale.half().to(device), None if middle else zero.half().to(device), bits=bits,
        group=None if scale.shape[1] == 1 else found.group,
    )  # fmt: skip
    return weights, integer_product.integer_product


def _floats(core: Core, device: torch.device) -> tuple[Any, Any]:
    fitted = core.fitted
    if not isinstance(fitted, FittedScaled) or fitted.grid.element not in _FORMATS:
        raise Unfit("its elements are not floating point")
    scale, group = _scales(fitted, 32)
    known, shared = _FORMATS[fitted.grid.element], scale
    if isinstance(fitted.grid.scale, PowerOfTwo) and group == 32:
        shared = scale.to(torch.float8_e8m0fnu)
        if not torch.equal(shared.float(), scale):
            raise Unfit("its scales are no powers of two that E8M0 holds")
    codes = _whole(core.codes, fitted.shape)
    try:
        weights = float_product.pack(codes.to(device), shared.to(device), format=known, group=group)
    except ValueError as error:
        raise Unfit(str(error)) from error
    return weights, float_product.float_product


def _levels(core: Core, device: torch.device) -> tuple[Any, Any]:
    fitted = core.fitted
    if not isinstance(fitted, FittedScaled) or fitted.n_codes > _ENTRIES:
        raise Unfit(f"it is no table of {_ENTRIES} levels")
    scale, group = _scales(fitted, _RUN)
    each = (torch.full_like(core.codes[:, :1], code) for code in range(fitted.n_codes))
    first = [fitted.decode(codes, slice(0, 1))[0, 0] for codes in each]
    if float(scale[0, 0]) == 0:
        raise Unfit("its first scale is 0, and says nothing of its levels")
    table = F.pad(torch.stack(first) / scale[0, 0], (0, _ENTRIES - fitted.n_codes))
    codes = _whole(core.codes, fitted.shape)
    weights = table_product.pack(codes.to(device), scale.to(device), table.to(device), group=group)
    return weights, table_product.table_product


def _whole(codes: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """Codes (out, in): without those that fill up the last group of formats of whole groups."""
    return codes[:, : shape[1]].contiguous()


def _scales(fitted: FittedScaled, run: int) -> tuple[torch.Tensor, int]:
    """Scales (out, groups), float32, and how many inputs share one, `run` or more; `Unfit` where fewer do."""
    n_out, n_in = fitted.shape
    wide = fitted.layout.expand(fitted.scale).expand(n_out, n_in).float()
    scale, group = wide[:, ::run], run
    if not torch.equal(scale.repeat_interleave(run, dim=1)[:, :n_in], wide):
        raise Unfit(f"scales change within {run} inputs")
    while scale.shape[1] > 1:
        pairs = scale.shape[1] // 2 * 2
        if not torch.equal(scale[:, 0:pairs:2], scale[:, 1:pairs:2]):
            break
        scale, group = scale[:, ::2], 2 * group
    return scale.contiguous(), group
