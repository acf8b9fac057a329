import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln

from theory.experiment import Setting
from theory.limits.guo_2026_membership import EXPERIMENT, Recall, bloom, least_bits, linear, memories, signatures

shares = st.floats(0.001, 0.999)


@given(shares, shares)
def test_the_bound_is_a_divergence(missed, false):
    assert least_bits(missed, false) >= 0
    assert least_bits(1 - false, false) == pytest.approx(0, abs=1e-9)  # says yes to anything alike
    assert least_bits(0, false) == pytest.approx(-np.log2(false))


@given(shares, shares, shares, shares, st.floats(0, 1))
def test_it_is_convex_so_that_means_over_sets_of_facts_obey_it(a, b, c, d, t):
    mixed = least_bits(t * a + (1 - t) * c, t * b + (1 - t) * d)
    assert mixed <= t * least_bits(a, b) + (1 - t) * least_bits(c, d) + 1e-9


@settings(max_examples=15, deadline=None)
@given(st.floats(1, 10), st.integers(0, 100))
def test_a_bloom_filter_never_misses_and_is_its_closed_form(bits, seed):
    facts = 1000
    found = bloom(bits, seed, facts)
    size = round(bits * facts)
    k = max(1, round(size / facts * np.log(2)))
    p = (1 - (1 - 1 / size) ** (k * facts)) ** k
    assert found.missed == 0
    # the share of bits set scatters by less than 1 / sqrt(size), which a power of k makes k p / share times larger
    scatter = 4 * (np.sqrt(p / 200_000) + k * p / (1 - np.exp(-k / bits)) / np.sqrt(size))
    assert found.false == pytest.approx(p, abs=scatter)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 12), st.integers(0, 100))
def test_signatures_cost_more_than_their_entropy_and_less_than_a_bit_over(low, seed):
    facts = 2000
    found = signatures(low, seed, facts)
    assert found.missed == 0
    space = facts << low
    held = len(np.unique(np.random.default_rng(seed).integers(space, size=facts)))
    entropy = (gammaln(space + 1) - gammaln(held + 1) - gammaln(space - held + 1)) / np.log(2) / facts
    assert entropy - 0.01 < found.bits < entropy + 1


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(list(memories())), st.integers(0, 100))
def test_no_memory_is_below_its_bound(name, seed):
    for memory in memories()[name]:
        found = memory(seed)
        # a share of n statements is off by 4 sqrt(p / n) at most, hardly ever more: 3% of bits where p > 1 / 4,096
        assert found.bits > found.least_bits * 0.97


def test_scales_and_the_threshold_are_paid_for():
    found = linear(1.0, 4, 0)
    assert found.bits > 4 + 16 / 64
    assert found.missed < 0.5 and found.false < 0.5


def test_a_memory_that_knows_nothing_is_infinitely_loose():
    assert Recall(1.0, 0.5, 0.5).looseness == np.inf
    with pytest.raises(ValueError, match=r"missed 2, false 0\.5"):
        least_bits(2, 0.5)


def test_the_sentence_follows_the_points():
    points = EXPERIMENT.measure(Setting(effort=0.1))
    assert "Bloom filter" in EXPERIMENT.sentence(points)
