"""How a product is cut into programs: numbers alone, so that a plan, a tuner and a test can all ask.

What the numbers are reckoned from, until a GPU has measured them:

- Bytes under way. By Little's law 4.3 TB/s at 1 us of latency need 33 KB in flight on each of 132 multiprocessors; half
  as many again are asked for. A ring of S stages has S - 2 turns under way while the oldest is multiplied, S - 1
  otherwise. At 4 bits and one token a turn is 8 KB; of 28672 x 8192 weights a multiprocessor has 3.4 programs, and
  S = 4 keeps 54 to 81 KB under way. (Five would fit: 95 registers x 128 threads of 65536; 37 of 227 KB.)
- Instructions. A program's fixed costs (addresses, masks, barriers) are shared by all the weights of a thread's turn:
  128 at 4 bits, for tiles of 128 columns and 4 warps. Half the warps would save a tenth of the instructions and leave
  half as many warps to hide latency.
- Activations. Each program reads those of its rows anew, from the second-level cache: 64 rows of 16-bit activations
  are twice the bytes of 128 columns of 4-bit weights. So tiles are wide, and narrow ones are for small matrices.
- Rows beyond 32. On Hopper a tile of 64 rows is multiplied by a warp group's instruction, 3.1 slots a 4-bit weight; two
  tiles of 32 would decode everything twice, 5.2, and leave its faster matrix units idle. But its sums and the decoded
  weights fill 216 registers of 255, and at 2, 3 and 8 bits more than there are. (At 8 bits two tiles of 32 take 8.1
  slots, where twice the speed of 16-bit weights leaves 6.9.) On Blackwell that instruction sums in a memory of its own,
  and fetching the sum of every group from there takes 7.9 slots at 4 bits. So 64 rows are for 4 bits on Hopper; else
  tiles of 32 lie side by side in the grid, and the second reading of their weights comes from the cache.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

HOPPER = (9, 0)  # compute capability
RESIDENT = {16: 4, 32: 3, 64: 2}  # programs of 128 columns that registers leave room for on a multiprocessor, by rows
SCRATCH = {16: 2 << 10, 32: 2 << 10, 64: 32 << 10}  # shared memory beside the ring; wgmma reads decoded weights there
SHARED = 227 << 10  # bytes of a multiprocessor (CUDA C++ Programming Guide, compute capabilities 9.0 and 10.0)
UNDER_WAY = 48 << 10  # bytes of weights
TURNS = 4  # of a program's loop, or more: fewer do not fill its ring


class Choice(NamedTuple):
    """A program's tile of the output, the programs that share its inputs, warps, and turns that lie in the ring."""

    block_m: int
    block_n: int
    splits: int
    warps: int
    stages: int


class Problem(NamedTuple):
    """A product as the choice sees it: `rows` of activations, packed weights, and the machine.

    The weights have `columns` and `tiles` of inputs; a column of a tile is `words` of 16 bits for `inputs` weights.
    """

    rows: int
    columns: int
    tiles: int
    words: int
    inputs: int
    multiprocessors: int
    capability: tuple[int, int] = HOPPER


def default(problem: Problem) -> Choice:
    """What a plan takes: wide tiles, or narrow ones where wide ones would leave multiprocessors idle."""
    block_m = rows_of(problem)
    wide = filled(problem, block_m, 128, 4)
    if problem.columns > 64 and programs(problem, wide) >= problem.multiprocessors:
        return wide
    return filled(problem, block_m, 64, 2 if block_m < 64 else 4)


def rows_of(problem: Problem) -> int:
    """Rows of a program's tile: as many as there are, from the matrix units' 16 to what is cheapest on the chip."""
    most = 64 if problem.capability[0] == HOPPER[0] and problem.inputs == 128 else 32
    return next(rows for rows in (16, 32, 64) if rows >= min(problem.rows, most))


def filled(problem: Problem, block_m: int, block_n: int, warps: int) -> Choice:
    """Programs of that tile, their splits and the stages of their rings."""
    tiles_out = -(-problem.rows // block_m) * -(-problem.columns // block_n)
    resident = RESIDENT[block_m] * 128 // block_n
    splits = splits_for(tiles_out, problem.tiles, problem.multiprocessors, resident)
    share = min(max(1.0, tiles_out * splits / problem.multiprocessors), resident)  # programs of a multiprocessor
    words, activations = 2 * problem.words * block_n, 2 * problem.inputs * block_m  # bytes of a turn
    wanted = math.ceil(UNDER_WAY / (words * share)) + 1  # buffers of the ring
    possible = (SHARED // math.ceil(share) - SCRATCH[block_m]) // (words + activations)
    buffers = max(2, min(wanted, possible, -(-problem.tiles // splits), 5))
    return Choice(block_m, block_n, splits, warps, 1 + buffers)


def splits_for(tiles_out: int, tiles_in: int, multiprocessors: int, resident: int = 4) -> int:
    """Programs that share the inputs of a tile of the output: they fill the machine once, with turns for their rings.

    A matrix too small for that still has a program for each multiprocessor, if that leaves them two turns; one too
    large is split where its last programs would leave most multiprocessors idle.
    """
    room, most = multiprocessors * resident, max(1, tiles_in // TURNS)
    if tiles_out > room:
        return min(range(1, min(most, 8) + 1), key=lambda splits: (  # turns of the busiest, two more for start and end
            -(-tiles_out * splits // multiprocessors) * (-(-tiles_in // splits) + 2)
        ))  # fmt: skip
    splits = min(room // tiles_out, most)
    if splits * tiles_out < multiprocessors:
        splits = min(-(-multiprocessors // tiles_out), tiles_in // 2)
    return max(1, splits)


def programs(problem: Problem, choice: Choice) -> int:
    """How many programs there are."""
    return -(-problem.rows // choice.block_m) * -(-problem.columns // choice.block_n) * choice.splits


def alternatives(problem: Problem, first: Choice) -> Iterator[Choice]:
    """Choices near `first`, each once and none of them `first`: what a tuner on a GPU may try."""
    rows = first.block_m
    shapes = [(rows, 64, 4), (rows, 128, 4), (rows, 128, 8), (rows, 256, 8)]
    if rows < 64:  # fewer warps would keep the sums of 64 rows in local memory
        shapes += [(rows, 64, 2), (rows, 128, 2)]
    else:
        shapes += [(32, 128, 4), (32, 256, 8)]
    tried = [filled(problem, *shape) for shape in shapes if shape[1] < 2 * max(64, problem.columns)]
    tried += [first._replace(splits=splits) for splits in (first.splits // 2, first.splits * 2)]
    tried += [first._replace(stages=stages) for stages in (first.stages - 1, first.stages + 1)]
    for at, choice in enumerate(tried):
        if choice not in (first, *tried[:at]) and 1 <= choice.splits <= problem.tiles:
            yield choice
