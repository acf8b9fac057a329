"""MX and NVFP4 against torchao, code for code: `tox -e oracles`.

transformers imports torchao wherever it finds it, warnings and all, so that it has an environment of its own.
"""

import pytest
import torch
from block_formats import NVFP4, matrices, mx

from kernels.packing import unpack

pytest.importorskip("torchao", reason="torchao has an environment of its own: tox -e oracles")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

from torchao.prototype.mx_formats import mx_tensor, nvfp4_tensor  # noqa: E402
from torchao.prototype.mx_formats.constants import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2  # noqa: E402

MODES = {"floor": mx_tensor.ScaleCalculationMode.FLOOR, "ceil": mx_tensor.ScaleCalculationMode.CEIL,
         "even": mx_tensor.ScaleCalculationMode.EVEN, "up": mx_tensor.ScaleCalculationMode.RCEIL}  # fmt: skip
AO_TYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e3m2": DTYPE_FP6_E3M2, "e2m3": DTYPE_FP6_E2M3,
            "e2m1": torch.float4_e2m1fn_x2}  # fmt: skip
kinds = pytest.mark.parametrize("kind", list(matrices()))


def bits_of(fitted):
    """Everything stored beside the codes, by name."""
    rows, columns = fitted.layout.parameters
    return dict(zip(fitted.grid.scale.widths(rows, columns), fitted.grid.scale.integers(fitted.stored), strict=True))


@pytest.mark.parametrize("element", AO_TYPES)
@pytest.mark.parametrize("rule", MODES)
@kinds
def test_mx_is_that_of_torchao(element, rule, kind):
    W = matrices()[kind]
    scale, data = mx_tensor.to_mx(W, AO_TYPES[element], 32, MODES[rule])
    fitted = mx(element, rule).fit(W)
    assert torch.equal(bits_of(fitted)["exponent"].reshape(64, -1), scale.view(torch.uint8).long())
    codes = fitted.nearest(W)
    if element == "e2m1":
        unpacked = torch.stack(unpack(data.numpy().tobytes(), [(W.numel(), 4)])).reshape(W.shape)
        assert torch.equal(codes.long(), unpacked)
    else:
        assert torch.equal(codes, data.view(torch.uint8))


@kinds
def test_nvfp4_is_that_of_torchao(kind):
    W = matrices()[kind]
    if kind == "zeros":
        fitted = NVFP4.fit(W)  # torchao divides by the zero
        assert torch.equal(fitted.decode32(fitted.nearest(W)), W)
        return
    g = W.abs().amax() / (448 * 6)
    scale, data = nvfp4_tensor.nvfp4_quantize(W, 16, g)
    fitted = NVFP4.fit(W)
    codes = fitted.nearest(W)
    assert torch.equal(bits_of(fitted)["scale"].reshape(64, -1), scale.view(torch.uint8).reshape(64, -1))
    assert torch.equal(codes.long(), unpack(data.numpy().tobytes(), [(W.numel(), 4)])[0].reshape(W.shape))
    theirs = nvfp4_tensor.NVFP4Tensor(data, scale, 16, torch.float32, g).dequantize()
    assert torch.equal(fitted.decode32(codes), theirs)
