import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import model_of, save

from suite.models.checkpoint import REFERENCE
from theory.entropy import codes, exponents, puzzle, weights
from theory.experiment import Setting
from theory.rate_distortion import ecsq_point


def test_seed_zero_is_what_the_shipped_model_began_with():
    said = json.loads((REFERENCE / "weights.json").read_text())["initial"]
    for name, W in weights.initial("reference", 0).items():
        known = said[f"{name}.weight"]
        assert float(f"{np.abs(W).max():.6g}") == known["absmax"]
        assert float(f"{W.astype(float).mean():.6g}") == pytest.approx(known["mean"], abs=1e-9)
    assert not np.array_equal(*(next(iter(weights.initial("reference", seed).values())) for seed in (0, 1)))


def test_materials_have_one_shape_and_noise_has_the_trained_spread():
    kept, drawn = weights.trained("reference"), weights.material("noise", "reference", 0)
    assert {name: W.shape for name, W in kept.items()} == {name: W.shape for name, W in drawn.items()}
    name = next(iter(kept))
    assert weights.spread(drawn[name]) == pytest.approx(weights.spread(kept[name]), rel=0.02)
    with pytest.raises(ValueError, match="expected one of noise, initial, trained"):
        weights.material("random", "reference", 0)


@given(st.integers(2, 40), st.floats(0.01, 1.0), st.integers(0, 5))
def test_drawn_rows_are_rows_in_their_order(rows, share, seed):
    W = np.arange(3 * rows, dtype=np.float32).reshape(rows, 3)
    found = weights.some_rows({"a": W}, seed, share)["a"]
    assert len(found) == min(rows, max(2, round(share * rows)))
    assert (np.diff(found[:, 0]) > 0).all() and set(found[:, 0]) <= set(W[:, 0])


def test_entropy_of_a_known_source_is_met_within_the_bias_of_counts():
    x, step = np.random.default_rng(0).standard_normal(200_000), 0.5
    bias = (20 - 1) / (2 * len(x) * np.log(2))  # Miller 1955, of about 20 values; it is 7e-5
    spread = 3 / np.sqrt(len(x))  # standard deviation of log2 p is about 1
    assert puzzle.entropy_at(x, step) == pytest.approx(ecsq_point(step)[0] - bias, abs=spread)
    assert puzzle.entropy_at(np.zeros(5), 1.0) == 0.0


@given(st.floats(0.5, 8.0))
def test_growing_a_gaussian_adds_its_logarithm_at_a_fixed_step_and_nothing_at_a_share(factor):
    W = np.random.default_rng(0).standard_normal((100, 100))
    found = puzzle.gained({"a": W}, {"a": factor * W}, 1 / 8)
    assert found["share of the spread"] == pytest.approx(0, abs=1e-3)
    assert found["growth of the spread"] == pytest.approx(np.log2(factor))
    # counts of 10,000 values have a bias of (cells - 1) / (2 n ln 2), up to 500 cells
    assert found["fixed step"] == pytest.approx(np.log2(factor), abs=0.05)


def test_general_coders_take_zeros_and_leave_noise():
    rng = np.random.default_rng(0)
    random = rng.integers(-(1 << 31), 1 << 31, 20_000).astype(np.int32)
    for coder in ("gzip", "zstd", "lzma"):
        assert puzzle.share_left(np.zeros(20_000, np.int32), coder) < 0.02
        assert 1 <= puzzle.share_left(random, coder) < 1.01
    with pytest.raises(ValueError, match="expected one of FP32, BF16"):
        puzzle.words({"a": np.zeros((2, 2), np.float32)}, "FP16")


def test_words_are_floats_and_pairs_of_codes():
    W = np.array([[1.0, -2.0, 0.5]], np.float32)
    assert puzzle.words({"a": W}, "FP32").tolist() == W.view(np.int32)[0].tolist()
    assert puzzle.words({"a": W}, "BF16").tolist() == (W.view(np.int32)[0] >> 16).tolist()
    assert puzzle.words({"a": W}, "4-bit codes, groups of 128").tolist() == [12 | 1 << 4, 10]  # 8 + 3.5 to even


@pytest.mark.parametrize("group", [16, 128])
def test_code_masses_are_those_of_samples(group):
    x = np.random.default_rng(0).standard_normal((400_000 // group, group))
    k = np.rint(x * 7 / np.abs(x).max(1, keepdims=True))
    counts = np.array([(k == code).mean() for code in range(-7, 8)])
    P = codes.code_masses(group)
    assert P == pytest.approx(counts, abs=4 * np.sqrt(0.2 / 400_000))
    assert P == pytest.approx(P[::-1]) and P.sum() == pytest.approx(1)


def test_code_entropies_are_those_known_of_gaussians():
    # sampled elsewhere, and a million values are off by .0006 bits; groups of 4,096 differ by .09 from each other
    known = {32: (3.624, 0.002), 128: (3.384, 0.002), 4096: (2.955, 0.01)}
    for group, (bits, spread) in known.items():
        assert codes.gaussian_entropy(group) == pytest.approx(bits, abs=spread)
    assert codes.gaussian_gain(128) < 4 / codes.gaussian_entropy(128)
    with pytest.raises(ValueError, match="groups of 1 at 4 bits"):
        codes.code_masses(1)


def test_measured_gains_of_noise_are_those_of_the_closed_form():
    W = np.random.default_rng(0).standard_normal((256, 512)).astype(np.float32)
    found = codes.gains({"a": W}, 128)
    assert found["entropy"] == pytest.approx(codes.gaussian_entropy(128), abs=0.01)
    assert found["gain"] == pytest.approx(codes.gaussian_gain(128), rel=0.01)  # a table and a checksum


def test_exponents_of_known_laws():
    rng = np.random.default_rng(0)
    assert exponents.exponent_entropy(rng.standard_normal(200_000)) == pytest.approx(2.544, abs=0.01)
    assert exponents.exponent_entropy(rng.laplace(size=200_000)) == pytest.approx(2.832, abs=0.01)
    assert exponents.exponent_entropy(rng.standard_cauchy(200_000)) == pytest.approx(3.195, abs=0.01)
    assert exponents.exponent_entropy(2.0 ** np.arange(8)) == 3.0
    assert exponents.exponent_entropy(np.array([0.0, 1.0])) == 0.0
    phases = [exponents.gaussian_exponents(phase) for phase in np.linspace(0, 1, 21)]
    assert 2.541 < min(phases) < max(phases) < 2.547


def test_quick_experiments_follow_their_seed_and_say_what_they_found():
    for experiment in puzzle.EXPERIMENTS[1:]:
        points = experiment.measure(Setting())
        assert points == experiment.measure(Setting())
        assert experiment.sentence(points).endswith(".")


def test_only_weights_kept_in_fp32_are_looked_at_as_such(tmp_path):
    place = save(model_of("llama").bfloat16(), tmp_path / "model")
    assert all(W.dtype == np.float32 for W in weights.trained(str(place)).values())
    with pytest.raises(ValueError, match=r"is kept as torch\.bfloat16, expected torch\.float32"):
        weights.check_kept_in_fp32(str(place))
