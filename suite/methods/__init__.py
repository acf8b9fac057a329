"""Methods: one file per published method, one line here to add it."""

import difflib
from collections.abc import Sequence

from suite.methods.awq import AWQ
from suite.methods.gptq import GPTQ, GPTQ_STOCHASTIC
from suite.methods.hqq import HQQ
from suite.methods.method import Method
from suite.methods.rtn import RTN
from suite.methods.smoothquant import SMOOTHQUANT

METHODS: tuple[Method, ...] = (RTN, GPTQ, GPTQ_STOCHASTIC, SMOOTHQUANT, AWQ, HQQ)


def method_named(name: str, methods: Sequence[Method] = METHODS) -> Method:
    """The method of this name; `ValueError` with the nearest one if there is none."""
    for method in methods:
        if method.name == name:
            return method
    names = [method.name for method in methods]
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(names)}"
    raise ValueError(f"unknown method {name!r}: {hint}")
