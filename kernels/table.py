"""Every kernel, in one table: adding one is a folder and its lines here."""

from kernels.byte_product.rows import BYTE_KERNELS
from kernels.cache_attention.rows import CACHE_ATTENTION_KERNELS
from kernels.codebook_product.rows import CODEBOOK_KERNELS
from kernels.coded_product.rows import CODED_KERNELS
from kernels.fast_hadamard.rows import HADAMARD_KERNELS
from kernels.float_product.rows import FLOAT_KERNELS
from kernels.integer_product.rows import INTEGER_KERNELS
from kernels.kernel import Kernel
from kernels.lattice_product.rows import LATTICE_KERNELS
from kernels.norm_quantize.rows import NORM_KERNELS
from kernels.quantize_pack.rows import PACK_KERNELS
from kernels.table_product.rows import TABLE_KERNELS
from kernels.ternary_product.rows import TERNARY_KERNELS
from kernels.trellis_product.rows import TRELLIS_KERNELS

KERNELS: tuple[Kernel, ...] = (
    *INTEGER_KERNELS, *FLOAT_KERNELS, *TABLE_KERNELS, *TERNARY_KERNELS, *LATTICE_KERNELS, *CODEBOOK_KERNELS,
    *TRELLIS_KERNELS, *BYTE_KERNELS, *CODED_KERNELS, *CACHE_ATTENTION_KERNELS, *HADAMARD_KERNELS, *NORM_KERNELS,
    *PACK_KERNELS,
)  # fmt: skip


def kernel_named(name: str) -> Kernel:
    """The row of that name. Raises `ValueError` with the names there are."""
    for kernel in KERNELS:
        if kernel.name == name:
            return kernel
    raise ValueError(f"no kernel {name!r}; there are {', '.join(kernel.name for kernel in KERNELS)}")
