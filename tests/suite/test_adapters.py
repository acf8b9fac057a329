"""Side branches beside quantized weights: their start, their training, and what is stored of them."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from suite import run
from suite.adaptation.low_rank import Adapters, LowRank, best_of_rank
from suite.adaptation.training import Schedule
from suite.learning.adapters import Adapted, Branch, as_stored, branch_of, dense, groups_of, merged
from suite.learning.adapting import adapted_for, rounded_layers
from suite.learning.quantization_aware import control_of, learned_for
from suite.learning.student import Student
from suite.methods import METHODS, method_named
from suite.models.checkpoint import load_model
from suite.quantize import quantize_matrix
from suite.quantized import Quantized
from suite.recipe import Recipe, parse
from suite.rows import TrainingRow
from suite.side_rounds import error_of, ridge_of, side_of
from suite.store import Store

SHORT = "schedule=Schedule(steps=6, rate=0.01, warmup=0.0, weight_decay=0.0), rows=4"
W3 = "weights=Target(Integer(bits=3, group=16, convention='real-zero'))"


def recipe_of(how, weights=W3):
    return f"Recipe({weights}, adaptation=LowRank(adapters=Adapters(rank=2), {how}))"


RECIPES = {
    "zeros": recipe_of(SHORT),
    "rounds": recipe_of(f"rounds=2, {SHORT}"),
    "weighted rounds": recipe_of(f"rounds=2, weighted=True, {SHORT}"),
    "pooled": recipe_of(f"pooled=True, {SHORT}"),
    "pooled, error feedback in its own order": recipe_of(
        f"pooled=True, {SHORT}", "weights=Target(Integer(bits=3, group=16, convention='real-zero'), "
        "Feedback(order='decreasing')), inputs='quantized'"),
    "elastic": recipe_of(f"elastic=True, {SHORT}"),
    "forward KL": recipe_of(f"{SHORT}, loss='forward-kl', hidden=0.5"),
    "within": f"Recipe({W3}, adaptation=QuantizationAware({SHORT}, start='symmetric', adapters=Adapters(rank=2)))",
    "control": f"Recipe(adaptation=QuantizationAware({SHORT}, learned='nothing', adapters=Adapters(rank=2)))",
}  # fmt: skip
matrices = st.tuples(st.integers(1, 24), st.integers(1, 40), st.integers(0, 1 << 20))
TRAINED = ("qlora", "loftq", "qa-lora", "ir-qlora", "l4q")


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    return str(tiny.save_tokens(tmp_path_factory.mktemp("training") / "training.npy", 24, tiny.CONTEXT, 3))


def tokens_of(source, checkpoint):
    from suite.tokens import load_tokens

    return load_tokens(source, "training", checkpoint, tiny.CONTEXT)


def drawn(shape, dtype=torch.float64):
    n_out, n_in, seed = shape
    return torch.randn(n_out, n_in, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@given(matrices, st.integers(1, 8))
def test_what_is_best_of_a_rank_leaves_the_smaller_singular_values(shape, rank):
    E = drawn(shape)
    A, B = best_of_rank(E, rank)
    assert A.shape == (rank, E.shape[1]) and B.shape == (E.shape[0], rank)
    left = torch.linalg.svdvals(E)[rank:].square().sum()
    assert torch.isclose((E - B @ A).square().sum(), left, rtol=1e-9, atol=1e-12 * float(E.square().sum()))


@given(matrices, st.integers(1, 4))
def test_the_weighted_best_beats_the_plain_one_where_it_counts(shape, rank):
    E = drawn(shape)
    X = drawn((E.shape[1] + 3, E.shape[1], shape[2] + 1))
    H = X.T @ X
    errors = [
        float(((E - B @ A) @ H * (E - B @ A)).sum()) for A, B in (best_of_rank(E, rank, H), best_of_rank(E, rank))
    ]
    total = float((E @ H * E).sum())
    assert errors[0] <= errors[1] + 1e-9 * total
    L = torch.linalg.cholesky(H)
    assert math.isclose(errors[0], float(torch.linalg.svdvals(E @ L)[rank:].square().sum()), abs_tol=1e-8 * total)


@given(matrices, st.sampled_from(["nf2", "nf4"]), st.booleans())
@settings(max_examples=30)
def test_a_side_never_raises_the_residual_and_the_best_round_is_kept(shape, element, weighted):
    W = drawn(shape, torch.float32)
    X = drawn((2 * W.shape[1], W.shape[1], shape[2] + 1))
    H = X.T @ X / len(X)
    grid = parse(f"Target(Scaled(element='{element}', group=64, axis='flat', scale=RealScale(bits=32)))").weights
    how = LowRank(adapters=Adapters(rank=2), rounds=4, weighted=weighted)
    size = error_of(W, plain_zero(W), how, H)
    rest, errors = W, []
    for _ in range(how.rounds):
        plain = quantize_matrix(rest, recipe=Recipe(weights=grid))
        before = error_of(W, replace(plain, side=None), how, H)
        found = replace(plain, side=side_of(W - plain.dequantize(), how, H))
        errors.append(error_of(W, found, how, H))
        # a weighted side is the best for H and its ridge together; what is stored has half precision, 2^-11 of a factor
        ridge = float(ridge_of(H) * (W - plain.dequantize()).double().square().sum()) if weighted else 0.0
        assert errors[-1] <= before + ridge + 2**-9 * math.sqrt(before * size) + 2**-18 * size
        rest = W - found.side.product()
    kept = quantize_matrix(W, recipe=Recipe(weights=grid, adaptation=how), H=H)
    assert error_of(W, kept, how, H) == min(errors)


def plain_zero(W):
    return quantize_matrix(torch.zeros_like(W), method="rtn", bits=4)


@pytest.mark.parametrize("name", ["low-rank", "low-rank-h", "low-rank-gptq"])
def test_a_correction_lowers_the_error_and_is_charged(name):
    W = drawn((32, 96, 5), torch.float32)
    X = drawn((200, 96, 6), torch.float32) * torch.linspace(0.2, 3, 96)
    H = (X.T @ X / len(X)).double()
    found = quantize_matrix(W, method=name, bits=3, H=H, rank=4)
    plain = quantize_matrix(W, method="gptq" if name == "low-rank-gptq" else "rtn", bits=3, H=H)
    how = LowRank(rounds=1, weighted=name != "low-rank")
    assert error_of(W, found, how, H) < error_of(W, plain, how, H)
    assert found.n_bits == plain.n_bits + 16 * 4 * (32 + 96)
    assert found.entropy_bits >= 16 * 4 * (32 + 96) and found.coded_bits >= 16 * 4 * (32 + 96)
    again = Quantized.from_bytes(found.to_bytes(), found.header())
    assert len(found.to_bytes()) == -(-found.n_bits // 8) and torch.equal(again.dequantize(), found.dequantize())


def test_a_side_is_stored_beside_every_frame_and_coding():
    W = drawn((16, 32, 5), torch.float32)
    for text in ("transforms=(Incoherence(),), weights=Target(Integer(bits=4, group='row'))",
                 "weights=Target(Integer(bits=4)), coding=Huffman()", "weights=Target(Integer(bits=4)), coding=Ans()",
                 "transforms=(SmoothScale(),), weights=Target(Integer(bits=4))"):  # fmt: skip
        recipe = parse(f"Recipe({text}, adaptation=LowRank(adapters=Adapters(rank=3), rounds=2))")
        found = quantize_matrix(W, recipe=recipe, X=drawn((64, 32, 7), torch.float32))
        again = Quantized.from_bytes(found.to_bytes(), found.header())
        assert found.side is not None and torch.equal(again.dequantize(), found.dequantize())
        assert len(found.to_bytes()) == -(-found.n_bits // 8)
        plain = quantize_matrix(W, recipe=replace(recipe, adaptation=None), X=drawn((64, 32, 7), torch.float32))
        assert (found.dequantize() - W).square().sum() < (plain.dequantize() - W).square().sum()


@given(matrices, st.integers(1, 3), st.integers(2, 4), st.integers(1, 16))
@settings(max_examples=40)
def test_a_pooled_branch_merges_exactly_before_zero_points_are_rounded(shape, rank, bits, group):
    W = drawn(shape, torch.float32)
    grid = parse(f"Target(Integer(bits={bits}, group={group}, convention='real-zero'))").weights
    found = quantize_matrix(W, recipe=Recipe(weights=grid))
    found = replace(found, grid=found.grid.tuned({name: x.double() for name, x in found.grid.tunable().items()}))
    owner, generator = groups_of(found.grid), torch.Generator().manual_seed(shape[2])
    A, B = (torch.randn(*size, generator=generator, dtype=torch.float64)
            for size in ((rank, int(owner.max()) + 1), (W.shape[0], rank)))  # fmt: skip
    branch = Branch(A, B, 1.0, owner, elastic=False)
    x = drawn((5, W.shape[1], shape[2] + 2))
    unmerged = x @ found.decode().T + branch(x).detach()
    into = merged(found, B @ A)
    size = float((x.abs() @ (found.decode().abs() + into.decode().abs()).T).max())
    assert (x @ into.decode().T - unmerged).abs().max() <= 1e-12 * max(1.0, size)
    assert torch.equal(into.codes, found.codes)
    change = into.decode() - found.decode()
    assert (change - dense(branch)).abs().max() <= 1e-12 * max(1.0, size)
    first = torch.tensor([int((owner == group).nonzero()[0, 0]) for group in owner])  # the same for a group of a row
    assert (change - change[:, first]).abs().max() <= 1e-12 * max(1.0, size)


@given(st.integers(1, 20), st.integers(1, 30), st.integers(1, 8), st.booleans())
def test_elastic_paths_are_a_branch_like_any_other(n_out, n_in, rank, moved):
    generator = torch.Generator().manual_seed(n_out + 100 * n_in)
    A, B = torch.randn(rank, n_in, generator=generator).double(), torch.randn(n_out, rank, generator=generator).double()
    branch = Branch(A, B, 0.5, None, elastic=True)
    plain, x = Branch(A, B, 0.5, None, elastic=False), torch.randn(3, n_in, generator=generator).double()
    assert torch.allclose(branch(x), plain(x), rtol=1e-12, atol=0)
    if moved:
        branch.factors.data = torch.tensor([0.3, -0.7], dtype=torch.float64)
        runs = torch.stack([x[:, [i for i in range(n_in) if i * rank // n_in == k]].mean(1) for k in range(rank)], 1)
        hidden = x @ A.T + 0.3 * runs.nan_to_num(0.0)
        repeated = torch.stack([hidden[:, o * rank // n_out] for o in range(n_out)], dim=1)
        assert torch.allclose(branch(x), 0.5 * (hidden @ B.T - 0.7 * repeated), rtol=1e-9, atol=1e-12)
        assert torch.allclose(x @ dense(branch).T, branch(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("how", [LowRank(schedule=Schedule(steps=1)), LowRank(schedule=Schedule(steps=1), pooled=True),
                                 LowRank(schedule=Schedule(steps=1), elastic=True)])  # fmt: skip
def test_a_branch_of_zeros_is_the_base(llama, inputs, training, how):
    checkpoint = load_model(str(llama))
    grid = parse("Target(Integer(bits=3, group=16, convention='real-zero'))").weights
    recipe, rows = Recipe(weights=grid, adaptation=how), tokens_of(training, checkpoint)
    base = rounded_layers(checkpoint, recipe, rows, 0, 1)
    adapted = Adapted.of(checkpoint, recipe, 0, base)
    for name, found in adapted.stored().items():
        assert torch.equal(found.dequantize(), base[name].dequantize()), name
    plain = Adapted.of(checkpoint, recipe, 0, base)
    for layer in plain.layers.values():
        layer.branch.forward = lambda x: 0.0
    with torch.no_grad():
        assert float(adapted.loss(rows.tensor(), 0)(0)) == float(plain.loss(rows.tensor(), 0)(0))


def test_gradients_of_a_branch_are_those_of_dense_weights(llama, inputs, training):
    """Frozen weights have no gradient; A's and B's are s B^T G and s G A^T with G that of W + s B A."""
    checkpoint = load_model(str(llama), dtype=torch.float64)
    recipe = parse(recipe_of(f"rounds=1, {SHORT}").replace("rank=2", "rank=2, scale=0.25"))
    rows = tokens_of(training, checkpoint)
    adapted = Adapted.of(checkpoint, recipe, 0, rounded_layers(checkpoint, recipe, rows, 0, 1))
    adapted.loss(rows.tensor(), 0)(0).backward()
    student = Student.of(checkpoint, control_of(recipe), 0)
    parametrized = {}
    for name, layer in adapted.layers.items():
        module = student.model.get_submodule(name)
        module.parametrizations.weight.original.data = layer.weight().requires_grad_(True)
        adapter = module.parametrizations.weight[0]
        adapter.A.data, adapter.B.data = layer.branch.A.data.clone(), layer.branch.B.data.clone()
        parametrized[name] = adapter
    student.loss(rows.tensor(), 0)(0).backward()
    assert not any(p.requires_grad for n, p in adapted.model.named_parameters() if not n.endswith((".A", ".B")))
    for name, layer in adapted.layers.items():
        for mine, theirs in ((layer.branch.A, parametrized[name].A), (layer.branch.B, parametrized[name].B)):
            assert torch.allclose(mine.grad, theirs.grad, rtol=1e-7, atol=1e-12), name


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_l4q_begins_as_rounding_to_nearest(llama, bits):
    """On levels around zero, as wide as the larger end of a group asks for."""
    checkpoint, half = load_model(str(llama)), 2 ** (bits - 1)
    student = Student.of(checkpoint, method_named("l4q").recipe(bits=bits, group=16), 0)
    assert student.weighed
    for name, fake in student.weighed.items():
        groups = checkpoint.tensor(f"{name}.weight").unflatten(1, (-1, 16))
        scale = torch.maximum(groups.amin(-1) / -half, groups.amax(-1) / (half - 1)).half().float()[..., None]
        nearest = ((groups / scale).round().clamp(-half, half - 1) * scale).flatten(1)
        assert torch.equal(student.model.get_submodule(name).weight.detach(), nearest), name
        assert (fake.values()["zero"] == half).all()


def test_l4q_trains_adapters_and_steps_alone(llama, training):
    checkpoint = load_model(str(llama))
    student = Student.of(checkpoint, method_named("l4q").recipe(bits=3, group=16, steps=2, rows=4), 0)
    moving = {name.rsplit(".", 1)[-1] for name, p in student.model.named_parameters() if p.requires_grad}
    assert moving == {"A", "B", "scale", "zero"}
    before = student.weights()
    student.train(tokens_of(training, checkpoint).tensor(), 0, None, lambda step, loss_nats: None)
    after = student.weights()
    layers = {f"{name}.weight" for name in student.weighed}
    for name, x in after.items():
        assert torch.equal(x, before[name]) != (name in layers), name
    for name in student.weighed:
        change = after[f"{name}.weight"] - before[f"{name}.weight"]
        assert int((torch.linalg.svdvals(change.double()) > 1e-5 * change.norm()).sum()) <= 8  # the rank of adapters


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_an_adapted_cell_is_measured_packed_and_read_back(llama, inputs, training, tmp_path, recipe):
    path = tmp_path / "store.db"
    (record,) = run(str(llama), recipes=[recipe], training=training, store=path, jobs=1, save=tmp_path / "packed",
                    **inputs)  # fmt: skip
    assert record.status == "ok", record.reason
    with Store(path, create=False) as store:
        (row,) = store.rows(TrainingRow)
        layers = store.layers(record)
    assert row.updates == 6 and row.operations > 0 and math.isfinite(row.excess_nats) and row.excess_se >= 0
    if "weights" not in recipe:
        assert row.excess_nats == 0 and row.rounding is None
        return
    beside = "LowRank" in recipe and "pooled" not in recipe
    for layer in layers:
        groups = layer.n_out * -(-layer.n_in // layer.group_size)
        side = 16 * 2 * (layer.n_out + layer.n_in) if beside else 0
        order = math.ceil(math.log2(max(2, -(-layer.n_in // 16)))) * layer.n_in if "decreasing" in recipe else 0
        assert layer.n_bits == 3 * layer.n_out * layer.n_in + 32 * groups + side + order
    assert (row.rounding is None) == ("QuantizationAware" in recipe) and 0 <= (row.rounding or 0) < 1e-4
    (again,) = run(str(tmp_path / "packed"), store=tmp_path / "other.db", jobs=1, base=str(llama),
                   evaluation=inputs["evaluation"])  # fmt: skip
    assert (again.ppl, again.bpw, again.model_bytes) == (record.ppl, record.bpw, record.model_bytes)


METHOD_WIDTHS = [(m, bits) for m in METHODS if m.name in TRAINED for bits in (m.bits[0], m.bits[-1])]


@pytest.mark.parametrize(("method", "bits"), METHOD_WIDTHS, ids=lambda x: getattr(x, "name", str(x)))
def test_training_lowers_the_loss_of_what_is_stored(method, bits, llama, training):
    checkpoint = load_model(str(llama))
    rows = tokens_of(training, checkpoint)
    recipe = method.recipe(bits=bits, steps=12, rows=8, rate=5e-3)
    keyed = {"seed": 0, "threads": 1, "calibration": rows}
    found = (adapted_for if method.name != "l4q" else learned_for)(checkpoint, recipe, rows, **keyed)
    assert found.losses_nats[-3:].mean() < found.losses_nats[:3].mean()
    assert found.tokens == 12 * 8 * tiny.CONTEXT
    if method.name != "l4q":
        assert found.rounding < 1e-4 and found.beside.layers


def test_a_killed_training_of_adapters_continues_bit_for_bit(llama, training, monkeypatch):
    from suite.learning import adapters

    monkeypatch.setattr(adapters, "KEPT", 2)
    checkpoint = load_model(str(llama))
    rows, recipe = tokens_of(training, checkpoint), parse(RECIPES["elastic"])
    keyed = {"seed": 3, "threads": 1, "calibration": rows}

    class Killed(Exception):
        pass

    def kill(step, loss_nats):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        adapted_for(checkpoint, recipe, rows, **keyed, report=kill)
    resumed = adapted_for(checkpoint, recipe, rows, **keyed)
    whole = Adapted.of(checkpoint, recipe, 3, rounded_layers(checkpoint, recipe, rows, 3, 1))
    assert torch.equal(whole.train(rows.tensor(), 3, None, lambda step, loss_nats: None), resumed.losses_nats)
    for name, found in whole.stored().items():
        assert resumed.beside.layers[name].to_bytes() == found.to_bytes()


def test_diverging_adapters_fail_with_the_step(llama, inputs, training, tmp_path):
    recipe = recipe_of("schedule=Schedule(steps=6, rate=1e30, warmup=0.0), rows=4")
    (record,) = run(str(llama), recipes=[recipe], training=training, store=tmp_path / "s.db", jobs=1, **inputs)
    assert record.status == "failed" and "diverged at step" in record.reason and record.ppl is None


@pytest.mark.parametrize(("text", "reason"), [
    ("Recipe(adaptation=LowRank(rounds=1))", "none are rounded"),
    (f"Recipe(transforms=(SmoothScale(),), {W3}, adaptation=LowRank(schedule=Schedule(steps=1)))", "own coordinates"),
    (f"Recipe({W3}, activations=Target(Integer(bits=8, group='row')), adaptation=LowRank(schedule=Schedule(steps=1)))",
     "weights alone"),
    ("Recipe(weights=Target(Integer(bits=3)), adaptation=LowRank(pooled=True, schedule=Schedule(steps=1)))",
     "real zero points of groups"),
])  # fmt: skip
def test_what_cannot_be_adapted_says_why(text, reason):
    assert reason in parse(text).unsupported


@pytest.mark.parametrize(("text", "wrong"), [
    ("LowRank()", "zeros that nothing trains"),
    ("LowRank(rounds=1, pooled=True, schedule=Schedule(steps=1))", "begins with zeros"),
    ("LowRank(rounds=1, elastic=True)", "are trained"),
    ("LowRank(adapters=Adapters(rank=0), rounds=1)", "rank 0"),
    ("QuantizationAware(schedule=Schedule(steps=1), scratch=True, adapters=Adapters())", "nothing to adapt"),
])  # fmt: skip
def test_adapters_that_say_nothing_are_refused(text, wrong):
    with pytest.raises(ValueError, match=wrong):
        parse(f"Recipe(weights=Target(Integer(bits=3)), adaptation={text})")


def test_a_trained_recipe_takes_a_whole_model():
    with pytest.raises(ValueError, match="takes a whole model"):
        quantize_matrix(torch.randn(8, 64), method="qlora", bits=4)
    with pytest.raises(ValueError, match="needs the layer's inputs"):
        quantize_matrix(torch.randn(8, 64), method="low-rank-h", bits=4)


def test_storing_is_the_only_rounding_there_is(llama, training):
    checkpoint = load_model(str(llama))
    recipe, rows = parse(RECIPES["pooled"]), tokens_of(training, checkpoint)
    base = rounded_layers(checkpoint, recipe, rows, 0, 1)
    adapted = Adapted.of(checkpoint, recipe, 0, base)
    assert adapted.rounding() == 0.0
    adapted.train(rows.tensor(), 0, None, lambda step, loss_nats: None)
    assert 0 < adapted.rounding() < 1e-5
    name, found = next(iter(base.items()))
    kept = as_stored(found, adapted.layers[name].branch)
    assert kept.side is None and torch.equal(kept.codes, found.codes) and kept.n_bits == found.n_bits
    again = branch_of(found, recipe.adaptation, torch.Generator(), torch.float32)
    assert again.A.shape[1] == found.grid.scale.shape[1]
