"""What others have for the same work, where it is installed: each called as its own documentation says.

Nothing here is a dependency. A peer that is not there, or does not take a size, raises `Absent` with the reason, which
goes into the results; one whose result is wrong is reported so and not timed. All get random inputs that are exactly
representable in their own format, and what these give in float64 is their reference.
"""

from kernels.contender import Rival
from kernels.peers.attention import flashinfer, sdpa
from kernels.peers.coding import dfloat11_decode, dfloat11_product
from kernels.peers.packing import bitsandbytes_pack
from kernels.peers.products import aten, bitsandbytes, gemlite, humming, int_mm, scaled_mm
from kernels.peers.transforms import fast_hadamard

_FOUR_BITS = ("w4a16-gemv", "w4a16-gemm")
PEERS: tuple[Rival, ...] = (
    Rival(name="aten int4", build=aten, beside=_FOUR_BITS),
    Rival(name="bitsandbytes nf4", build=bitsandbytes, beside=("nf4a16-gemv", "nf4a16-gemm")),
    Rival(name="bitsandbytes pack", build=bitsandbytes_pack, beside=("pack-nf4",)),
    Rival(name="int_mm", build=int_mm, beside=("w8a8-gemv", "w8a8-gemm")),
    Rival(name="scaled_mm", build=scaled_mm, beside=("w8a8-e4m3-gemv", "w8a8-e4m3-gemm")),
    Rival(name="sdpa", build=sdpa, beside=("attention",)),
    Rival(name="fast-hadamard-transform", build=fast_hadamard, beside=("hadamard",)),
    Rival(name="dfloat11", build=dfloat11_product, beside=("bf16-coded-gemv", "bf16-coded-gemm")),
    Rival(name="dfloat11", build=dfloat11_decode, beside=("bf16-decode",)),
    Rival(name="flashinfer e4m3", build=flashinfer, beside=("attention",), slow=True),
    Rival(name="gemlite", build=gemlite, beside=_FOUR_BITS, slow=True),
    Rival(name="humming", build=humming, beside=_FOUR_BITS, slow=True),
)
