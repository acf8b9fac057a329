"""Activations: every grid that may round them or not, a token's independence of its neighbors, and clip ratios."""

from dataclasses import replace

import pytest
import torch

from suite.activations import has_static_scale, quantize_activations, unsupported_activations
from suite.grids import (
    E8P,
    GRIDS,
    BellSplit,
    BFloat16,
    ClipRatio,
    Codebooks,
    DoubleQuantized,
    Exl2,
    GaussianTable,
    Gguf,
    Integer,
    KMeansTable,
    OutlierColumns,
    OutputSearch,
    PartlyBinary,
    PowerOfTwo,
    RealScale,
    ResidualBinary,
    Scaled,
    Shifted,
    ShrinkSearch,
    Sparse,
    Steps,
    Trellis,
    TwoLevel,
    TwoSided,
    Unscaled,
)
from suite.grids.integer import CONVENTIONS
from suite.quantize import output_error, quantize_matrix
from suite.recipe import Recipe, Target, parse, with_activations
from suite.statistics import statistics_of

MXFP4 = Scaled(element="e2m1", group=32, scale=PowerOfTwo(), pad=True)
NVFP4 = Scaled(element="e2m1", group=16, scale=TwoLevel(), pad=True)
SUPPORTED = (
    *(Integer(bits=4, group="row", convention=convention) for convention in CONVENTIONS),
    *(Integer(bits=4, group="row", convention=convention, clip=ClipRatio(0.9)) for convention in CONVENTIONS),
    *(Integer(bits=bits, group=group, convention="full-range") for bits in (2, 8) for group in (5, 16, 32)),
    Integer(bits=1, group="row", convention="half-integer"),
    *(Integer(bits=8, group="tensor", convention=convention)
      for convention in CONVENTIONS if convention not in ("asymmetric", "real-zero", "signed-max")),
    Integer(bits=4, group="tensor", convention="full-range", clip=ClipRatio(0.5)),
    MXFP4, replace(MXFP4, scale=PowerOfTwo("up")), replace(MXFP4, element="e4m3"), replace(MXFP4, element="int8"),
    replace(MXFP4, group=7),
    NVFP4, replace(NVFP4, scale=TwoLevel(matrix=False)), replace(NVFP4, group=7),
    *(Scaled(element=element, group="row", scale=RealScale(bits=32)) for element in ("e4m3", "e5m2", "e3m2", "nf4")),
    Scaled(element="e4m3", group="tensor", scale=RealScale(bits=32)),
    Scaled(element="e4m3", group="tensor", scale=PowerOfTwo()),
    Scaled(element="e4m3", group="tensor", scale=TwoLevel(), axis="flat"),
    Scaled(element="e4m3", group="tensor", scale=Unscaled()),
    Scaled(element="ternary", group="row", scale=RealScale(statistic="absmean")),
    Scaled(element="fp4-bitsandbytes", group=16, scale=RealScale(signed=True)),
    Scaled(element=GaussianTable(bits=3), group="row", scale=RealScale(statistic="rms")),
    Gguf(type="q8_0"), Gguf(type="q4_0"),
    Sparse(grid=Integer(bits=4, group="row")), Sparse(grid=Scaled(element="e2m1", group=16)),
    BFloat16(),
)  # fmt: skip
UNSUPPORTED = (
    (Integer(bits=4, axis=0), "run over tokens"),
    (Integer(bits=4, group="row", clip=ShrinkSearch()), "not searched"),
    (Integer(bits=4, clip=OutputSearch()), "not searched"),
    *((Integer(bits=4, group="tensor", convention=c), "symmetric") for c in ("asymmetric", "real-zero", "signed-max")),
    (Integer(bits=1, group="row"), "half-integer"),
    (Scaled(element="e2m1", group=16, axis=0), "run over tokens"),
    (Scaled(element="nf4", group=64, axis="flat"), "run over tokens"),
    (Scaled(element="nf4", group="row", scale=RealScale(clip=ShrinkSearch())), "not searched"),
    (Scaled(element="nf4", group="row", scale=DoubleQuantized()), "share a mean"),
    (Scaled(element=KMeansTable(bits=3), group="row"), "fitted to weights"),
    (Scaled(element="ternary", group="tensor", scale=RealScale(statistic="absmean")), "largest magnitude alone"),
    (Scaled(element="unbalanced", group="tensor", scale=RealScale(signed=True)), "largest magnitude alone"),
    *((Gguf(type=kind), "GGUF") for kind in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")),
    (Gguf(type="q4_0", importance=True), "GGUF"),
    (Sparse(grid=Integer(bits=4), score="wanda"), "masks by wanda need"),
    (Sparse(grid=Integer(bits=4), score="feedback"), "error feedback"),
    (Sparse(grid=Integer(bits=4, axis=0)), "run over tokens"),
    (Sparse(grid=Integer(bits=4, group="tensor", convention="narrow")), "static"),
    (Steps(bits=3), "entropy coded"),
    (Exl2(budget=4.0), "EXL2"),
    *((grid, "is fitted to weights")
      for grid in (E8P(), Trellis(), Codebooks(), OutlierColumns(share=0.1), ResidualBinary(orders=2), PartlyBinary(),
                   BellSplit(), TwoSided(), Shifted())),
)  # fmt: skip

supported = pytest.mark.parametrize("grid", SUPPORTED, ids=str)


def tokens(seed, *shape):
    """Correlated values with a few large channels, one token of zeros and one far larger than the others."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x[..., ::7] *= 20
    x.reshape(-1, shape[-1])[0] = 0
    x.reshape(-1, shape[-1])[1] *= 100
    return x


@supported
def test_a_grid_that_is_supported_says_so(grid):
    assert Recipe(activations=Target(grid)).unsupported is None
    assert parse(str(Recipe(activations=Target(grid)))).activations == Target(grid)


@pytest.mark.parametrize("grid, reason", UNSUPPORTED, ids=str)
def test_a_grid_that_is_not_supported_says_why(grid, reason):
    assert reason in Recipe(activations=Target(grid)).unsupported


def test_both_tables_together_name_every_kind_of_grid():
    assert {type(grid) for grid in SUPPORTED} | {type(grid) for grid, _ in UNSUPPORTED} == set(GRIDS)


@supported
@pytest.mark.parametrize("n_in", [32, 45], ids=["whole groups", "a short last group"])
def test_a_token_is_rounded_without_regard_to_its_neighbors(grid, n_in):
    x = tokens(0, 3, 5, n_in)
    together = quantize_activations(x, grid, 10.0)
    alone = torch.stack([torch.stack([quantize_activations(x[i, j][None], grid, 10.0)[0] for j in range(5)])
                         for i in range(3)])  # fmt: skip
    assert torch.equal(together, alone)
    assert together.dtype == x.dtype and together.shape == x.shape


@pytest.mark.parametrize("grid", [grid for grid in SUPPORTED if not has_static_scale(grid)], ids=str)
@pytest.mark.parametrize("n_in", [32, 45])
def test_what_is_not_static_is_what_the_grid_says_of_each_token(grid, n_in):
    x = tokens(1, 6, n_in)
    found = quantize_activations(x, grid, float("nan"))  # which nobody reads
    for token, rounded in zip(x, found, strict=True):
        fitted = grid.fit(token[None])
        assert torch.equal(fitted.decode(fitted.nearest(token[None]))[0], rounded)


@supported
def test_pieces_that_fit_a_cache_do_not_show(grid, monkeypatch):
    x = tokens(2, 7, 32)
    found = quantize_activations(x, grid, 3.0)
    monkeypatch.setattr("suite.activations._AT_ONCE", 64)
    assert torch.equal(quantize_activations(x, grid, 3.0), found)


@supported
def test_activations_leave_their_input_alone_and_refuse_what_is_not_finite(grid):
    x = tokens(3, 4, 32)
    before = x.clone()
    quantize_activations(x, grid, 3.0)
    assert torch.equal(x, before)
    for bad in (float("nan"), float("inf")):
        x[2, 3] = bad
        with pytest.raises(ValueError, match="finite"):
            quantize_activations(x, grid, 3.0)


@supported
def test_activations_of_zeros_stay_zeros_where_there_is_a_zero(grid):
    x = torch.zeros(2, 32)
    found = quantize_activations(x, grid, 0.0)
    without_zero = "half-integer" in str(grid) or isinstance(getattr(grid, "element", None), GaussianTable)
    assert bool((found.abs() <= (2.0**-20 if without_zero else 0.0)).all())  # the smallest scales that can be stored


def test_a_static_scale_clips_at_its_range():
    x = torch.tensor([[[-3.0, 0.5], [1.0, 7.0]]])
    grid = Integer(bits=8, group="tensor", convention="narrow", scale_bits=32)
    found = quantize_activations(x, grid, 1.27)
    torch.testing.assert_close(found, torch.tensor([[[-1.27, 0.5], [1.0, 1.27]]]), rtol=2.0**-22, atol=0)
    assert found.dtype == x.dtype and found.shape == x.shape


def test_every_token_has_a_scale_of_its_own():
    x = tokens(0, 2, 3, 8) * torch.tensor([1.0, 100.0, 0.0])[:, None]
    found = quantize_activations(x, Integer(bits=8, group="row", convention="full-range", scale_bits=32), 0.0)
    half_step = x.abs().amax(-1, keepdim=True) / 127 / 2
    assert bool(((found - x).abs() <= half_step * (1 + 2.0**-14)).all())  # 2^7 steps, each rounded to 24 bits


@pytest.mark.parametrize("group", ["row", "tensor"])
def test_a_clip_ratio_is_a_smaller_range(group):
    x, ratio = tokens(4, 6, 32), 0.75  # by which every float is multiplied exactly enough to compare
    grid = Integer(bits=4, group=group, convention="full-range", scale_bits=32)
    clipped = quantize_activations(x, replace(grid, clip=ClipRatio(ratio)), 8.0)
    step = (x.abs().amax(-1, keepdim=True) if group == "row" else torch.tensor(8.0)) * ratio / 7
    expected = (x / torch.where(step == 0, 1.0, step)).round().clamp(-8, 7) * step
    torch.testing.assert_close(clipped, expected, rtol=2.0**-22, atol=0)
    assert torch.equal(quantize_activations(x, replace(grid, clip=ClipRatio(1.0)), 8.0),
                       quantize_activations(x, grid, 8.0))  # fmt: skip


@pytest.mark.parametrize("ratio", [0.0, -1.0, 1.1, float("nan"), "0.9"])
def test_a_clip_ratio_is_a_share(ratio):
    with pytest.raises(ValueError, match="clip ratio"):
        ClipRatio(ratio)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_weights_take_a_clip_ratio_too(convention):
    W = tokens(5, 4, 24)
    grid = Integer(bits=4, group=8, convention=convention, clip=ClipRatio(0.9))
    q = quantize_matrix(W, recipe=Recipe(weights=Target(grid)))
    plain = replace(grid, clip=None).fit(W)
    low, high = plain.layout.grouped(W, 0.0).amin(-1), plain.layout.grouped(W, 0.0).amax(-1)
    shrunk = replace(grid, clip=None).fit_range(0.9 * low, 0.9 * high, (4, 24))
    assert torch.equal(q.dequantize(), shrunk.decode32(shrunk.nearest(W)))
    assert q.n_bits == plain.n_bits and len(q.to_bytes()) == -(-q.n_bits // 8)
    assert torch.equal(type(q).from_bytes(q.to_bytes(), q.header()).dequantize(), q.dequantize())


def test_the_score_of_a_searching_transform_keeps_a_clip_ratio_and_drops_a_search():
    X, W = tokens(6, 64, 16).double(), tokens(7, 4, 16).double()
    ones, statistics = torch.ones(16, dtype=torch.float64), statistics_of(X)

    def score(clip):
        recipe = Recipe(weights=Target(Integer(bits=3, group="row", clip=clip)))
        return output_error({"a": W}, statistics, recipe)(ones)

    assert score(ShrinkSearch()) == score(None) != score(ClipRatio(0.7))


def test_nvfp4_takes_its_tensor_scale_from_calibration():
    x = tokens(8, 5, 32)
    for most in (1.0, 10.0, 1000.0):
        found, limit = quantize_activations(x, NVFP4, most), torch.tensor(most)
        g = limit / (448 * 6)
        blocks = x.reshape(-1, 16)
        wanted = (blocks.abs().amax(-1, keepdim=True) / 6 / g).clamp(2.0**-6, 448)
        scale = wanted.to(torch.float8_e4m3fn).float()
        values = found.reshape(-1, 16) / (g * scale)
        levels = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
        nearest = (values.abs()[..., None] - levels).abs().amin(-1)
        assert float(nearest.max()) < 6 * 4 * 2.0**-24  # a handful of roundings of a number up to 6
        assert float(found.abs().max()) <= most * (1 + 2.0**-22)  # what is larger saturates
    exact = NVFP4.fit(x)
    dynamic = exact.decode(exact.nearest(x))
    assert torch.equal(quantize_activations(x, NVFP4, float(x.abs().max())), dynamic)  # as if all shared a batch


@pytest.mark.parametrize("grid", [MXFP4, NVFP4, Integer(bits=4, group=32), Integer(bits=4, group="row")], ids=str)
def test_no_gradient_passes(grid):
    x = tokens(9, 4, 32).requires_grad_()
    assert not quantize_activations(x, grid, 5.0).requires_grad


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (4, 4)], ids=lambda b: f"W{b[0]}A{b[1]}")
def test_activations_are_added_to_any_recipe(bits):
    weights, inputs = bits
    recipe = with_activations(Recipe(weights=Target(Integer(bits=weights))), inputs)
    assert recipe.activations == Target(Integer(bits=inputs, group="row", convention="full-range", scale_bits=32))
    assert recipe.unsupported is None and unsupported_activations(recipe.activations.grid) is None
    with pytest.raises(ValueError, match="not integers"):
        with_activations(replace(recipe, activations=Target(MXFP4)), 4)
