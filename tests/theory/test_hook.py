import dataclasses

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import engine
from suite.bounds import RoundedLayer, bound_of
from suite.grids import Integer
from suite.quantize import generator_for, quantize_layer
from suite.recipe import Target
from suite.rounding import Feedback, HalfQuadratic, Nearest, Stochastic
from suite.statistics import quadratic
from suite.store import Store
from theory.bounds.hook import bound, clipped, largest_ratio
from theory.bounds.zhang_2025_optq import NEAREST_UPPER, STOCHASTIC_UPPER, squared_error

PICKS = st.sampled_from([Nearest(), Stochastic()])
EPS = float(np.finfo(np.float32).eps)


def rounded(seed, rounding, grid, same=True, dtype=torch.float32, out=5, n=12):
    """A layer under the Gram matrix of other inputs than those its error is measured in, unless they are the `same`."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((3 * n, n)) @ rng.standard_normal((n, n))
    Xq = X if same else X + 0.3 * rng.standard_normal(X.shape)
    H = torch.from_numpy(X.T @ X / len(X))
    gram = H if same else torch.from_numpy(Xq.T @ Xq / len(Xq))
    W = torch.from_numpy(rng.standard_normal((out, n))).to(dtype)
    target = Target(grid, rounding)
    found = quantize_layer(W, target, gram, generator_for(seed, "layer"))
    return RoundedLayer(W=W, quantized=found, target=target, gram=gram, H=H)


def error(layer):
    return quadratic(layer.W.double() - layer.quantized.dequantize().double(), layer.H)


@given(st.integers(0, 10**6), PICKS, st.integers(2, 8), st.sampled_from(["given", "decreasing", "pivot", "reversed"]),
       st.sampled_from([4, 5, "row", "tensor"]), st.sampled_from(["asymmetric", "narrow", "span", "signed-max"]),
       st.booleans(), st.booleans())  # fmt: skip
@settings(max_examples=150)
def test_the_bound_holds_with_clipping_and_without(seed, pick, bits, order, group, convention, feedback, same):
    rounding = Feedback(pick=pick, order=order) if feedback else pick
    layer = rounded(seed, rounding, Integer(bits=bits, group=group, convention=convention), same)
    # W - Q is known to n float64 roundings: 1e-12 of the energies is a hundred times that
    assert error(layer) <= bound(layer) * (1 + 1e-12)


@pytest.mark.parametrize("pick, constant", [(Nearest(), NEAREST_UPPER), (Stochastic(), STOCHASTIC_UPPER)])
def test_unclipped_it_is_the_theorems_bound(pick, constant):
    """Eight bits of a range twice that of the weights: nothing reaches the ends."""
    how = Feedback(pick=pick, order="decreasing", groups="static")
    layer = rounded(3, how, Integer(bits=8, group="row", convention="narrow", scale_bits=32), dtype=torch.float64)
    wide = dataclasses.replace(layer.quantized.grid, scale=2 * layer.quantized.grid.scale)
    grid = Preset(wide)
    found = how.round(layer.W, grid, layer.gram, torch.Generator().manual_seed(0))
    layer = dataclasses.replace(layer, quantized=dataclasses.replace(layer.quantized, codes=found.codes, grid=wide))
    steps = wide.scale.numpy()
    upper = squared_error(constant, layer.H.numpy(), steps, order="decreasing", damping=how.damping).sum()
    assert clipped(layer) == 0
    assert bound(layer) == pytest.approx(upper, rel=1e-6)  # dequantized in float32
    assert error(layer) <= bound(layer)


class Preset:
    """A grid that has been fitted already."""

    block = (1, 1)

    def __init__(self, fitted):
        self._fitted = fitted

    def fit(self, W, importance=None):
        return self._fitted


def test_clipped_values_are_counted():
    W = torch.zeros(1, 8, dtype=torch.float64)
    W[0, :4] = torch.tensor([7.0, 7.6, 9.0, -8.0], dtype=torch.float64)
    fitted = Integer(bits=4, group="row", convention="narrow", scale_bits=32).fit_range(
        torch.full((1, 1), -7.0, dtype=torch.float64), torch.full((1, 1), 7.0, dtype=torch.float64), (1, 8)
    )
    target = Target(Integer(bits=4, group="row", convention="narrow", scale_bits=32))
    quantized = quantize_layer(W, target, None, torch.Generator())
    quantized = dataclasses.replace(quantized, codes=fitted.nearest(W), grid=fitted)
    H = torch.eye(8, dtype=torch.float64)
    layer = RoundedLayer(W=W, quantized=quantized, target=target, gram=H, H=H)
    assert clipped(layer) == 3  # 7.6 by 0.6, 9 by 2, -8 by 1; the other five have half a step
    assert bound(layer) == pytest.approx(0.6**2 + 2**2 + 1 + 5 / 4, rel=1e-12)


@given(st.integers(0, 10**6), st.integers(1, 16), st.floats(0, 4), st.booleans())
@settings(max_examples=60)
def test_the_ratio_is_certified_and_near_the_least(seed, n, spread, singular):
    rng = np.random.default_rng(seed)
    A, C = (rng.standard_normal((n, n)) * 10.0 ** rng.uniform(-spread / 2, 0, n) for _ in range(2))
    if singular:
        A[: n // 2] = 0
    H, B = torch.from_numpy(A.T @ A), torch.from_numpy(C.T @ C + 1e-3 * np.eye(n))
    k = largest_ratio(H, B)
    L = torch.linalg.cholesky(B)
    inner = torch.linalg.solve_triangular(L, torch.linalg.solve_triangular(L, H, upper=False).T, upper=False)
    least = float(torch.linalg.eigvalsh((inner + inner.T) / 2)[-1])
    assert k >= least * (1 - 1e-9)
    # power iteration may miss a few per cent, a try raises by five
    assert k <= 1.2 * least + 1e-12


def test_where_no_theorem_applies_there_is_none():
    layer = rounded(0, Feedback(), Integer(bits=4))
    other = Target(Integer(bits=4, convention="real-zero"), HalfQuadratic())
    assert bound(dataclasses.replace(layer, target=other)) is None
    scaled = dataclasses.replace(layer.quantized, in_scale=torch.ones(12))
    assert bound(dataclasses.replace(layer, quantized=scaled)) is None


def test_the_suite_asks_for_it():
    layer = rounded(1, Feedback(), Integer(bits=4))
    assert bound_of(layer) == bound(layer)


def test_a_models_record_has_its_bound_beside_its_error(tmp_path):
    model = tiny.save(tiny.model_of("llama"), tmp_path / "model")
    rows = np.random.default_rng(0).integers(0, tiny.VOCABULARY, (6, 32))
    np.save(tmp_path / "rows.npy", rows)
    asked = {name: str(tmp_path / "rows.npy") for name in ("calibration", "evaluation")}
    records = engine.run(str(model), store=tmp_path / "s.db", methods=["rtn", "gptq", "hqq", "quarot"], bits=[4],
                         jobs=1, **asked)  # fmt: skip
    by = {record.method: record for record in records}
    assert by["gptq"].hnmse < by["gptq"].bound
    assert by["rtn"].hnmse < by["rtn"].bound
    assert by["gptq"].bound < by["rtn"].bound  # the sum of pivots is below the trace
    assert by["hqq"].bound is None and by["quarot"].bound is None
    with Store(tmp_path / "s.db", create=False) as store:
        assert {r.method: r.bound for r in store.records()} == {name: r.bound for name, r in by.items()}
