"""Activations as BitNet b1.58 takes them: eight bits, one scale for each token.

Ma et al. 2024, "The Era of 1-bit LLMs: Training Tips, Code and FAQ" (`activation_quant`), after Wang et al. 2023,
"BitNet", arXiv:2310.11453, eqs. 4 and 5. The codes are theirs; the scale multiplies here, where theirs divides.
"""

import torch

from kernels.inputs import require

SMALLEST = 1e-5  # of max |x|, theirs: a token of zeros has a scale that can be divided by


def quantize_tokens(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (tokens, inputs), int8 in [-127, 127], and scales (tokens,), float32, with x near codes * scale.

    The scale of a token is max(max |x|, 1e-5) / 127, and halves are rounded to even. A token with NaN or infinity gets
    codes of zero and a scale that is NaN, so that its products are NaN. Raises `ValueError` unless x is a
    contiguous matrix of float16, bfloat16 or float32 with at least one column.

    >>> quantize_tokens(torch.tensor([[0.5, -1.0, 0.0]]))
    (tensor([[  64, -127,    0]], dtype=torch.int8), tensor([0.0079]))
    """
    require("x", x, shape=(None, None), dtypes=(torch.float16, torch.bfloat16, torch.float32))
    if x.shape[1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected at least one column")
    wide = x.float()
    largest = wide.abs().amax(dim=1).clamp(min=SMALLEST)
    largest = torch.where(largest.isfinite(), largest, torch.nan)
    codes = (wide * (127 / largest)[:, None]).round().nan_to_num(nan=0.0)
    return codes.to(torch.int8), largest / 127
