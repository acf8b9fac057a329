"""QTIP against its release, on the matrices that golden numbers are for and on smaller ones."""

import math
import statistics
from functools import cache

import golden
import numpy as np
import pytest
import torch

from suite.grids import Trellis
from suite.grids.viterbi import tail_biting
from suite.methods import method_named
from suite.quantize import quantize_matrix, relative_errors
from suite.quantized import Quantized

CODES = {"1mad": "1mad", "3inst": "3inst", "quantlut_sym": "hyb", "lut": "gaussian"}  # the release's names

# `hnmse` of Cornell-RelaxML/qtip@e90c6688, lib/codebook/bitshift.py and lib/algo/ldlq.py as they are but for
# `torch.compile`, for golden.matrices(seed, weights, n_out, n_in): `quantize_finetune_decoder_layer` up to its
# fine-tuning (sigma_reg 0.01, scale_override 0.9, td_x = td_y = 16, no kernel), float32, HYB with
# shared/golden/qtip-hyb-table.json and the kernel's permutation; torch.manual_seed(0), (1), .. before SU, SV are drawn.
RELEASE = [
    ((13, "gaussian", 128, 256), "1mad", 12, 2, (0.0277221, 0.0271572, 0.0276074, 0.0277994)),
    ((13, "gaussian", 128, 256), "3inst", 12, 2, (0.0264692, 0.027122, 0.0268797)),
    ((13, "gaussian", 128, 256), "1mad", 12, 3, (0.0065492, 0.0066688, 0.0067131)),
    ((13, "gaussian", 128, 256), "1mad", 12, 4,
     (0.001674, 0.0017058, 0.0017303, 0.0017518, 0.0016809, 0.001668, 0.0017044, 0.0017167, 0.0017243, 0.0017322,
      0.0016971, 0.0018485)),
    ((13, "gaussian", 128, 256), "quantlut_sym", 16, 2, (0.0258363, 0.0260849)),
    ((13, "gaussian", 128, 256), "1mad", 16, 2, (0.0250753, 0.0253903)),
    ((14, "student", 64, 512), "1mad", 12, 2, (0.0246423, 0.0247861, 0.0247972, 0.0250658)),
    ((14, "student", 64, 512), "3inst", 12, 2, (0.0245043, 0.0242796, 0.0242025)),
    ((14, "student", 64, 512), "1mad", 12, 3, (0.0059853, 0.00601, 0.0059508)),
    ((14, "student", 64, 512), "1mad", 12, 4, (0.0015586, 0.0016189, 0.0015265)),
]  # fmt: skip


@cache
def hnmse(matrix, code, L, bits, rotation):
    W, H = golden.matrices(*matrix)
    q = quantize_matrix(W.float(), method="qtip", bits=bits, H=H, seed=rotation, code=CODES[code], L=L,
                        **({"V": 2} if code == "lut" else {}))  # fmt: skip
    return relative_errors(W, q.dequantize().double(), H)[1]


@golden.needed
@pytest.mark.parametrize(("matrix", "code", "L", "bits", "found"), RELEASE, ids=str)
def test_error_of_the_release_on_small_matrices(matrix, code, L, bits, found):
    """Within three standard errors of the mean over rotations, or better."""
    ours = [hnmse(matrix, code, L, bits, rotation) for rotation in range(8 if L == 12 else 4)]
    se = statistics.stdev([*ours, *found]) * math.sqrt(1 / len(ours) + 1 / len(found))
    assert statistics.fmean(ours) <= statistics.fmean(found) + 3 * se


def of_the_release(row):
    """How long a row takes is what decides where it runs: seconds at one value a step."""
    fast = row["seed"] == 11 and row["weights"] == "gaussian" and row["config"]["mode"] in ("1mad", "quantlut_sym")
    name = "-".join(str(row["config"][key]) for key in ("mode", "K")) + f"-{row['seed']}-{row['weights']}"
    return pytest.param(row, marks=() if fast else pytest.mark.slow, id=name)


ROWS = [row for row in golden.rows("lattice-trellis") if row["method"] == "qtip" and row["config"]["n_out"] == 256]


@pytest.mark.parametrize("row", list(map(of_the_release, ROWS)))
def test_golden_error_on_a_matrix(row):
    """One rotation each: three sigma of their difference, at the 1% that rotations of these matrices spread by."""
    c = row["config"]
    ours = hnmse((row["seed"], row["weights"]), c["mode"], c["L"], c["K"], 0)
    assert ours <= row["hnmse"] * (1 + 3 * 0.01 * math.sqrt(2))


SOURCES = [row for row in golden.rows("lattice-trellis") if row["method"] == "qtip_source"]


def of_a_source(row):
    c = row["config"]
    fast = c["gain"] == "1.0*lut_rms" and c["mode"] in ("1mad", "quantlut_sym")
    return pytest.param(row, marks=() if fast else pytest.mark.slow, id=f"{c['mode']}-{c['gain']}")


@pytest.mark.parametrize("row", list(map(of_a_source, SOURCES)))
def test_golden_error_on_a_gaussian_source(row):
    """The same sequences by the same steps, but for its rounding of them to float16; tables that are drawn differ."""
    c = row["config"]
    x = torch.from_numpy(np.random.default_rng(row["seed"]).standard_normal(2**17)).float()
    table = Trellis(code=CODES[c["mode"]], V=c["V"]).fit(torch.ones(1, 1)).values
    gain = 1.0 if "raw" in c["gain"] else float(c["gain"].split("*")[0]) * float(table.double().square().mean().sqrt())
    wanted = gain * x.reshape(-1, 256 // c["V"], c["V"])
    error = (table[tail_biting(wanted, table, c["K"] * c["V"])] - wanted).square().sum() / wanted.square().sum()
    drawn = c["mode"] in ("lut", "quantlut_sym")
    assert float(error) <= row["nmse"] * 1.01 if drawn else float(error) == pytest.approx(row["nmse"], rel=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_bits_are_codes_signs_and_a_scale(bits):
    W = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    q = quantize_matrix(W, method="qtip", bits=bits, H=torch.eye(128, dtype=torch.float64), L=10)
    assert q.n_bits == bits * 64 * 128 + (64 + 128) + 16
    assert torch.equal(Quantized.from_bytes(q.to_bytes(), q.header()).dequantize(), q.dequantize())


def test_recipe():
    qtip = method_named("qtip")
    assert str(qtip.recipe(bits=2)) == (
        "Recipe(transforms=(Incoherence(),), weights=Target(Trellis(), Feedback(order='reversed')), "
        "inputs='quantized', adaptation=BlockTuning())"
    )
    assert qtip.recipe(bits=4, code="hyb").weights.grid == Trellis(bits=4, code="hyb", V=2)


def test_defaults_beat_their_alternatives():
    """The default code against HYB, error feedback against none, on correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(64, 64, generator=generator)
    X = torch.randn(512, 64, generator=generator, dtype=torch.float64) / torch.arange(1, 65).sqrt()
    H = X.T @ X / 512
    options = ({}, {"code": "hyb"}, {"H": torch.eye(64, dtype=torch.float64)})
    errors = []
    for o in options:
        found = [quantize_matrix(W, method="qtip", bits=2, seed=s, **({"H": H} | o)).dequantize() for s in range(4)]
        errors.append(statistics.fmean(relative_errors(W, Q, H)[1] for Q in found))
    assert errors[0] < errors[1] < errors[2]
