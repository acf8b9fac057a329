import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit

from theory.experiment import Setting
from theory.limits.crowding import EXPERIMENTS, distractors, heads, logits, lost_to_rounding, margin, needed


def test_the_closed_form_holds_within_one_percent_at_4096():
    found = np.mean([needed(0.5, 4096, 1.0, seed) for seed in range(3)])
    assert found == pytest.approx(margin(0.5, 4096, 1.0), rel=0.01)
    # what the logarithm's concavity takes, (e - 1) / (2 n), is 2e-4 here; 96 sums scatter by sqrt((e - 1) / n) each
    assert found == pytest.approx(margin(0.5, 4096, 1.0), abs=4 * np.sqrt((np.e - 1) / 4095 / 96) + 3e-4)


def test_published_values():
    # 8.818 and 10.897 at deviation 1; 4.626 at 64 keys, where the closed form says 4.643
    assert margin(0.5, 4096, 1.0) == pytest.approx(8.8175, abs=1e-3)
    assert margin(0.5, 32768, 1.0) == pytest.approx(10.897, abs=1e-3)
    assert margin(0.5, 64, 1.0) == pytest.approx(4.643, abs=1e-3)
    short = np.mean([needed(0.5, 64, 1.0, seed) for seed in range(10)])
    assert short == pytest.approx(4.626, abs=4 * np.sqrt((np.e - 1) / 63 / 320))


@given(st.floats(0.01, 0.99), st.integers(2, 10**6), st.floats(0, 1))
def test_the_margin_gives_its_probability_to_the_mean_of_the_sum(p, n, variance):
    s = margin(p, n, variance)
    if variance <= 2 * np.log(n):
        assert expit(s - np.log(n - 1) - variance / 2) == pytest.approx(p, rel=1e-9)
        assert margin(p, 2 * n - 1, variance) == pytest.approx(s + np.log(2), abs=1e-9)


def test_the_largest_logit_decides_where_the_sum_is_frozen():
    n, deviation = 4096, 8.0
    assert margin(0.5, n, deviation**2) == pytest.approx(deviation * np.sqrt(2 * np.log(n)))
    # the sum is at most n times its largest term, and its logarithm little above it here
    top = distractors(n, deviation, 0).max(1).mean()
    assert top <= needed(0.5, n, deviation, 0) < top + 1.5 < margin(0.5, n, 0.0) + deviation**2 / 2


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_logits_of_heads_are_unit_gaussians(seed):
    found = logits(*heads(2048, seed))
    assert found.std() == pytest.approx(1, rel=4.5 / np.sqrt(2 * found.size))  # of 8 x 2,047
    assert needed(0.9, 2048, 2.0, seed) - needed(0.5, 2048, 2.0, seed) == pytest.approx(logit(0.9))


def test_rounding_costs_half_the_noise():
    for bits in (3, 4):
        pairs = [lost_to_rounding(bits, 4096, seed) for seed in range(3)]
        lost, half = np.mean(pairs, axis=0)
        assert lost == pytest.approx(half, rel=0.3)
    assert lost_to_rounding(8, 1024, 0)[1] < lost_to_rounding(4, 1024, 0)[1] / 64


def test_sentences_follow_the_points():
    for experiment in EXPERIMENTS:
        points = experiment.measure(Setting(effort=0.1))
        assert points == experiment.measure(Setting(effort=0.1))
        assert "nats" in experiment.sentence(points)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"p 1\.0, n 4"):
        margin(1.0, 4, 1.0)
