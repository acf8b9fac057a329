"""What the machine code of a launch looks like, for a chip that need not be here.

Triton compiles a `Launch` for a named architecture on any machine; NVIDIA's disassembler, which comes with Triton,
tells registers, shared memory and instructions. Speed cannot be read off, its preconditions can: 16-byte loads, no
spills, matrix instructions, no conversion of integers in the loop, and how many instructions a weight costs there.

Needs `TRITON_INTERPRET` unset: an interpreted function has no machine code.
"""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.launch import Launch, interpreted

ARCHITECTURES = (90, 100)  # Hopper (H100, H200), Blackwell (B200)
SHARED_LIMIT = 227 * 1024  # bytes a program may have on either (CUDA C++ Programming Guide, compute capabilities)
RESERVED = 1024  # bytes of shared memory in every program that the system keeps for itself
_POINTERS = {
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.int8: "i8", torch.uint8: "u8",
    torch.int16: "i16", torch.int32: "i32", torch.int64: "i64", torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e5m2: "fp8e5",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class MachineCode:
    """Counts of a compiled launch, for one thread; `loop_` is of its longest loop, or of all where it has none."""

    architecture: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    instructions: int
    local_accesses: int  # spills, if there are any
    matrix: str  # the matrix instructions, by name
    loop_bytes_per_thread: float  # of packed weights
    loop_weights_per_thread: float
    loop_instructions: int
    loop_wide_loads: int  # of 16 bytes, from global memory; Blackwell's of 32 bytes count twice
    loop_narrow_loads: int  # of 1 or 2 bytes, from global memory
    loop_matrix: int
    loop_conversions: int  # between integers and floating point

    @property
    def slots_per_weight(self) -> float:
        """Instructions that a thread starts in the loop for each weight it decodes there."""
        return self.loop_instructions / self.loop_weights_per_thread


def compiled(launch: Launch, architecture: int) -> MachineCode:
    """Compile `launch` for compute capability `architecture` (90 for 9.0) and count."""
    if interpreted():
        raise ValueError("TRITON_INTERPRET is set: an interpreted kernel has no machine code")
    kernel = triton.compile(
        _source(launch),
        target=GPUTarget("cuda", architecture, 32),
        options=launch.options,
    )
    threads = launch.num_warps * 32
    return MachineCode(
        architecture=architecture,
        loop_bytes_per_thread=launch.loop_bytes / threads,
        loop_weights_per_thread=launch.loop_weights / threads,
        **counts(_disassembled(kernel.asm["cubin"]), kernel.metadata.shared),
    )


def counts(disassembly: str, shared: int = 0) -> dict[str, Any]:
    """The fields of `MachineCode` that a disassembly tells, beside `shared` bytes that are given at the launch."""
    usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", disassembly)
    assert usage, disassembly
    # /*0eb0*/  @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
    found = re.finditer(r"/\*([0-9a-f]{4,})\*/\s+((?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)[^;]*);", disassembly)
    code = [(int(line.group(1), 16), line.group(3), line.group(2)) for line in found]
    names = Counter(name for _, name, _ in code)
    loop = Counter(_longest_loop(code))
    return {
        "registers": int(usage.group(1)),
        "stack_bytes": int(usage.group(2)),
        "shared_bytes": shared + max(0, int(usage.group(3)) - RESERVED),
        "instructions": names.total(),
        "local_accesses": _count(names, r"(LDL|STL)\b"),
        "matrix": " ".join(sorted({name.split(".")[0] for name in names if re.match(_MATRIX, name)})),
        "loop_instructions": loop.total(),
        "loop_wide_loads": _count(loop, _WIDE + r"128\b") + 2 * _count(loop, _WIDE + r"256\b"),
        "loop_narrow_loads": _count(loop, r"LDG\b.*\.[US](8|16)\b"),
        "loop_matrix": _count(loop, _MATRIX),
        "loop_conversions": _count(loop, r"I2F|F2I"),
    }


_MATRIX = r"(HMMA|HGMMA|IMMA|IGMMA|QMMA|QGMMA|OMMA|UTCHMMA|UTCIMMA|UTCQMMA|UTCOMMA)\b"


_WIDE = r"(LDG|LDGSTS)\b.*\."


def fingerprint(launch: Launch) -> str:
    """The same for launches that compile to the same machine code."""
    return f"{_source(launch).hash()} {sorted(launch.options.items())}"


def _source(launch: Launch) -> ASTSource:
    names = launch.function.arg_names
    constants = {name: value for name, value in launch.arguments.items() if value is None or _is_one(value)}
    constants |= launch.constants
    signature = {name: "constexpr" if name in constants else _type(launch.arguments[name]) for name in names}
    aligned = [["tt.divisibility", 16]]
    attributes = {
        (at,): aligned for at, name in enumerate(names) if name not in constants and _aligned(launch.arguments[name])
    }
    constexprs = {(names.index(name),): value for name, value in constants.items()}
    return ASTSource(fn=launch.function, signature=signature, constexprs=constexprs, attrs=attributes)


def _is_one(value: Any) -> bool:  # what Triton compiles in on its own
    return isinstance(value, int) and value == 1


def _type(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + _POINTERS[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def _aligned(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.device.type == "meta" or value.data_ptr() % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def _longest_loop(code: list[tuple[int, str, str]]) -> list[str]:
    """Names of the instructions in the longest stretch that a jump backwards repeats; all of them if none does."""
    exit_at = max((at for at, name, _ in code if name == "EXIT"), default=code[-1][0])  # behind it, waits are retried
    jumps = [(int(target.group(1), 16), at) for at, name, line in code
             if at < exit_at and name.startswith("BRA") and (target := re.search(r"0x([0-9a-f]+)", line))]  # fmt: skip
    start, end = max(
        ((to, at) for to, at in jumps if to < at), key=lambda span: span[1] - span[0], default=(0, code[-1][0])
    )
    return [name for at, name, _ in code if start <= at <= end]


def _count(names: Counter[str], pattern: str) -> int:
    return sum(count for name, count in names.items() if re.match(pattern, name))


def _disassembled(cubin: bytes) -> str:
    """What NVIDIA's disassembler says of a kernel: its resources and its instructions with their addresses."""
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-sass", "-res-usage", str(path)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout
