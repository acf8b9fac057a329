"""How a product is cut into programs: numbers alone, so that a plan, a tuner and a test can all ask."""

from collections.abc import Iterator
from typing import NamedTuple

import triton

PROGRAMS = 4  # programs that a multiprocessor should have to choose from: their loads hide each other's latency


class Choice(NamedTuple):
    """A program's tile of the output, the programs that share its inputs, warps, and turns that lie in the ring."""

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int


def default(rows: int, columns: int, outputs: int, tiles: int, multiprocessors: int) -> Choice:
    """What a plan takes for x (rows, ..) and packed weights of `columns` columns and `tiles` tiles of inputs."""
    block_m = max(16, min(64, triton.next_power_of_2(rows)))
    block_n = 64 if columns <= 64 else 128
    across, down = triton.cdiv(outputs, block_n), triton.cdiv(rows, block_m)
    return Choice(block_m, block_n, splits_for(across * down, tiles, multiprocessors), 4, 3)


def alternatives(first: Choice, columns: int, tiles: int) -> Iterator[Choice]:
    """Choices near `first`, which comes first, each once: what a tuner on a GPU may try."""
    yield first
    for block_n, warps in ((64, 4), (128, 4), (128, 8), (256, 8)):
        for stages in (2, 3, 4, 5):
            for times in (0.5, 1, 2):
                splits = int(first.splits * first.block_n / block_n * times)
                other = Choice(first.block_m, block_n, splits, warps, stages)
                if other != first and 1 <= splits <= max(1, tiles // 2) and block_n < 2 * max(64, columns):
                    yield other


def splits_for(tiles_out: int, tiles_in: int, multiprocessors: int) -> int:
    """Programs that share the inputs of a tile of the output: a power of two, each with four turns or more."""
    splits = 1
    while tiles_out * splits * 2 <= multiprocessors * PROGRAMS and tiles_in >= 8 * splits:
        splits *= 2
    return splits
