"""Methods: one file per published method, one line here to add it."""

import difflib
from collections.abc import Sequence

from suite.methods.aqlm import AQLM
from suite.methods.awq import AWQ
from suite.methods.billm import BILLM
from suite.methods.bitdistiller import BITDISTILLER
from suite.methods.bitnet import BITNET, BITNET_TUNED
from suite.methods.cerwu import CERWU
from suite.methods.dfloat11 import DFLOAT11
from suite.methods.duquant import DUQUANT
from suite.methods.ecf8 import ECF8
from suite.methods.ecsq import ECSQ
from suite.methods.entrollm import ENTROLLM
from suite.methods.exl2 import EXL2
from suite.methods.expansion import EXPANSION
from suite.methods.floats import FP4, FP6, FP6_E2M3, FP8, FP8_E5M2
from suite.methods.gptq import GPTQ, GPTQ_STOCHASTIC
from suite.methods.hqq import HQQ
from suite.methods.ir_qlora import IR_QLORA
from suite.methods.k_quants import Q2_K, Q3_K, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0
from suite.methods.kivi import KIVI
from suite.methods.kvquant import KVQUANT
from suite.methods.l4q import L4Q
from suite.methods.lloyd_max import K_MEANS, LLOYD_MAX
from suite.methods.loftq import LOFTQ
from suite.methods.low_rank import LOW_RANK, LOW_RANK_GPTQ, LOW_RANK_H
from suite.methods.lsq import LSQ
from suite.methods.method import Method
from suite.methods.microscaling import MXFP4, MXFP6, MXFP6_E3M2, MXFP8, MXFP8_E5M2, MXINT8
from suite.methods.nf4 import NF2, NF4
from suite.methods.nvfp4 import NVFP4
from suite.methods.paretoq import PARETOQ
from suite.methods.pb_llm import PB_LLM
from suite.methods.qa_lora import QA_LORA
from suite.methods.qlora import QLORA
from suite.methods.qronos import QRONOS
from suite.methods.qtip import QTIP
from suite.methods.quarot import QUAROT
from suite.methods.quip_sharp import QUIP_SHARP
from suite.methods.residual_binary import RESIDUAL_BINARY
from suite.methods.rtn import RTN
from suite.methods.smoothquant import SMOOTHQUANT
from suite.methods.sparse import MAGNITUDE_24, SPARSEGPT_24, WANDA_24
from suite.methods.spinquant import SPINQUANT
from suite.methods.ternary import BINARY, TERNARY, TERNARY_REFIT
from suite.methods.vptq import VPTQ
from suite.methods.watersic import WATERSIC
from suite.methods.zeroqat import ZEROQAT

METHODS: tuple[Method, ...] = (
    # integers
    RTN, GPTQ, GPTQ_STOCHASTIC, SMOOTHQUANT, AWQ, HQQ,
    # number formats
    FP8, FP8_E5M2, FP6, FP6_E2M3, FP4, MXFP4, MXFP6, MXFP6_E3M2, MXFP8, MXFP8_E5M2, MXINT8, NVFP4, NF4, NF2, LLOYD_MAX,
    K_MEANS, TERNARY, TERNARY_REFIT, BINARY, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q4_0, Q8_0,
    # masks, mixed widths
    MAGNITUDE_24, WANDA_24, SPARSEGPT_24, EXL2,
    # below three bits
    QUIP_SHARP, QTIP, AQLM, VPTQ, PB_LLM, BILLM, RESIDUAL_BINARY,
    # coordinates
    QRONOS, QUAROT, SPINQUANT, EXPANSION, DUQUANT,
    # quantization-aware training
    LSQ, PARETOQ, BITNET, BITNET_TUNED, BITDISTILLER, ZEROQAT,
    # low-rank branches, adapters
    LOW_RANK, LOW_RANK_H, LOW_RANK_GPTQ, QLORA, LOFTQ, QA_LORA, IR_QLORA, L4Q,
    # caches
    KIVI, KVQUANT,
    # entropy coded
    DFLOAT11, ECF8, ENTROLLM, ECSQ, CERWU, WATERSIC,
)  # fmt: skip


def method_named(name: str, methods: Sequence[Method] = METHODS) -> Method:
    """The method of this name; `ValueError` with the nearest one if there is none."""
    for method in methods:
        if method.name == name:
            return method
    names = [method.name for method in methods]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
    raise ValueError(f"unknown method {name!r}: {hint}")
