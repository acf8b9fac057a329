"""How the products are cut into programs, reckoned for an H200 until one has measured them.

Few rows: bytes of weights bind. As in `kernels.product.choices`, four programs of a multiprocessor with three turns of
8 KB under way each keep far more than the 33 KB in flight that 4.3 TB/s at 1 us need.

Many rows: matrix units bind, 4096 multiplications of bytes a cycle and multiprocessor, and shared memory feeds them
with 128 bytes a cycle. A tile of 128 x 128 x 128 bytes takes 512 cycles to multiply; its two warp groups read 48 KB of
shared memory for it and 32 KB are written, 640 cycles. Of 128 x 256, both take 1024. So the wide tile it is where there
are enough of them, and where registers hold its sums: for int8 on Hopper. (E4M3 has a second set of sums there, 4 bits
unpack in registers; Blackwell sums in a memory of its own, and fetching that much at once spills.) Where wide tiles
would leave multiprocessors idle, narrow ones it is, and then programs that share inputs.

Rows whose length is no multiple of 16 bytes are loaded byte by byte, with an address each: right, but slow, and in
narrow tiles, whose addresses fit into registers.
"""

from typing import NamedTuple

from kernels.product.choices import HOPPER, splits_for

RESIDENT = 4  # programs for few rows that a multiprocessor holds: 40 to 48 KB of shared memory each


class Problem(NamedTuple):
    """`rows` of activations of `row_bytes`, `outputs`, the format of both, and the machine."""

    rows: int
    outputs: int
    row_bytes: int
    format: str
    multiprocessors: int
    capability: tuple[int, int] = HOPPER


class Choice(NamedTuple):
    """A program's tile of the output and bytes of a turn, programs that share inputs, warps, turns in the ring."""

    block_m: int
    block_n: int
    block_k: int
    splits: int
    warps: int
    stages: int


FEW = (Choice(16, 64, 128, 1, 4, 5), Choice(32, 64, 128, 1, 4, 5))
MANY = (Choice(128, 256, 128, 1, 8, 3), Choice(128, 128, 128, 1, 8, 3), Choice(64, 128, 128, 1, 4, 4))
NARROW = Choice(64, 64, 128, 1, 4, 4)


def default(problem: Problem) -> Choice:
    """What a plan takes: the widest tile that fits and leaves no multiprocessor idle."""
    turns = -(-problem.row_bytes // FEW[0].block_k)
    for choice in FEW:
        if problem.rows <= choice.block_m:
            return choice._replace(splits=splits_for(tiles(problem, choice), turns, problem.multiprocessors, RESIDENT))
    wide = problem.format == "int8" and problem.capability[0] == HOPPER[0]
    for choice in MANY if wide else MANY[1:]:
        fits = choice.block_m == 64 or problem.rows > 64
        if fits and problem.row_bytes % 16 == 0 and tiles(problem, choice) >= problem.multiprocessors:
            return choice
    return NARROW._replace(splits=splits_for(tiles(problem, NARROW), turns, problem.multiprocessors, 1))


def tiles(problem: Problem, choice: Choice) -> int:
    """Tiles of the output."""
    return -(-problem.rows // choice.block_m) * -(-problem.outputs // choice.block_n)
