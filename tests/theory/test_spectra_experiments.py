"""The figures of spectra, on a small model: their points are what they say, and their sentences follow from them."""

import subprocess
import sys

import numpy as np
import pytest
import tiny

from suite.models.architecture import linear
from suite.models.checkpoint import load_model
from suite.statistics import quadratic
from suite.tokens import Tokens
from theory.experiment import Point, Setting
from theory.spectra import experiments
from theory.spectra.experiments import EXPERIMENTS, alignment, changes, densities, rotation, rotation_gain, stiffness
from theory.spectra.model import fronts

SMALL = {"vocab_size": 23, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
         "num_key_value_heads": 1, "num_hidden_layers": 1}  # fmt: skip
SENTENCE = {experiment.measure: experiment.sentence for experiment in EXPERIMENTS}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    checkpoint = load_model(str(tiny.save(tiny.model_of("llama", **SMALL), tmp_path_factory.mktemp("small"))))
    return checkpoint, Tokens(np.random.default_rng(3).integers(0, 23, (6, 12)), np.arange(6))


@pytest.fixture(autouse=True)
def opened(small, monkeypatch):
    monkeypatch.setattr(experiments, "_open", lambda setting, tokens, seed=None: small)


def test_experiments_import_no_torch():
    code = "import theory.spectra.experiments, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_densities_are_shares_between_their_bounds():
    points = densities(Setting())
    assert {p.series for p in points} >= {f"{kind}, model.layers.0" for kind in ("inputs", "gauss-newton", "hessian")}
    assert all(0 <= p.low <= p.y + 1e-12 and p.y <= p.high + 1e-12 and p.high <= 1 + 1e-12 for p in points)
    for series in {p.series for p in points}:
        shares = [p.y for p in sorted((p for p in points if p.series == series), key=lambda p: -p.x)]
        assert np.all(np.diff(shares) >= -1e-12)
    assert "(gauss-newton, model.layers.0, within" in SENTENCE[densities](points)


def test_the_stiffness_of_errors_in_the_inputs_is_their_output_error(small):
    checkpoint, tokens = small
    ((_, _, grams),) = fronts(checkpoint, tokens)
    H, W = grams["mlp.down_proj"], linear(checkpoint.block(0), "mlp.down_proj").weight.detach()
    found = stiffness(Setting())
    for method in ("rtn", "gptq"):
        E = experiments._error(W, H, method, 3)
        expected = quadratic(E, H) / float(E.double().square().sum()) / (float(H.trace()) / len(H))
        assert found[f"inputs: {method.upper()}"] == pytest.approx(expected, rel=1e-6)
    most = int(H.diagonal().argmax())  # one channel of twelve, of random signs
    assert found["inputs: outlier channels"] == pytest.approx(float(H[most, most] / H.diagonal().mean()), rel=1e-6)


def test_alignment_has_all_matrices_and_vectors_and_ends_at_one():
    points = alignment(Setting())
    series = {p.series for p in points if not p.predicted}
    assert len(series) == 3 * 4 and "hessian: outlier weights" in series
    assert all(0 < p.x <= 1 + 1e-9 and 0 < p.y <= 1 + 1e-9 for p in points)
    assert all(
        max(p.y for p in points if p.series == f"inputs: {name}") == pytest.approx(1) for name in ("RTN", "GPTQ")
    )
    assert "gauss-newton: GPTQ" in SENTENCE[alignment](points)


def test_the_loss_changes_by_what_is_cumulated_over_all_ranks():
    found = list(changes(Setting()))
    assert [bits for _, bits, _ in found] == [4, 3, 2]
    for _, _, terms in found:
        rank, nats = terms["by rank"][-1]
        assert rank == pytest.approx(terms["n"])
        size = abs(terms["gradient"]) + abs(terms["curvature"])
        assert abs(nats - terms["gradient"] - terms["curvature"]) < 1e-4 * size  # float32
        assert terms["Gauss-Newton"] >= -1e-6
    left = {bits: abs(t["measured"] - t["gradient"] - t["curvature"]) for _, bits, t in found}
    assert left[4] < left[2]  # a third order, that grows with the cube of the step


def test_rotations_give_three_seeds_a_layer():
    points = rotation(Setting())
    assert {p.x for p in points} == set(range(7)) and all(p.low <= p.y <= p.high for p in points)
    by_step = [p.y for p in points if p.series == "nearest, planted stiff: step"]
    assert by_step == pytest.approx([2.0] * 7)
    assert rotation_gain(Setting())["feedback, planted soft: pivots"] == 0
    assert "nearest, rotated:" in SENTENCE[rotation](points)


def test_sentences_say_what_points_say():
    split = [Point(series=f"nearest, rotated: {what}", x=0, y=y) for what, y in
             (("step", -1.0), ("pivots", 0.0), ("measured", -1.25), ("measured at equal step", 0.5))]  # fmt: skip
    said = SENTENCE[rotation](split)
    assert all(number in said for number in ("-1.25 measured", "-1.00 by step", "+0.00 by pivots", "+0.50 measured at"))
