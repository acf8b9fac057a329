import os
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from kernels import bench, command, session, tuning, yardsticks
from kernels.contender import MOST_COPIES, Absent, Rival, copied, n_bytes, n_copies, rotated_bytes
from kernels.kernel import Kernel, Size
from kernels.replays import TURNS, WARMING, checked
from kernels.results import COPY, DENSE, READ, Agreement, Results, Shape
from kernels.table import KERNELS, kernel_named

SMALL = tuple(
    replace(yard, build=partial(yard.build, buffer=1 << 12)) if yard.name in (COPY, READ) else yard
    for yard in yardsticks.YARDSTICKS
)
SIZE = Size(1, 16, 64, 32)


class Machine:
    """Every step takes a second of its own clock; replay k takes (k + 1) ms, and a ms more each round."""

    device, name, rotated_bytes = "cpu", "a clock", 6000

    def __init__(self):
        self.clock, self.captured, self.orders, self.prepared = 0.0, [], [], []

    def now(self):
        return self.clock

    def prepare(self, launches):
        self.prepared.append(list(launches))
        self.clock += 1

    def capture(self, calls):
        self.clock += 1
        self.captured.append(list(calls))
        return Replay(len(self.captured) - 1, calls)

    def seconds(self, replays):
        self.clock += 1
        self.orders.append([replay.number for replay in replays])
        return [(k + 1 + len(self.orders) - WARMING) / 1e3 for k in self.orders[-1]]

    def release(self):
        pass

    def facts(self):
        return {"sm clock": f"{1000 + self.clock:.0f} MHz", "driver": "1"}

    def versions(self):
        return {"torch": "2"}


@dataclass(frozen=True)
class Replay:
    number: int
    calls: tuple

    def __call__(self):
        for call in self.calls:
            call()


@dataclass(frozen=True)
class Weights:
    matrix: torch.Tensor
    scale: float


def toy(name="toy", bench=(SIZE,), wrong=0.0, error=None):
    """A product in plain torch in the dress of a kernel."""

    def inputs(size, seed, device):
        draw = torch.Generator(device).manual_seed(seed)
        matrix = torch.randn(size.outputs, size.inputs, generator=draw)
        return torch.randn(size.rows, size.inputs, generator=draw), Weights(matrix, 2.0)

    def plan(x, weights):
        if error:
            raise error
        output = torch.empty(x.shape[0], weights.matrix.shape[0])
        return SimpleNamespace(
            run=lambda: torch.mul(x @ weights.matrix.T, weights.scale + wrong, out=output),
            outputs=(output,),
            function=None,
            weights=weights,
        )

    def reference(x, weights):
        return x.double() @ weights.matrix.double().T * weights.scale

    return Kernel(name=name, reference=reference, kernel=lambda *a: plan(*a).run(), plan=plan, inputs=inputs, check=(),
                  bench=bench, tolerance=1e-5)  # fmt: skip


def measured(*kernels, machine=None, budget=1e6, **how):
    how = {"peers": (), "yardsticks": SMALL, "rounds": 5, "command": "x"} | how
    return bench.measure(kernels, machine or Machine(), budget_seconds=budget, **how)


def test_weights_in_turns_are_more_than_a_cache_holds():
    assert rotated_bytes(60 << 20) == 480 << 20 and rotated_bytes(1 << 20) == 180_000_000
    assert [n_copies(n, 100) for n in (0, 1, 33, 50, 99, 100, 1000)] == [100, 100, 4, 2, 2, 1, 1]
    assert n_copies(16, 480 << 20) == MOST_COPIES


def test_copies_have_the_same_content_elsewhere():
    x, weights = toy().inputs(SIZE, 0, "cpu")
    other = copied(weights)
    assert torch.equal(other.matrix, weights.matrix) and other.matrix.data_ptr() != weights.matrix.data_ptr()
    assert n_bytes(weights) == weights.matrix.nbytes == 4096 and n_bytes(x) == 256


def test_every_copy_of_the_weights_has_its_launch_and_its_turns_in_the_graph():
    machine = Machine()
    entry = tuning.Entry(kernel=toy(), size=SIZE, dtype="", inputs=toy().inputs)
    made = tuning.rotated(entry, 0, "cpu", 3 * 4096)
    pointers = [launch.weights.matrix.data_ptr() for launch in made.launches]
    assert len(set(pointers)) == 3
    contender = tuning.contender(made, machine, 0, until=0.0)
    checked(lambda: contender, machine)
    assert machine.captured == [list(contender.calls) * TURNS]
    assert contender.calls == tuple(launch.run for launch in made.launches)


def test_everything_of_a_shape_is_replayed_in_turns_in_an_order_of_its_own_each_round():
    machine, again = Machine(), Machine()
    found = measured(toy(), toy("other"), machine=machine, rounds=20)
    assert [t.name for t in found.timings] == [COPY, READ, DENSE, "toy", "other"]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in machine.orders)
    assert len(machine.orders) == 20 + WARMING and {t.replays for t in found.timings} == {20}
    assert len({tuple(order) for order in machine.orders}) > 10
    measured(toy(), toy("other"), machine=again, rounds=20)
    assert again.orders == machine.orders


def test_times_are_medians_and_quartiles_of_one_call():
    found = {t.name: t for t in measured(toy(), rounds=5).timings}
    # replay k takes k + 2, .. k + 6 ms
    for k, name in enumerate((COPY, READ, DENSE, "toy")):
        timing = found[name]
        n = TURNS * timing.copies * 1e3
        assert timing.median_seconds == pytest.approx((k + 4) / n)
        assert (timing.lower_seconds, timing.upper_seconds) == pytest.approx(((k + 3) / n, (k + 5) / n))
        assert timing.replays == 5
    assert [found[name].copies for name in (COPY, READ, DENSE, "toy")] == [1, 1, 3, 2]
    assert found["toy"].bytes_moved == 4096 + 256 + 64
    assert found["toy"].bandwidth == pytest.approx((4096 + 256 + 64) * 2 * TURNS / 7e-3)


def test_what_computes_something_else_is_not_timed():
    found = measured(toy(wrong=0.1), toy("right"))
    assert [t.name for t in found.timings] == [COPY, READ, DENSE, "right"]
    (absence,) = found.absences
    assert absence.name == "toy" and "off by" in absence.reason and absence.shape == Shape(1, 16, 64)


class Idle(Machine):
    """Its graphs do nothing."""

    def capture(self, calls):
        return Replay(super().capture(calls).number, ())


def test_what_computes_nothing_in_a_graph_is_not_timed():
    found = measured(toy(), machine=Idle())
    assert [(a.name, a.reason) for a in found.absences] == [
        ("toy", "its result is off by inf times what is allowed: not timed")
    ]


def test_what_fails_is_said_with_its_reason_and_stops_nothing_else():
    found = measured(toy(error=RuntimeError("out\nof luck")), toy("right"))
    assert [a.reason for a in found.absences] == ["RuntimeError: out of luck"]
    assert found.find("right", Shape(1, 16, 64))


def test_the_budget_is_kept_and_what_is_left_is_named():
    sizes = tuple(Size(1, 16, 64 * k, 32) for k in range(1, 9))
    machine = Machine()
    found = measured(toy(bench=sizes), machine=machine, budget=30.0)
    assert 0 < len(found.shapes) < len(sizes)
    rounds = 5 + WARMING  # of what is ready then, a second each
    assert found.seconds == machine.clock <= 30 + rounds
    late = [a for a in found.absences if a.reason == "no time was left"]
    assert {a.shape for a in late if a.name == "toy"} == {Shape(*s[:3]) for s in sizes[len(found.shapes) :]}


def test_shapes_of_targets_come_first_and_there_all_types_of_activations():
    big, small, tall = Size(1, 28672, 8192), Size(1, 2048, 2048), Size(3, 28672, 8192)
    row = replace(kernel_named("w4a16-gemv"), bench=(small, tall, big))
    plan = bench.planned([row, toy(bench=(small,))])
    assert [shape for shape, _ in plan] == [Shape(*size[:3]) for size in (big, small, tall)]
    assert [[e.dtype for e in entries] for _, entries in plan] == [
        ["float16", "bfloat16"], ["float16", ""], ["float16"]]  # fmt: skip


def test_facts_that_changed_are_told_twice():
    facts = measured(toy()).facts
    assert facts["sm clock"] == "1000 MHz" and facts["sm clock, after"] != "1000 MHz"
    assert facts["driver"] == "1" and "driver, after" not in facts


def integers():
    row = kernel_named("w4a16-gemv")
    size = Size(1, 200, 512, 64)
    entry = tuning.Entry(kernel=row, size=size, dtype="float16", inputs=partial(row.inputs, dtype=torch.float16))
    return tuning.rotated(entry, 0, "cpu", 1 << 17)


class Tuned(Machine):
    """The graph of the fifth launch that is tried is the fastest; that of the third one needs too much."""

    def capture(self, calls):
        replay = super().capture(calls)
        if len(self.captured) == 3:
            raise RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448")
        return replay

    def seconds(self, replays):
        super().seconds(replays)
        return [1.0 if replay.number != 4 else 0.5 for replay in replays]


def test_tuning_takes_the_fastest_launch_on_every_copy_and_says_which():
    machine, made = Tuned(), integers()
    launches, said = tuning.tuned(made.launches, machine, 0, until=1e9)
    assert len(machine.captured) == tuning.TRIED and {len(order) for order in machine.orders} == {2 * tuning.ROUNDS}
    assert [call.__self__ for call in machine.captured[4]] == list(launches) and len(launches) == len(made.launches) > 1
    (ahead,) = machine.prepared
    assert len(ahead) == tuning.TRIED and len({str(launch.constants) + str(launch.options) for launch in ahead}) == 8
    options = len(tuning.candidates(made.launches[0]))
    assert (
        said.endswith(f"best of 8 of {options}, 1 of which failed")
        and f"BLOCK_N {launches[0].constants['BLOCK_N']}" in said
    )
    chosen = tuning.contender(made, Tuned(), 0, until=1e9)
    assert checked(lambda: chosen, Machine()).error <= 1


def test_tuning_ends_in_time_and_without_any_the_default_stays():
    machine, made = Tuned(), integers()
    _, said = tuning.tuned(made.launches, machine, 0, until=4.0)  # preparing, two steps, two steps
    assert len(machine.captured) == 2 and "best of 2" in said
    machine = Machine()
    assert tuning.tuned(made.launches, machine, 0, until=0.0)[0] is made.launches and not machine.captured
    assert "not tuned" in tuning.tuned(made.launches, machine, 0, until=0.0)[1]


KINDS = {(kernel.reference, kernel.excess is None): kernel for kernel in KERNELS}


@pytest.mark.parametrize("kernel", KINDS.values(), ids=lambda k: k.name)
def test_every_format_can_be_measured(kernel):
    machine = Machine()
    machine.rotated_bytes = 1
    found = measured(replace(kernel, bench=kernel.check[:1]), machine=machine, yardsticks=())
    (timing,) = found.timings
    assert found.absences == () and timing.dtype and timing.copies == 1
    assert 0 < timing.bytes_written < timing.bytes_moved


class Broken(Machine):
    def capture(self, calls):
        raise RuntimeError("an illegal memory access was encountered")


def test_a_default_launch_that_fails_is_not_passed_over():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        tuning.tuned(integers().launches, Broken(), 0, until=1e9)


def peer(name, build, beside=("toy",), slow=False):
    return Rival(name=name, beside=beside, build=build, slow=slow)


def nothing(*_):
    raise Absent("not today")


def dense(size, *rest):
    return replace(yardsticks.dense(size, *rest), name="there")


def test_peers_are_timed_beside_their_kernels_and_absent_ones_named():
    others = (peer("gone", nothing), peer("there", dense), peer("elsewhere", dense, beside=("other",)))
    found = measured(toy(), peers=others)
    assert [t.name for t in found.timings] == [COPY, READ, DENSE, "toy", "there"]
    assert [(a.name, a.reason) for a in found.absences] == [("gone", "not today")]


def test_slow_peers_are_measured_at_shapes_of_targets_alone_and_with_time_to_spare():
    gemlite, shape = peer("gemlite", lambda *_: "made", slow=True), Shape(1, 28672, 8192)
    run = bench._Run(machine=Machine(), seed=0, end=100.0)
    assert bench._built(gemlite, run, shape, Size(*shape)) == "made"
    for other in (Shape(1, 4096, 4096), Shape(2, 28672, 8192)):
        with pytest.raises(Absent, match="only at shapes of targets"):
            bench._built(gemlite, run, other, Size(*other))
    run.machine.clock = 50.0
    with pytest.raises(Absent, match="less than 60 s"):
        bench._built(gemlite, run, shape, Size(*shape))


class Ending(Machine):
    """Its device is lost in the first replay of a graph that is measured, and stays lost."""

    def seconds(self, replays):
        raise RuntimeError("unspecified launch failure")

    def release(self):
        raise RuntimeError("unspecified launch failure")


def test_results_outlive_the_device():
    found = measured(toy(bench=(SIZE, Size(1, 16, 128, 32))), machine=Ending())
    assert found.timings == () and [a.name for a in found.absences] == ["replays", "memory"] * 2
    assert {a.reason for a in found.absences} == {"RuntimeError: unspecified launch failure"}


def failing(*_):
    raise RuntimeError("no such thing")


def test_checks_of_one_kernel_do_not_fall_with_another_and_end_in_time():
    right = replace(toy(), check=(SIZE, Size(2, 3, 64, 32)))
    broken, said = replace(toy("broken"), kernel=failing, check=(SIZE,)), []
    found = session.check_all([broken, right], 3, "cpu", progress=said.append)
    assert [c.kernel for c in found] == ["broken"] * 2 + ["toy"] * 9
    assert [c.seed for c in found[2:]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert said == [f"broken at {SIZE}: RuntimeError: no such thing"] * 2
    first, second, third = session.agreements(found)
    assert (first.kernel, first.excess, first.passed) == ("broken", None, False)
    assert (second.kernel, second.inputs, second.passed) == ("toy", 6, True) and third.inputs == 3
    assert 0 <= max(c.excess for c in found[2:] if c.size == str(SIZE)) == second.excess <= 1
    told = measured(toy(), agreements=(first, second))
    assert Results.from_json(told.to_json()) == told and told.agreements == (first, second)
    clock = iter(range(100))
    found = session.check_all(
        [right, toy("late")], 2, "cpu", seconds=4.5, now=lambda: next(clock), progress=said.append
    )
    assert [c.kernel for c in found] == ["toy", "toy", "toy", "late"]
    assert said[-1] == "no time was left for 4 checks, after 4"


def test_the_command_writes_results_and_tells_verdicts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(session, "Gpu", Machine)
    monkeypatch.setattr(session, "measure", partial(bench.measure, yardsticks=SMALL, peers=()))
    path = tmp_path / "deep" / "results.json"
    check = {"kernel": "toy", "size": "1", "dtype": "", "seed": 0, "device": "cuda", "excess": 0.5, "repeats": True,
             "passed": True}  # fmt: skip
    row = replace(kernel_named("w4a16-gemv"), bench=(SIZE,))
    rows = command._bench([row], [check], path, time.monotonic())
    found = Results.from_json(path.read_text())
    assert [t.name for t in found.timings] == [COPY, READ, DENSE, "w4a16-gemv"]
    assert found.agreements == (Agreement(kernel="toy", size="1", dtype="", inputs=1, excess=0.5, passed=True),)
    assert {row["verdict"] for row in rows} == {"not measured"} and len(rows) == 4
    assert "4 timings, 0 absences" in capsys.readouterr().err
    command._bench([row], [check], path, time.monotonic(), 1e-9)
    found = Results.from_json(path.read_text())
    assert found.timings == () and {a.reason for a in found.absences} == {"no time was left"}


def test_results_are_named_by_their_device(tmp_path):
    assert session.results_path(tmp_path, "NVIDIA H200 (SXM)").name == "kernels-nvidia-h200-sxm.json"


AHEAD = """
import os, sys
os.environ.pop("TRITON_INTERPRET", None)
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Driver:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)

driver.set_active(Driver())
from kernels.ahead import compile_ahead
from kernels.kernel import Size
from kernels.product.triton import candidates
from kernels.table import kernel_named
row = kernel_named("w4a16-gemv")
launches = candidates(row.plan(*row.inputs(Size(1, 256, 512, 64), 0, "cpu")))[:2]
compile_ahead(launches, threads=2)
function, again = launches[0].function, []
assert len(function.device_caches[0][0]) == 2
function.compile = lambda *_, **__: again.append(1)
for launch in launches:
    function.warmup(grid=launch.grid, **launch.arguments, **launch.constants, **launch.options)
assert not again
"""


def test_what_is_compiled_ahead_is_not_compiled_again(tmp_path):
    alone = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", AHEAD], capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr
