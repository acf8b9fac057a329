import binary_releases
import golden
import pytest
import torch

from suite.grids import Integer, PartlyBinary
from suite.grids.saliency import pivots_for
from suite.methods import method_named
from suite.quantize import quantize_matrix
from suite.rounding import Feedback, Nearest
from suite.rounding.feedback import factor


def data(seed=0, n_out=12, n_in=50):
    generator = torch.Generator().manual_seed(seed)
    W = torch.randn(n_out, n_in, generator=generator, dtype=torch.float64)
    X = torch.randn(4 * n_in, n_in, generator=generator, dtype=torch.float64) @ torch.randn(
        n_in, n_in, generator=generator, dtype=torch.float64
    )
    return W, X.T @ X / (4 * n_in)


def as_released(config):
    group = "row" if config["groupsize"] == -1 else config["groupsize"]
    rounding = Feedback(groups="static") if config["gptq"] else Nearest()
    return dict(salient=1 - config["low_frac"], score=config["metric"], group=group, rounding=rounding)


@golden.needed
@pytest.mark.parametrize("row", binary_releases.rows("pbllm"))
def test_the_releases_way_gives_the_releases_numbers(row):
    nmse, hnmse, q = binary_releases.found(row, "pb-llm", average="all", **as_released(row["config"]))
    assert nmse == pytest.approx(row["nmse"], rel=0.01)
    assert hnmse == pytest.approx(row["hnmse"], rel=0.01)
    assert q.grid.grid.bits == pytest.approx(1 + 7 * (1 - row["config"]["low_frac"]))


@golden.needed
@pytest.mark.parametrize("row", [row for row in binary_releases.rows("pbllm")
                                 if row.values[0]["config"]["low_frac"] < 0.9 and not row.marks])  # fmt: skip
def test_means_of_binary_weights_alone_pay_by_magnitude_and_cost_by_the_hessian(row):
    """Without the zeros of salient weights s is larger: the least squared error, and not the least output error."""
    nmse, hnmse, _ = binary_releases.found(row, "pb-llm", **as_released(row["config"]))
    if row["config"]["metric"] == "magnitude":
        assert hnmse < 0.95 * row["hnmse"]
    else:
        assert row["hnmse"] < hnmse < 1.17 * row["hnmse"]
    if not row["config"]["gptq"]:
        assert nmse < row["nmse"]


@pytest.mark.parametrize("damping", [0.01, 1.0])
def test_pivots_are_those_of_error_feedback(damping):
    _, H = data()
    R, _, _ = factor(H, "given", damping)
    assert torch.allclose(pivots_for("hessian", H, 50, damping), R.diagonal(), rtol=1e-12)
    inverse = torch.linalg.inv(H + damping * H.diagonal().mean() * torch.eye(50, dtype=torch.float64))
    U = torch.linalg.cholesky(inverse, upper=True)  # what the releases divide by
    assert torch.allclose(pivots_for("hessian", H, 50, damping), 1 / U.diagonal(), rtol=1e-9)


def test_a_matrix_that_cannot_be_factored_is_damped_more_as_in_error_feedback():
    H = torch.ones(4, 4, dtype=torch.float64)  # of rank 1
    damped = H + 1e-4 * torch.eye(4, dtype=torch.float64)
    R = torch.linalg.cholesky(damped.flip(0, 1)).flip(0, 1)
    assert torch.allclose(pivots_for("hessian", H, 4, 0.0), R.diagonal(), rtol=1e-9)


@pytest.mark.parametrize("score", ["magnitude", "hessian"])
@pytest.mark.parametrize("group", ["row", 16])
@pytest.mark.parametrize("salient", [0.0, 0.1, 0.37, 1.0])
def test_exactly_the_largest_scores_are_salient(score, group, salient):
    W, H = data()
    fitted = PartlyBinary(salient=salient, group=group, score=score).fit(W, H)
    pivots = torch.ones(50) if score == "magnitude" else pivots_for("hessian", H, 50, 0.01)
    size = (W.abs() * pivots).split(50 if group == "row" else group, 1)
    for part, mask in zip(size, fitted.mask.split(50 if group == "row" else group, 1), strict=True):
        assert int(mask.sum()) == int(salient * mask.numel())
        assert not mask.any() or mask.all() or part[mask].min() > part[~mask].max()
    assert int(fitted.mask.sum()) == fitted.grid.n_salient((12, 50))


def test_binary_weights_are_read_as_the_mean_of_each_half():
    """With the signs of w - m, m + s and m - s are not the halves' means, but s is the mean distance from m."""
    W, H = data()
    fitted = PartlyBinary(group=16).fit(W, H)
    Q = fitted.decode(fitted.nearest(W))
    for start in (0, 16, 32, 48):
        for row in range(12):
            mask = ~fitted.mask[row, start : start + 16]
            x, q = W[row, start : start + 16][mask], Q[row, start : start + 16][mask]
            mean, distance = x.mean(), (x - x.mean()).abs().mean()
            levels = torch.where(x > mean, mean + distance, mean - distance)
            assert torch.allclose(q, levels, rtol=0, atol=2.0**-10 * 3)  # float16 of numbers below 3


def test_salient_weights_are_on_their_own_grid():
    W, H = data()
    high = Integer(bits=5, group=16)
    fitted = PartlyBinary(high=high).fit(W, H)
    alone = high.fit(W)
    assert torch.equal(fitted.decode(fitted.nearest(W))[fitted.mask], alone.decode(alone.nearest(W))[fitted.mask])


@pytest.mark.parametrize("salient, ways", [(0.01, 2), (0.1, 2), (0.15, 1), (0.9, 1)])
def test_the_mask_is_stored_the_cheaper_way_and_charged(salient, ways):
    W = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    fitted = PartlyBinary(salient=salient, score="magnitude").fit(W)
    n = int(salient * 32 * 128)
    widths = fitted.grid.mask_widths((32, 128))
    assert len(widths) == ways
    bitmap, columns = 32 * 128, 32 * 8 + 7 * n
    assert sum(count * width for count, width in widths) == min(bitmap, columns)
    assert fitted.n_bits == min(bitmap, columns) + (32 * 128 - n) + 8 * n + 32 * 32 + 32 * (16 + 8)


def test_a_mask_of_another_size_is_an_error():
    W = torch.randn(32, 128, generator=torch.Generator().manual_seed(0))
    for salient in (0.1, 0.5):
        fitted = PartlyBinary(salient=salient, score="magnitude").fit(W)
        beside = [values.clone() for values, _ in fitted.beside()]
        beside[0].reshape(-1)[:3] = 0
        with pytest.raises(ValueError, match="the mask does not name"):
            fitted.grid.restore(beside, fitted.header())


def test_what_is_stored_is_a_bit_more_than_what_is_published():
    W, H = data(1, 64, 512)
    q = quantize_matrix(W, method="pb-llm", H=H)
    assert q.grid.grid.bits == 1.7
    n = 64 * 512
    mask, parameters = (64 * 10 + 9 * int(n / 10)) / n, 64 * (32 + 24) / n
    assert q.n_bits / n == pytest.approx(1.7 + mask + parameters, rel=1e-3)  # 10% of the weights is no whole number
    assert 2.7 < q.n_bits / n < 2.75


def test_groups_fitted_when_their_turn_comes_keep_the_mask():
    W, H = data(2, 16, 96)
    grid = PartlyBinary(group=32)
    static, dynamic = (Feedback(groups=g).round(W, grid, H, torch.Generator()).grid for g in ("static", "dynamic"))
    assert torch.equal(static.mask, dynamic.mask)
    assert torch.equal(static.low[:, 0], dynamic.low[:, 0]) and not torch.equal(static.low[:, 1], dynamic.low[:, 1])


@pytest.mark.parametrize("options, message", [
    (dict(salient=1.5), "a share from 0 to 1"),
    (dict(group="tensor"), "an integer or"),
    (dict(score="size"), "expected magnitude or hessian"),
    (dict(average="none"), "expected binary or all"),
    (dict(damping=-1.0), "damping"),
    (dict(colour="red"), "takes no option 'colour'"),
])  # fmt: skip
def test_what_makes_no_sense_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        method_named("pb-llm").recipe(**options)
