"""Compiled loops over rows that depend on nothing but themselves, in as many threads as torch has."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
_FEW = 256  # rows that are not worth another thread


def in_threads(work: Callable[[slice], T], n: int, few: int = _FEW) -> list[T]:
    """What `work` gives for consecutive parts of `n` rows; it must let go of the interpreter to gain anything.

    Parts have `few` rows at least, so that few rows are one part.
    """
    threads = max(1, min(torch.get_num_threads(), n // few))
    parts = [slice(i * n // threads, (i + 1) * n // threads) for i in range(threads)]
    if threads == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))
