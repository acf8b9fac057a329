"""Compile launches before they are wanted, several at a time: a GPU is lent by the minute, and compilers are slow."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from triton import AsyncCompileMode

from kernels.launch import Launch, interpreted


def compile_ahead(launches: Iterable[Launch], threads: int | None = None) -> None:
    """Compile what `launches` will run, for the active device, in `threads` threads (all cores by default).

    A launch that does not compile raises its error when it is run, not here: it is one of many, and the others are to
    be had. Interpreted ones have nothing to compile.
    """
    if interpreted():
        return
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool, AsyncCompileMode(pool, ignore_errors=True):
        for launch in launches:
            with suppress(Exception):
                launch.function.warmup(grid=launch.grid, **launch.arguments, **launch.constants, **launch.options)
