from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite.evaluation import Ended, Quality, clustered_se, compare, summarize
from suite.tokens import Tokens

VOCABULARY = 7
IDENTITY = SimpleNamespace(config=SimpleNamespace(vocab_size=VOCABULARY), logits=lambda hidden: hidden)


def logits(seed, rows=4, length=6, dtype=torch.float64):
    return 3 * torch.randn(rows, length, VOCABULARY, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tokens(seed, rows=4, length=6):
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def compared(base, quantized, ids):
    return compare(Ended(IDENTITY, quantized), Ended(IDENTITY, base), ids)


def directly(base, quantized, ids):
    """Every figure from the definition, one predicted token at a time."""
    nll, nll_base, kl, agree = [], [], [], []
    for row in range(ids.shape[0]):
        for t in range(ids.shape[1] - 1):
            p, q = (np.exp(x[row, t].numpy()) / np.exp(x[row, t].numpy()).sum() for x in (base, quantized))
            nll.append(-np.log(q[ids[row, t + 1]]))
            nll_base.append(-np.log(p[ids[row, t + 1]]))
            kl.append(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))
            agree.append(float(p.argmax() == q.argmax()))
    return tuple(np.array(values).reshape(ids.shape[0], -1) for values in (nll, nll_base, kl, agree))


@pytest.mark.parametrize("vocab_size", [VOCABULARY, 1 << 22], ids=["at once", "row by row"])
def test_every_figure_meets_its_definition(vocab_size):
    base, quantized, ids = logits(0), logits(1), tokens(2)
    checkpoint = SimpleNamespace(config=SimpleNamespace(vocab_size=vocab_size), logits=lambda hidden: hidden)
    found = compare(Ended(checkpoint, quantized), Ended(checkpoint, base), ids)
    nll, nll_base, kl, agree = directly(base, quantized, ids)
    paired = found.paired
    # logits of size at most 3 * 4, sums of 7 terms: a hundred roundings
    for mine, direct in ((found.nll, nll), (paired.nll, nll_base), (paired.kl, kl), (paired.agree, agree)):
        np.testing.assert_allclose(mine, direct, rtol=0, atol=12 * 100 * 2.0**-52)
    quality = summarize(found, Tokens(ids.numpy(), np.arange(len(ids))))
    assert quality.ppl == pytest.approx(np.exp(nll.mean()), rel=1e-12)
    assert quality.ppl_base == pytest.approx(np.exp(nll_base.mean()), rel=1e-12)
    assert quality.kl == pytest.approx(kl.mean(), rel=1e-12)
    assert quality.top1 == agree.mean()
    assert quality.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-12)
    assert quality.kl_se == pytest.approx(slowly(kl, np.arange(4)), rel=1e-9)
    assert quality.ppl_se == pytest.approx(np.exp(nll.mean()) * slowly(nll - nll_base, np.arange(4)), rel=1e-9)
    assert quality.top1_se == pytest.approx(slowly(agree, np.arange(4)), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_does_not_differ_from_itself(dtype):
    base, ids = logits(3, dtype=dtype), tokens(4)
    quality = summarize(compared(base, base.clone(), ids), Tokens(ids.numpy(), np.arange(len(ids))))
    assert (quality.kl, quality.kl_se, quality.kl_p99, quality.ppl_se, quality.top1) == (0, 0, 0, 0, 1)
    assert quality.ppl == quality.ppl_base


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_divergence_is_never_negative(a, b):
    found = compared(logits(a), logits(b), tokens(0))
    assert found.paired.kl.min() >= -12 * 100 * 2.0**-52


def test_without_the_unquantized_model_the_perplexity_is_the_same_and_all_there_is():
    base, quantized, ids = logits(5), logits(6), tokens(7)
    rows = Tokens(ids.numpy(), np.arange(len(ids)))
    alone, both = (summarize(found, rows) for found in
                   (compare(Ended(IDENTITY, quantized), None, ids), compared(base, quantized, ids)))  # fmt: skip
    assert alone == Quality(ppl=both.ppl)


def test_each_model_is_measured_by_its_own_head():
    base, quantized, ids = logits(5), logits(6), tokens(7)
    doubled = SimpleNamespace(config=IDENTITY.config, logits=lambda hidden: 2 * hidden)
    found = compare(Ended(doubled, quantized), Ended(IDENTITY, base), ids)
    expected = compared(base, 2 * quantized, ids)
    np.testing.assert_array_equal(found.nll, expected.nll)
    np.testing.assert_array_equal(found.paired.kl, expected.paired.kl)


def test_the_last_position_predicts_nothing():
    base, quantized, ids = logits(5), logits(6), tokens(7)
    before = compared(base, quantized, ids)
    base[:, -1] = quantized[:, -1] = torch.nan
    after = compared(base, quantized, ids)
    assert before.paired.kl.shape == (4, 5)
    np.testing.assert_array_equal(before.paired.kl, after.paired.kl)


def slowly(values, clusters):
    """The clustered standard error, one cluster at a time."""
    mean, groups = values.mean(), sorted(set(clusters.tolist()))
    total = 0.0
    for g in groups:
        total += sum(x - mean for row, c in zip(values, clusters, strict=True) if c == g for x in row) ** 2
    return np.sqrt(len(groups) / (len(groups) - 1) * total) / values.size


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.lists(st.integers(-3, 3), min_size=2, max_size=12).filter(lambda c: len(set(c)) > 1))
def test_clustered_error_meets_the_sum_over_clusters(seed, clusters):
    values = np.random.default_rng(seed).standard_normal((len(clusters), 3))
    assert clustered_se(values, np.array(clusters)) == pytest.approx(slowly(values, np.array(clusters)), rel=1e-9)


@given(st.integers(0, 10**6), st.integers(2, 30))
def test_without_clusters_it_is_the_standard_error_of_the_mean(seed, n):
    values = np.random.default_rng(seed).standard_normal(n)
    expected = values.std(ddof=1) / np.sqrt(n)
    assert clustered_se(values[:, None], np.arange(n)) == pytest.approx(expected, rel=1e-12)


def test_repeating_every_cluster_member_changes_nothing():
    values, clusters = np.random.default_rng(0).standard_normal((6, 2)), np.arange(6)
    twice = clustered_se(np.repeat(values, 2, axis=0), np.repeat(clusters, 2))
    assert twice == pytest.approx(clustered_se(values, clusters), rel=1e-12)


def test_one_cluster_has_no_error_to_speak_of():
    assert np.isnan(clustered_se(np.ones((3, 2)), np.zeros(3)))
