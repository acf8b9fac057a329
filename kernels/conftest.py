"""Where there is no GPU, kernels run under the interpreter."""

import os

import torch

if not torch.cuda.is_available():  # before the first kernel is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
