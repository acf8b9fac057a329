"""What the releases of DuQuant and QuaRot gave on seeded matrices; the numbers lie beside the repository.

Hsu1023/DuQuant@62c5844 (quantize/quantizer.py) and spcl/QuaRot@5008669 (fake_quant), W 4 bits per output channel and A
4 bits per token, |X W^T - Xq Wq^T| / |X W^T| over 2048 tokens. What draws nothing agrees to float32's rounding and to
single codes at ties; DuQuant's random rotations are compared as distributions, over three draws of each.
"""

import math
from dataclasses import replace
from functools import cache
from statistics import mean, variance

import golden
import pytest
import torch

from suite.grids import ClipRatio, Integer
from suite.quantize import quantize_activations
from suite.statistics import LayerStatistics, statistics_of
from suite.transforms import DualRotation, smooth_scale
from suite.transforms.maps import Hadamard

ROWS = [row for row in golden.rows("vector-rotation-adapters") if row["method"] == "DuQuant"]
if not ROWS:
    pytest.skip("no golden numbers beside this checkout (shared/golden)", allow_module_level=True)

ALIKE = 1e-3  # 2048 * 256 outputs, of which a tie decided the other way moves one row or column: measured 4e-4 at most
SEEDS = (0, 1, 2)

of_each_matrix = pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['seed']}-{row['weights']}")


@cache
def matrices(seed: int, weights: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`W` (256, 512) and `X` (2048, 512), float32."""
    return golden.matrices(seed, weights)[0].float(), golden.inputs(seed, weights)[0].float()


def output_error(X: torch.Tensor, W: torch.Tensor, *, clips=(None, None), convention="asymmetric", which="both"):
    """The relative output error with inputs and weights of 4 bits, or one of them alone."""
    of_inputs, of_weights = (None if clip is None else ClipRatio(clip) for clip in clips)
    Xq, Q = X, W
    if which != "weights":
        Xq = quantize_activations(X, Integer(bits=4, group="row", clip=of_inputs, scale_bits=32), 0.0)
    if which != "inputs":
        grid = Integer(bits=4, group="row", convention=convention, clip=of_weights, scale_bits=32).fit(W)
        Q = grid.decode(grid.nearest(W))
    return float((X @ W.T - Xq @ Q.T).norm() / (X @ W.T).norm())


RELEASE_CLIPS = (0.9, 0.8)  # lac, swc of DuQuant's run.sh


@of_each_matrix
def test_plain_rounding(row):
    W, X = matrices(row["seed"], row["weights"])
    found = {
        "plain": output_error(X, W),
        "plain_clip_lac.9_swc.8": output_error(X, W, clips=RELEASE_CLIPS),
        "plain_w4a16": output_error(X, W, which="weights"),
        "plain_w16a4": output_error(X, W, which="inputs"),
        "quarot_quantisers_plain_wasym": output_error(X, W),
        "quarot_quantisers_plain_wsym": output_error(X, W, convention="full-range"),
    }
    assert found == {name: pytest.approx(row["values"][name], rel=ALIKE) for name in found}


@of_each_matrix
def test_a_hadamard_matrix_with_and_without_smoothing(row):
    W, X = matrices(row["seed"], row["weights"])
    m = Hadamard(n_in=512, n_out=512)
    turned = m.forward(X), m.to_weights(W)
    found = {
        "hadamard512": output_error(*turned),
        "hadamard512_clip_lac.9_swc.8": output_error(*turned, clips=RELEASE_CLIPS),
        "quarot_quantisers_hadamard512_wasym": output_error(*turned),
        "quarot_quantisers_hadamard512_wsym": output_error(*turned, convention="full-range"),
    }
    for alpha in (0.5, 0.6):
        s = smooth_scale([W], X.abs().amax(0), alpha)
        turned = m.forward(X / s), m.to_weights(W * s)
        found[f"smoothquant_a{alpha}"] = output_error(X / s, W * s)
        found[f"smooth{alpha}_then_hadamard512"] = output_error(*turned)
        found[f"smooth{alpha}_then_hadamard512_clip_lac.9_swc.8"] = output_error(*turned, clips=RELEASE_CLIPS)
    assert found == {name: pytest.approx(row["values"][name], rel=ALIKE) for name in found}
    peak = float((m.forward(X)).abs().max())
    assert peak == pytest.approx(row["values"]["absmax_hadamard512"], rel=1e-5)


def of_all_rows(X: torch.Tensor) -> LayerStatistics:
    """Statistics with every row sampled, as the release calibrates."""
    return replace(statistics_of(X), sample=X)


def rotated(statistics: LayerStatistics, X, W, seed: int, **options):
    """X and W after DuQuant, and the range of X after each of its three maps."""
    ranges = []
    for m in DualRotation(**options).fit([W], statistics, torch.Generator().manual_seed(seed)):
        X, W = m.forward(X), m.to_weights(W)
        ranges.append(float(X.max() - X.min()))
    return X, W, ranges


def released(row, name):
    """What the release gave for its draws: errors, and ranges after each rotation."""
    values = row["values"]
    peaks = [values[f"duquant_rng{i}_peaks"] for i in SEEDS]
    return {"error": [values[f"duquant_rng{i}"] for i in SEEDS],
            "first": [p["range_rot1"] for p in peaks], "second": [p["range_rot2"] for p in peaks]}[name]  # fmt: skip


def spread(name):
    """The relative standard deviation of one draw of the release, pooled over the matrices."""
    return mean(variance([math.log(value) for value in released(row, name)]) for row in ROWS) ** 0.5


def slack(name, ours, theirs):
    """One percent, and three standard errors of the difference between means of so many draws."""
    return 1.01 * math.exp(3 * spread(name) * (1 / ours + 1 / theirs) ** 0.5)


@pytest.mark.slow  # a minute on one core
@pytest.mark.parametrize("exchange", ["column", "release"])
@of_each_matrix
def test_duquant_spreads_outliers_as_well_as_the_release(row, exchange):
    W, X = matrices(row["seed"], row["weights"])
    statistics = of_all_rows(X)
    found = [rotated(statistics, X, W, seed, exchange=exchange) for seed in SEEDS]
    errors = mean(output_error(x, w) for x, w, _ in found)
    assert errors <= mean(released(row, "error")) * slack("error", 3, 3)
    for place, name in ((0, "first"), (2, "second")):
        assert mean(ranges[place] for _, _, ranges in found) <= mean(released(row, name)) * slack(name, 3, 3)


@of_each_matrix
def test_duquant_on_a_sample_is_as_good(row):
    """As the suite runs it: fitted on 512 of the 2048 rows, and with the release's smoothing and clipping too."""
    W, X = matrices(row["seed"], row["weights"])
    x, w, _ = rotated(statistics_of(X), X, W, 0)
    assert output_error(x, w) <= mean(released(row, "error")) * slack("error", 1, 3)
    s = smooth_scale([W], X.abs().amax(0), 0.6)
    x, w, _ = rotated(statistics_of(X / s), X / s, W * s, 0)
    for clips, name in (((None, None), "smooth.6_rng0"), (RELEASE_CLIPS, "smooth.6_clip_lac.9_swc.8_rng0")):
        assert output_error(x, w, clips=clips) <= row["values"][f"duquant_{name}"] * slack("error", 1, 1)
