"""Sizes at which products are checked and timed."""

from kernels.kernel import Size

# small enough for an interpreter, and ragged: one output, odd ones, a short last group, a short last tile
GEMV_CHECK = (Size(1, 1, 64, 32), Size(1, 40, 256, 64), Size(1, 131, 387, 128), Size(1, 64, 2048, 128))
GEMM_CHECK = (Size(2, 24, 128, 32), Size(17, 72, 200, 64), Size(64, 65, 256, 128))

# the matrices of a 70-billion-parameter model (>= 100 MB at 4 bits), then those of smaller ones, where launches decide
GEMV_BENCH = (
    Size(1, 28672, 8192), Size(1, 8192, 28672), Size(1, 14336, 4096), Size(1, 4096, 14336), Size(1, 4096, 4096),
    Size(1, 2048, 2048),
)  # fmt: skip
GEMM_BENCH = (*(Size(rows, 28672, 8192) for rows in (2, 4, 8, 16, 32, 64)), Size(16, 4096, 4096))
