import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.experiment import Setting
from theory.limits.intrinsic_dimension import (
    EXPERIMENT,
    bias,
    dimensions,
    levina_bickel,
    like,
    manifold,
    neighbor_distances,
    two_nn,
)


@pytest.mark.parametrize("kind", ["linear", "curved", "sphere"])
def test_estimates_are_within_a_tenth_up_to_five_dimensions(kind):
    for d in (2, 5):
        found = np.mean([list(bias(kind, d, seed).values())[:2] for seed in range(3)], axis=0)
        # 1,000 points: TwoNN's slope scatters by about 1 / sqrt(900), and three seeds are averaged
        assert np.abs(found).max() < 0.15, (kind, d, found)


def test_many_dimensions_are_underestimated():
    found = bias("linear", 20, 0)
    assert all(-0.6 < one < -0.1 for one in found.values()), found
    assert bias("linear", 20, 0)["MLE, 100 neighbors"] < found["MLE, 5 neighbors"]  # the larger the scale, the lower


@pytest.mark.parametrize("d", [2, 8])
def test_the_estimators_are_those_of_scikit_dimension(d):
    skdim = pytest.importorskip("skdim")
    X = manifold("linear", d, 0)
    found = dimensions(X, (5, 20))
    assert found["TwoNN"] == pytest.approx(skdim.id.TwoNN().fit(X).dimension_, rel=0.005)
    for k in (5, 20):  # which averages its local estimates otherwise
        assert found[f"MLE, {k} neighbors"] == pytest.approx(skdim.id.MLE(K=k).fit(X).dimension_, rel=0.1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_nothing_depends_on_scale_rotation_or_copies(seed, scale):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((60, 4))
    Q = np.linalg.qr(rng.standard_normal((4, 4)))[0]
    found = dimensions(X, (5,))
    assert dimensions(scale * X @ Q + 3, (5,)) == pytest.approx(found, rel=1e-6)
    assert dimensions(np.concatenate([X, X[:7]]), (5,)) == found


def test_distances_are_sorted_and_exact():
    X = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert neighbor_distances(X, 2).tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]
    d = neighbor_distances(X, 2)
    assert levina_bickel(d) == pytest.approx(4 / np.log(3 * 2 * 1.5 * 1.5))
    assert two_nn(np.array([[1.0, 2.0]] * 10)) > 0


def test_a_gaussian_like_the_points_has_their_covariance():
    X = manifold("linear", 3, 0)
    assert np.linalg.matrix_rank(like(X, 0, False), tol=1e-6) == 3
    z = like(np.random.default_rng(1).standard_normal((4000, 3)) * [1, 2, 4], 0, False)
    assert z.std(0) == pytest.approx([1, 2, 4], rel=4 * np.sqrt(2 / 4000))
    assert like(X, 0, True).std() == pytest.approx(1, rel=0.02)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"1 distinct points of shape \(5, 2\)"):
        neighbor_distances(np.ones((5, 2)), 2)
    with pytest.raises(ValueError, match="dimension 40"):
        manifold("linear", 40, 0)


def test_the_sentence_follows_the_points():
    points = [p for p in EXPERIMENT.measure(Setting(effort=0.1))]
    assert "TwoNN" in EXPERIMENT.sentence(points)
