from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_bench import SIZE, Idle, Machine, measured, toy

from kernels import bench, tuning
from kernels.cache_attention.rows import Decoding
from kernels.fast_hadamard.rows import Rows
from kernels.kernel import Kernel, Size
from kernels.norm_quantize.rows import Tokens
from kernels.peers import PEERS
from kernels.results import CLONE, COPY, DENSE, READ, Results, Shape, Task
from kernels.table import KERNELS, kernel_named
from kernels.targets import TARGETS, large, targeted

ROWS = KERNELS
PLAN = bench.planned(ROWS)


def test_every_row_of_the_table_is_timed_at_every_size_of_its_bench():
    found = {(entry.kernel.name, entry.size) for _, entries in PLAN for entry in entries}
    assert found == {(kernel.name, size) for kernel in ROWS for size in kernel.bench}
    assert all(entry.shape == shape for shape, entries in PLAN for entry in entries)


def test_shapes_of_targets_come_first():
    first = [targeted(shape) for shape, _ in PLAN]
    assert first == sorted(first, reverse=True) and 0 < sum(first) < len(first)
    places = [str(shape) for shape, _ in PLAN]
    # one target for each of three entries, against one for each of ten
    assert places.index("decode 28672 x 8192") < places.index("16 x 28672 x 8192")
    assert {entry.operation for shape, entries in PLAN if targeted(shape) for entry in entries} >= {
        "product", "attention", "hadamard", "norm", "sum-norm", "decode"}  # fmt: skip


def test_every_row_that_is_no_product_has_a_target():
    assert {kernel.name for kernel in ROWS if kernel.operation} <= {target.kernel for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.kernel} {t.against} {t.where}")
def test_every_target_is_of_a_row_that_is_timed_at_such_shapes_beside_the_other(target):
    meant = [(shape, entries) for shape, entries in PLAN if target.means(shape)]
    assert {str(shape) for shape, _ in meant} >= set(target.shapes) and meant
    own = [(shape, entries) for shape, entries in meant if target.kernel in {entry.kernel.name for entry in entries}]
    assert len(own) == len(target.shapes) if target.shapes else own
    for shape, entries in own:
        names = {name for entry in entries for name in (entry.kernel.name, entry.operation)}
        beside = {rival.name for rival in (*bench.YARDSTICKS, *PEERS) if rival.stands_beside(names)}
        assert target.against in beside | {entry.kernel.name for entry in entries} and large(shape)
        assert target.dtype is None or target.dtype in {entry.dtype for entry in entries}
    assert target.source


def test_first_types_of_activations_come_before_others():
    for _, entries in PLAN:
        others = [entry.dtype == "bfloat16" for entry in entries]
        assert others == sorted(others)


def pair(wrong=0.0, forgotten=False, **how):
    """A row with two outputs: rows doubled, and their sums as integers."""

    def inputs(size, seed, device):
        return (torch.randint(9, tuple(size), generator=torch.Generator(device).manual_seed(seed)).float(),)

    def plan(x):
        output = torch.empty_like(x), torch.zeros(len(x), dtype=torch.int32)

        def run():
            torch.mul(x, 2, out=output[0])
            if not (forgotten and run.called):
                output[1].copy_(x.sum(1) + wrong)
            run.called = True
            return output

        run.called = False
        return SimpleNamespace(run=run, outputs=output, function=None)

    return Kernel(
        name="pair", reference=lambda x: (2 * x.double(), x.double().sum(1)), kernel=lambda x: plan(x).run(), plan=plan,
        inputs=inputs, check=(), bench=(Rows(16, 64),), tolerance=0.0, **how,
    )  # fmt: skip


def test_rows_with_several_outputs_are_timed_under_the_name_of_their_operation():
    (copy, own) = measured(pair(operation="doubling")).timings
    assert copy.name == COPY and own.shape == copy.shape == Task("doubling", "16 x 64")
    assert own.bytes_written == 4096 + 64 and own.bytes_moved == 4096 + own.bytes_written and own.copies == 2
    assert measured(pair()).timings[1].shape == Task("pair", "16 x 64")


@pytest.mark.parametrize("how", [{"wrong": 1.0}, {"forgotten": True}], ids=str)
def test_one_wrong_output_of_several_is_not_timed(how):
    found = measured(pair(**how))
    assert [t.name for t in found.timings] == [COPY]
    assert [(a.name, a.reason) for a in found.absences] == [
        ("pair", "its result is off by inf times what is allowed: not timed")
    ]
    assert measured(pair(), machine=Idle()).absences[0].name == "pair"


def test_a_row_judges_its_own_errors():
    lenient = pair(wrong=1.0, excess=lambda result, reference, tolerance: 0.25)
    assert measured(lenient).timings[1].error == 0.25


@pytest.mark.parametrize(
    ("name", "size", "stays", "turns"),
    [
        ("w4a16-gemv", Size(1, 64, 256, 64), ["x"], ["words"]),
        ("attention-kv16", Decoding(1, 4, 2, 64, 128), ["query"], ["window_keys", "window_values"]),
        ("hadamard", Rows(4, 64), [], ["x", "out"]),
        ("sum-norm-int8", Tokens(16, 128), [], ["x", "residual", "gain", "codes"]),
    ],
)
def test_activations_and_queries_stay_and_everything_else_takes_turns(name, size, stays, turns):
    kernel = kernel_named(name)
    entry = tuning.Entry(kernel=kernel, size=size, dtype="", inputs=kernel.inputs)
    first, second, *_ = (launch.arguments for launch in tuning.rotated(entry, 0, "cpu", 1 << 18).launches)
    assert [first[at].data_ptr() == second[at].data_ptr() for at in (*stays, *turns)] == [
        at in stays for at in (*stays, *turns)
    ]


def row(name, *sizes):
    return replace(kernel_named(name), bench=sizes)


def test_each_operation_has_its_yardsticks():
    peers = [peer for peer in PEERS if not peer.slow]
    machine = Machine()
    machine.rotated_bytes = 1
    rows = (
        row("hadamard", Rows(4, 64)), row("norm-int8", Tokens(2, 64)), row("sum-norm-int8", Tokens(2, 64)),
        row("attention-kv16", Decoding(1, 4, 2, 64, 128)), row("w8a8-gemm", Size(32, 48, 64, 64)),
        row("w8a8-e4m3-gemm", Size(32, 48, 64, 64)),
    )  # fmt: skip
    found = measured(*rows, machine=machine, peers=peers)
    told = [[timing.name for timing in found.of(shape)] for shape in found.shapes]
    assert told == [
        [COPY, CLONE, "hadamard"],
        [COPY, CLONE, "norm-int8"],
        [COPY, CLONE, "sum-norm-int8"],
        [COPY, READ, "attention-kv16", "sdpa"],
        [COPY, READ, DENSE, "w8a8-gemm", "w8a8-e4m3-gemm", "int_mm", "scaled_mm"],
    ]
    clones = [found.find(CLONE, shape) for shape in found.shapes[1:3]]
    assert [clone.bytes_moved for clone in clones] == [4 * 2 * 64, 4 * 4 * 64]
    assert {absence.name for absence in found.absences} == {"fast-hadamard-transform"}


def test_results_of_tasks_come_back_from_their_file():
    found = measured(pair(), toy())
    assert {str(shape) for shape in found.shapes} == {"pair 16 x 64", str(Shape(*SIZE[:3]))}
    assert Results.from_json(found.to_json()) == found


def test_a_kernel_that_fails_leaves_its_yardsticks():
    def broken(*_, **__):
        raise RuntimeError("out of resource")

    found = measured(replace(pair(), plan=partial(broken)))
    assert [t.name for t in found.timings] == [COPY]
    assert [(a.name, a.shape) for a in found.absences] == [("pair", Task("pair", "16 x 64"))]
