"""GGUF's formats as `llama-quantize --pure` applies them: every layer in one format, its scales by llama.cpp's search.

Kawrakow 2023, ggml-org/llama.cpp: k-quants (pull request 1684), the importance matrix (pull request 4861; here the
diagonal of H, `importance=True`). Q4_0 and Q8_0 are older and take the largest magnitude of a block of 32. The
mixtures that files are named by (Q4_K_M, ..) promote some layers: a recipe's `layers` says that. llama.cpp refuses
rows that are no whole number of blocks, or falls back to another format; here they are padded, and charged.
"""

from functools import partial

from suite.grids import Gguf
from suite.grids.gguf_blocks import FORMATS, GgufType
from suite.methods.method import Method
from suite.recipe import Recipe, Target
from suite.rounding import Feedback, Nearest, Stochastic


def build(
    *,
    type: GgufType,
    importance: bool = False,
    rounding: Nearest | Stochastic | Feedback = Nearest(),  # noqa: B008 - a frozen value
) -> Recipe:
    """`importance`: weight the search by the diagonal of H. Error feedback keeps the scales that the search found."""
    return Recipe(weights=Target(Gguf(type=type, importance=importance), rounding))


def _method(name: GgufType, paper: str) -> Method:
    return Method(name=name, paper=paper, arxiv=None, needs="nothing", bits=(FORMATS[name].bits,),
                  build=partial(build, type=name))  # fmt: skip


_K_QUANTS = "llama.cpp: k-quants"

Q2_K = _method("q2_k", _K_QUANTS)
Q3_K = _method("q3_k", _K_QUANTS)
Q4_K = _method("q4_k", _K_QUANTS)
Q5_K = _method("q5_k", _K_QUANTS)
Q6_K = _method("q6_k", _K_QUANTS)
Q4_0 = _method("q4_0", "llama.cpp: GGUF")
Q8_0 = _method("q8_0", "llama.cpp: GGUF")
