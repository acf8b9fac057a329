import pytest
import torch

from kernels.compiler import compiled, counts
from kernels.table import KERNELS

DISASSEMBLY = """
 Function product:
  REG:95 STACK:16 SHARED:1536 LOCAL:0 CONSTANT[0]:620 TEXTURE:0 SURFACE:0 SAMPLER:0
        /*0000*/                   LDC R1, c[0x0][0x28] ;       /* 0x00000a00ff017b82 */
                                                                /* 0x000fe20000000800 */
        /*0010*/                   I2F.U32 R3, R4 ;
        /*0020*/                   LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDGSTS.E.BYPASS.128 [R8], desc[UR4][R2.64] ;
        /*0040*/             @!P0  LDG.E.U16 R5, desc[UR4][R2.64] ;
        /*0050*/                   STL [R1], R5 ;
        /*0060*/                   I2F.S8 R3, R4 ;
        /*0070*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*0080*/              @P1  BRA.U UP0, 0x20 ;
        /*0090*/                   F2I.U32 R3, R4 ;
        /*00a0*/                   EXIT ;
        /*00b0*/                   BRA 0xb0 ;
        /*00c0*/                   BRA 0x90 ;
"""


def test_counts() -> None:
    assert counts(DISASSEMBLY, 4096) == {
        "registers": 95, "stack_bytes": 16, "shared_bytes": 4096 + 512, "instructions": 13, "local_accesses": 1,
        "matrix": "HMMA", "loop_instructions": 7, "loop_wide_loads": 2, "loop_narrow_loads": 1,
        "loop_matrix": 1, "loop_conversions": 1,
    }  # fmt: skip


def test_code_without_a_loop() -> None:
    straight = counts("REG:8 STACK:0 SHARED:0\n /*0000*/ MOV R1, R2 ;\n /*0010*/ EXIT ;\n /*0020*/ BRA 0x20 ;")
    assert straight["loop_instructions"] == straight["instructions"] == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are interpreted only where there is no GPU")
def test_an_interpreted_kernel_is_refused() -> None:
    kernel = KERNELS[0]
    with pytest.raises(ValueError, match="TRITON_INTERPRET is set"):
        compiled(kernel.plan(*kernel.inputs(kernel.check[0], 0, "cpu")), 90)
