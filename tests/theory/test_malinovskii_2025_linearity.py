import numpy as np
import pytest
import tiny

from theory.bounds import malinovskii_2025_linearity as linear
from theory.experiment import Point, Setting


def test_isotropic_noise_costs_the_slope_times_its_square():
    """A quadratic form in 40 weights: E 1/2 e F e over directions of one length is |e|^2 tr F / (2 n)."""
    rng, n, draws = np.random.default_rng(0), 40, 20_000
    A = rng.standard_normal((n, n))
    F, w = A.T @ A, rng.standard_normal(n)
    E = rng.standard_normal((draws, n))
    t = 0.1
    E *= t * np.linalg.norm(w) / np.linalg.norm(E, axis=1, keepdims=True)
    cost = np.einsum("ij,jk,ik->i", E, F, E) / 2
    slope = linear.isotropic_slope(w, np.diag(F))
    assert cost.mean() == pytest.approx(slope * t**2, abs=4 * cost.std() / draws**0.5)


def test_layers_add_up_and_must_be_the_same():
    assert linear.divergence({"a": 3.0, "b": 0.5}, {"b": 2.0, "a": 1.0}) == 4.0
    with pytest.raises(ValueError, match=r"different layers: \['b', 'c'\]"):
        linear.divergence({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})


def test_a_small_models_losses_are_predicted_where_errors_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "_BITS", (8,))
    monkeypatch.setattr(linear, "_ARMS", ("nearest",))
    tiny.save_tokenizer(tiny.save(tiny.model_of("llama"), tmp_path / "model"))
    points = linear.EXPERIMENT.measure(Setting(model=str(tmp_path / "model"), effort=1.0))
    at = {p.series: p for p in points}
    assert at["nearest"].y / at["nearest: predicted"].y == pytest.approx(1, abs=0.5)  # two draws of three small blocks
    assert at["nearest"].low < at["nearest"].y < at["nearest"].high


def test_the_sentence_says_where_it_held():
    def point(arm, bits, y, predicted=False):
        return Point(series=arm, x=bits, y=y, predicted=predicted)

    points = []
    for arm, ratio in zip(linear._ARMS, (1.0, 1.1, 0.3), strict=True):
        points += [
            point(arm, 4, ratio),
            point(f"{arm}: predicted", 4, 1.0),
            point(f"{arm}: predicted by outputs", 4, 2),
        ]
    said = linear.EXPERIMENT.sentence(points)
    assert "nearest, rotated, predicted: 1.00 at 4 (within 20% at 4 bits)" in said
    assert "GPTQ, predicted: 0.30 at 4 (never within 20%)" in said
