"""What released implementations gave on seeded matrices, within 1%. The numbers lie beside the repository."""

from collections import defaultdict

import golden
import pytest
import torch

from suite.grids import DoubleQuantized, Gguf, Integer, PowerOfTwo, RealScale, Scaled, ShrinkSearch, TwoLevel
from suite.methods import method_named
from suite.quantize import quantize_layer, relative_errors
from suite.recipe import Target
from suite.rounding import Feedback, HalfQuadratic, Qronos

if not golden.FOLDER.is_dir():
    pytest.skip("no golden numbers beside this checkout (shared/golden)", allow_module_level=True)


def of_gptq_release(c, convention):
    clip = ShrinkSearch() if c["mse_clip"] else None
    grid = Integer(bits=c["bits"], group=group(c), convention=convention, clip=clip, scale_bits=32)
    if "act_order" not in c:
        return Target(grid)
    order = "decreasing" if c["act_order"] else "given"
    groups = "static" if c["static_groups"] else "stale"
    return Target(grid, Feedback(order=order, groups=groups, damping=c["percdamp"], block=c["blocksize"]))


def of_ist(c):
    return of_gptq_release(c, "span" if c["sym"] else "asymmetric")


def of_quarot(c):
    return of_gptq_release(c, "full-range" if c["sym"] else "asymmetric")


def of_hqq(c):
    grid = Integer(bits=c["bits"], group=group(c), convention="real-zero", axis=c["axis"], scale_bits=32)
    if not c["optimize"]:
        return Target(grid, HalfQuadratic(iterations=0, round_zero=c["round_zero"]))
    return Target(grid, HalfQuadratic(keep="last", growth=1.0, round_zero=c["round_zero"]))


def of_brevitas(c):
    convention = {"sym_fixed": "narrow", "asym_fixed": "asymmetric"}[c["quantizer"]]
    grid = Integer(bits=c["bits"], group=group(c), convention=convention, scale_bits=32)
    if c["act_order"] is None:
        return Target(grid)
    order = "decreasing" if c["act_order"] else "given"
    return Target(grid, Feedback(order=order, groups="static", damping=c["percdamp"]))


def of_qronos(c):
    convention = {"sym_fixed": "narrow", "asym_fixed": "asymmetric"}[c["quantizer"]]
    grid = Integer(bits=c["bits"], group=group(c), convention=convention, scale_bits=32)
    return Target(grid, Qronos(order="decreasing" if c["act_order"] else "given", damping=c["alpha"]))


def of_llama_cpp(c):
    return Target(Integer(bits=4, group=c["block"], convention="signed-max"))


def of_mx(element):
    """Of torchao, and of microxcaling, which takes halves away from zero: single values in 10^5 differ."""

    def target(c):
        rule = {"FLOOR": "floor", "RCEIL": "up", "CEIL": "ceil", "EVEN": "even"}[c["scaling_mode"]]
        return Target(Scaled(element=element, group=c["block"], scale=PowerOfTwo(rule), pad=True))

    return target


def of_bitsandbytes(element):
    def target(c):
        scale = DoubleQuantized() if c["double_quant"] else RealScale(bits=32)
        return Target(Scaled(element=element, group=c["block"], scale=scale, axis="flat"))

    return target


def of_nvfp4(c):
    return Target(Scaled(element="e2m1", group=c["block"], scale=TwoLevel(matrix=c["per_tensor_scale"]), pad=True))


def group(c):
    return "row" if c["group"] == -1 else c["group"]


OURS = {
    "rtn_gptqrepo": of_ist,
    "gptq": of_ist,
    "rtn_quarot": of_quarot,
    "gptq_quarot": of_quarot,
    "hqq": of_hqq,
    "brevitas_rtn": of_brevitas,
    "brevitas_gptq": of_brevitas,
    "brevitas_qronos": of_qronos,
    "gguf_q4_0": of_llama_cpp,
    "gguf_q8_0": lambda c: Target(Gguf(type="q8_0")),
    "nvfp4": of_nvfp4,
    "bnb_nf4": of_bitsandbytes("nf4"),
    "bnb_fp4": of_bitsandbytes("fp4-bitsandbytes"),
    "mxint8_microxcaling": of_mx("int8"),
    **{f"mxfp{bits}_{element}{of}": of_mx(element) for of in ("", "_microxcaling")
       for bits, element in ((4, "e2m1"), (6, "e2m3"), (6, "e3m2"), (8, "e4m3"), (8, "e5m2"))},
}  # fmt: skip


def in_the_main_run(row):
    """One seed: all rows of Gaussian weights but for middle-sized groups, and the 3-bit ones of Student weights."""
    c = row["config"]
    middle = c.get("group") == (128 if row["method"] == "hqq" else 64)
    return row["seed"] == 11 and not middle and (row["weights"] == "gaussian" or c.get("bits", 4) in (3, 4))


def rows():
    for row in golden.rows():
        if row["method"] in OURS:
            yield row


def named(row):
    config = "-".join(f"{name}={value}" for name, value in row["config"].items())
    return f"{row['method']}-{row['weights']}-{row['seed']}-{config}"


PARAMETERS = [
    pytest.param(row, id=named(row), marks=() if in_the_main_run(row) else pytest.mark.slow) for row in rows()
]


def found(row, target):
    """What comes back of the weights, calibrated as the row was: on X, on noisy inputs X~, or (Qronos) on both."""
    W, H = golden.matrices(row["seed"], row["weights"])
    cross = None
    if row["config"].get("calib", "X").startswith("Xtilde"):
        X, noisy = golden.inputs(row["seed"], row["weights"])
        H, cross = noisy.T @ noisy / len(X), X.T @ noisy / len(X)
    return quantize_layer(W.float(), target, H, torch.Generator(), cross=cross).dequantize().double()


def found_errors(row, target):
    W, H = golden.matrices(row["seed"], row["weights"])
    return relative_errors(W, found(row, target), H)


@pytest.mark.parametrize("row", PARAMETERS)
def test_the_releases_way_gives_the_releases_numbers(row):
    W, H = golden.matrices(row["seed"], row["weights"])
    Q = found(row, OURS[row["method"]](row["config"]))
    nmse, hnmse = relative_errors(W, Q, H)
    assert nmse == pytest.approx(row["nmse"], rel=0.01)
    assert hnmse == pytest.approx(row["hnmse"], rel=0.01)
    if "xnmse" in row:
        X, noisy = golden.inputs(row["seed"], row["weights"])
        xnmse = float((X @ W.T - noisy @ Q.T).square().sum() / (X @ W.T).square().sum())
        assert xnmse == pytest.approx(row["xnmse"], rel=0.01)


def released(method, config):
    """By width, the release's rows with this configuration, over all matrices."""
    found = defaultdict(list)
    for row in rows():
        if row["method"] == method and config.items() <= row["config"].items():
            found[row["config"]["bits"]].append(row)
    assert found and all(len(same) == 4 for same in found.values())
    return found


PLAIN = dict(sym=False, mse_clip=False)
AS_GIVEN = PLAIN | dict(act_order=False, static_groups=False)
OPTIMIZED = dict(axis=1, optimize=True, round_zero=False)
DEFAULTS = [
    ("rtn", 128, "rtn_gptqrepo", PLAIN),
    ("gptq", 128, "gptq", AS_GIVEN),
    ("gptq", "row", "gptq", AS_GIVEN),
    ("hqq", 64, "hqq", OPTIMIZED),
    ("hqq", 128, "hqq", OPTIMIZED),
]


def ours_to_released(method, same, bits, size):
    """Mean `hnmse` of our defaults over the release's, both with parameters in float32."""
    target = method_named(method).recipe(bits=bits, group=size, scale_bits=32).weights
    return sum(found_errors(row, target)[1] for row in same) / sum(row["hnmse"] for row in same)


@pytest.mark.parametrize(
    "method, size, release, config", DEFAULTS, ids=lambda x: None if isinstance(x, dict) else str(x)
)
def test_our_defaults_are_no_worse_than_the_release(method, size, release, config):
    for bits, same in released(release, config | dict(group=-1 if size == "row" else size)).items():
        assert ours_to_released(method, same, bits, size) <= 1.01


def test_groups_fitted_when_their_turn_comes_cost_something_at_two_bits_only():
    # the release fits groups below its block of 128 on stale weights, which the golden README puts up to 7% away
    for bits, same in released("gptq", AS_GIVEN | dict(group=64)).items():
        assert ours_to_released("gptq", same, bits, 64) <= (1.07 if bits == 2 else 1.01)
