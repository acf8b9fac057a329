import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from kernels.gpu import Gpu, sanitizer_summary, smi_facts
from kernels.results import CLONE, COPY, DENSE, Absence, Agreement, Results, Shape, Task, Timing
from kernels.targets import TARGETS, Target, large, targeted, verdict


def results(**changes):
    timing = Timing(name="w4a16-gemv", kind="kernel", shape=Shape(1, 28672, 8192), dtype="float16", median_seconds=3e-5,
                    lower_seconds=2.9e-5, upper_seconds=3.2e-5, replays=100, copies=4, bytes_moved=120_000_000,
                    error=0.3, launch="BLOCK_N 128")  # fmt: skip
    made = Results(
        device="GPU", facts={"driver": "1"}, versions={"torch": "2"}, command="bitfrontier kernels --bench", when="now",
        seed=3, seconds=2.5, timings=(timing,),
        absences=(Absence(name="gemlite", reason="cannot import gemlite", shape=Shape(1, 1, 1)),
                  Absence(name="all", reason="x")),
        agreements=(Agreement(kernel="k", size="1", dtype="", inputs=10, excess=0.2, passed=True),),
        sanitizer="clean",
    )  # fmt: skip
    return replace(made, **changes)


def test_results_come_back_from_their_file():
    task = Task("hadamard", "4 x 64")
    other = results(timings=(at("hadamard", 3, task),), absences=(Absence(name="x", reason="y", shape=task),))
    for made in (results(), other, results(timings=(), absences=(), agreements=())):
        assert Results.from_json(made.to_json()) == made


def test_results_from_before_tasks_are_read():
    found = json.loads(results().to_json())
    del found["timings"][0]["bytes_written"]
    assert Results.from_json(json.dumps(found)) == results()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"timings": 3}', results().to_json().replace("seed", "seeds")])
def test_other_files_are_refused(text):
    with pytest.raises(ValueError, match="not the results of a bench"):
        Results.from_json(text)


BIG = Shape(1, 28672, 8192)


def at(name, microseconds, shape=BIG, dtype="float16", nbytes=120_000_000):
    return replace(results().timings[0], name=name, median_seconds=microseconds / 1e6, shape=shape, dtype=dtype,
                   bytes_moved=nbytes)  # fmt: skip


def test_verdicts_are_of_the_worst_large_shape_in_one_run():
    target = Target(kernel="w4a16-gemv", against=DENSE, ratio=2.8, basis="speed", source="")
    other, small = Shape(1, 8192, 28672), Shape(1, 4096, 4096)
    fast = (at("w4a16-gemv", 30), at(DENSE, 90, dtype="bfloat16"))
    slow = (at("w4a16-gemv", 40, other), at(DENSE, 100, other))
    tiny = (at("w4a16-gemv", 4, small), at(DENSE, 4, small))
    met = verdict(target, results(timings=fast + tiny))
    assert (str(met), met.shape, met.reason) == ("met 3.00", Shape(1, 28672, 8192), "")
    missed = verdict(target, results(timings=fast + slow + tiny))
    assert (str(missed), missed.shape) == ("missed 2.50", other)


def test_verdicts_by_bandwidth_and_by_type_of_activations():
    copy = at(COPY, 500, nbytes=2 << 30)
    share = Target(kernel="w4a16-gemv", against=COPY, ratio=0.75, basis="bandwidth", source="")
    assert str(verdict(share, results(timings=(at("w4a16-gemv", 30), copy)))) == f"met {120 / 30 / (2**31 / 5e8):.2f}"
    exact = Target(kernel="w4a16-gemv", against="aten int4", ratio=1.2, basis="speed", dtype="bfloat16", source="")
    both = (at("w4a16-gemv", 30), at("w4a16-gemv", 40, dtype="bfloat16"), at("aten int4", 44, dtype="bfloat16"))
    assert str(verdict(exact, results(timings=both))) == "missed 1.10"


def test_without_a_run_or_a_peer_targets_are_not_measured_and_the_reason_is_said():
    target = Target(kernel="w4a16-gemv", against="gemlite", ratio=1.0, basis="speed", source="")
    assert str(verdict(target, None)) == "not measured" and "GPU" in verdict(target, None).reason
    found = verdict(target, results())
    assert str(found) == "not measured" and found.reason == "gemlite: cannot import gemlite"
    assert verdict(target, results(absences=())).reason == "gemlite: not asked for"


WIDE, LONG = Task("norm", "4096 x 8192"), Task("norm", "4096 x 16384")
LIMIT = Target(
    kernel="norm-int8", against=CLONE, ratio=1.2, basis="time", shapes=tuple(map(str, (WIDE, LONG))), source=""
)


def test_a_limit_of_time_is_kept_at_every_shape_that_is_named():
    kept = (at("norm-int8", 33, WIDE), at(CLONE, 30, WIDE))
    found = verdict(LIMIT, results(timings=kept))
    assert (str(found), found.shape, found.reason) == ("met 1.10", WIDE, "1 of 2 shapes were not timed")
    broken = (at("norm-int8", 78, LONG), at(CLONE, 60, LONG))
    found = verdict(LIMIT, results(timings=kept + broken))
    assert (str(found), found.shape, found.reason) == ("missed 1.30", LONG, "")
    elsewhere = (at("norm-int8", 99, Task("norm", "1 x 4096")), at(CLONE, 1, Task("norm", "1 x 4096")))
    assert str(verdict(LIMIT, results(timings=kept + elsewhere))) == "met 1.10"


def test_a_target_of_named_shapes_says_what_was_lacking_there():
    absent = (Absence(name=CLONE, reason="out of memory", shape=WIDE), Absence(name=CLONE, reason="x", shape=BIG))
    found = verdict(LIMIT, results(timings=(at("norm-int8", 33, WIDE),), absences=absent))
    assert (str(found), found.reason) == ("not measured", "clone: out of memory")


def test_bytes_written_are_counted_against_all_of_a_copy():
    target = Target(kernel="bf16-decode", against=COPY, ratio=0.3, basis="written", shapes=("decode 8 x 8",), source="")
    shape = Task("decode", "8 x 8")
    own = replace(at("bf16-decode", 100, shape, nbytes=80_000_000), bytes_written=47_000_000)
    found = verdict(target, results(timings=(own, at(COPY, 100, shape))))
    assert found.value == pytest.approx(47 / 120) and found.state == "met"


def test_targets_say_what_is_meant_and_where():
    assert LIMIT.where == "norm 4096 x 8192 and 1 more" and replace(LIMIT, shapes=("a",)).where == "a"
    assert replace(LIMIT, shapes=(), rows=16).where == "16 rows" and replace(LIMIT, shapes=()).where == "1 row"
    assert str(LIMIT) == "at most 1.2 times the time of a clone of its inputs"
    written = replace(LIMIT, against=COPY, basis="written", ratio=0.3)
    assert str(written) == "at least 0.3 times the bandwidth of a copy, in bytes written"


def test_large_are_products_with_many_weights_and_whatever_a_target_is_about():
    assert large(BIG) and large(Shape(2, 28672, 8192)) and not targeted(Shape(2, 28672, 8192))
    assert not large(Shape(1, 4096, 4096)) and large(WIDE) and not large(Task("norm", "1 x 4096"))
    assert {target.kernel for target in TARGETS if target.means(WIDE)} == {
        "norm-int8", "norm-int4", "norm-e4m3", "token-int8", "token-int4", "token-e4m3"}  # fmt: skip


SMI = "GPU-11-aa, 580.1, 1755 MHz, 3201 MHz, 1980 MHz, 3201 MHz, 41, 120.5 W, 700.00 W\n"


def test_facts_are_of_the_device_that_was_used():
    other = SMI.replace("11-aa", "22-bb").replace("41", "80")
    for said, uuid in ((SMI + other, "11-aa"), (other + SMI, "11-aa"), (SMI, "unknown")):
        facts = smi_facts(said, uuid)
        assert (facts["driver_version"], facts["clocks.sm"], facts["temperature.gpu"]) == ("580.1", "1755 MHz", "41")
    for said in (SMI + other, "", "Failed to initialize NVML"):
        assert list(smi_facts(said, "unknown")) == ["nvidia-smi"]


def test_what_the_sanitizer_found_is_counted_even_if_it_was_stopped():
    said = "========= COMPUTE-SANITIZER\ndone a\n========= Invalid __global__ read of size 2 bytes\ndone b\n"
    assert sanitizer_summary(said, 3) == "compute-sanitizer found 1 in 2 of 3 kernels"


def test_no_gpu_no_bench(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device"):
        Gpu()


def test_reports_read_results_and_targets_without_torch():
    code = "import kernels.results, kernels.targets, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
