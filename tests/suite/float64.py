"""Keeps float64 within `transformers`' modules, which cast norms, softmax and rotary tables to float32."""

from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode


class _Float64(TorchFunctionMode):
    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        double = any(isinstance(x, torch.Tensor) and x.dtype == torch.float64 for x in arguments)
        if double and function is torch.Tensor.float:
            return arguments[0]
        if double:
            arguments = tuple(torch.float64 if x is torch.float32 else x for x in arguments)
            keywords = {name: torch.float64 if x is torch.float32 else x for name, x in keywords.items()}
        return function(*arguments, **keywords)


@contextmanager
def kept_in_float64():
    """What is float64 stays so: casts of it to float32, by `.float()`, `.to` or `dtype=`, do nothing."""
    with _Float64():
        yield
