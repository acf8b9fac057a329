import pytest
import torch
from torch._subclasses import FakeTensorMode

from kernels import peers
from kernels.check import excess_of
from kernels.results import Shape


def test_bitsandbytes_is_called_as_it_wants_to_be():
    made = peers.bitsandbytes(Shape(1, 64, 128), 0, "cpu", 10_000)
    assert len(made.calls) == 3 and made.bytes_moved == 64 * 64 + 4 * 128 + 256 + 128
    assert excess_of(made.calls[2](), made.reference, made.tolerance) < 1


def test_operations_of_aten_are_there_with_the_arguments_they_are_called_with():
    convert, multiply = torch.ops.aten._convert_weight_to_int4pack, torch.ops.aten._weight_int4pack_mm
    assert str(convert.default._schema).endswith("(Tensor self, int innerKTiles) -> Tensor")
    assert str(multiply.default._schema).endswith(
        "(Tensor self, Tensor mat2, int qGroupSize, Tensor qScaleAndZeros) -> Tensor"
    )
    with FakeTensorMode():
        packed = convert(torch.empty(64, 128, dtype=torch.uint8, device="meta"), 8)
        x, sides = (torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in ((1, 256), (2, 64, 2)))
        assert multiply(x, packed, 128, sides).shape == (1, 64)


@pytest.mark.parametrize("build", [peers.aten, peers.gemlite, peers.humming])
def test_peers_that_need_a_gpu_say_what_is_missing(build):
    with pytest.raises(peers.Absent, match=r"cannot import|on cpu"):
        build(Shape(1, 64, 128), 0, "cpu", 1000)
    with pytest.raises(peers.Absent, match="does not divide"):
        build(Shape(1, 65, 128), 0, "cpu", 1000)


def test_integers_of_peers_multiply_as_their_codes_say():
    made = peers._integers(Shape(2, 64, 256), 0, "cpu", torch.float16)
    weight = (made.codes.double() - 8) * made.scale.double().repeat_interleave(128, 1)
    assert torch.equal(made.product, made.x.double() @ weight.T)
