import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from kernels.launch import interpreted
from suite import quantize_matrix, run
from suite.grids import Integer
from suite.methods import METHODS
from suite.models.checkpoint import load_model
from suite.quantized import Quantized
from suite.readback import PackedModel
from suite.recipe import Recipe, Target, parse
from suite.runtime import (
    PRODUCTS,
    ByRows,
    Chooser,
    PackedLinear,
    chooser_for,
    generate,
    packed_runtime,
    plain_runtime,
    product_named,
)
from suite.runtime.affine import affine
from suite.runtime.choice import ROWS
from suite.runtime.core import Unfit
from suite.runtime.linear import core_of

U = 2.0**-8  # the unit roundoff of bfloat16
CPU = torch.device("cpu")
WEIGHTS = [method for method in METHODS if "weights" in method.targets and method.needs != "training"]


def bits_of(method):
    return None if method.fixed else 4 if 4 in method.bits else method.bits[-1]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def through(found: Quantized, x, name, dtype=torch.float32):
    chooser = Chooser(name, dtype=dtype)
    return PackedLinear(found, None, chooser.prepare, CPU)(x.to(dtype)), chooser


def magnitudes(found: Quantized) -> torch.Tensor:
    """What int4pack adds up, in size: |q - 8| s + |z|, or with q = 16 h + l, |h - 8| 16 s + |l - 8| s + |z|."""
    a = affine(found.codes, found.as_stored().grid)
    s, (q, z) = a.expanded(a.scale).abs(), a.raised
    steps = (q - 8).abs() if a.top < 16 else 16 * (q // 16 - 8).abs() + (q % 16 - 8).abs()
    return steps * s + a.expanded(z).abs()


CONVENTIONS = st.sampled_from(["asymmetric", "full-range", "span", "signed-max", "real-zero", "half-integer"])


@settings(max_examples=25)
@given(bits=st.integers(2, 8), convention=CONVENTIONS, group=st.sampled_from([32, 64, 96, 128, 512, "row"]),
       n_out=st.integers(1, 70), n_in=st.integers(1, 300), rows=st.integers(1, 40))  # fmt: skip
def test_int4pack_errs_by_the_roundings_it_says(bits, convention, group, n_out, n_in, rows):
    W, x = draw(n_out, n_in), draw(rows, n_in, seed=1)
    found = quantize_matrix(W, recipe=Recipe(weights=Target(Integer(bits=bits, group=group, convention=convention))))
    exact = x.double() @ found.dequantize().double().T
    # one rounding of inputs, one of scales and offsets, one of outputs: of a plane each, or of the only one
    spread = x.abs().double() @ magnitudes(found).T
    bound = U * ((2.02 + (bits > 4)) * spread + 1.01 * (exact.abs() + spread * U)) + 1e-6 * spread
    y, chooser = through(found, x, "int4pack")
    assert not chooser.unfit and bool(((y.double() - exact).abs() <= bound).all())
    y, chooser = through(found, x, "int4decoded")  # one of weights instead of the planes'
    bound = U * (3.03 * spread + 1.01 * (exact.abs() + spread * U)) + 1e-6 * spread
    assert not chooser.unfit and bool(((y.double() - exact).abs() <= bound).all())


@settings(max_examples=15)
@given(n_out=st.integers(1, 70), n_in=st.integers(1, 300), rows=st.integers(1, 40))
def test_int8pack_errs_by_the_roundings_it_says(n_out, n_in, rows):
    grid = Integer(bits=8, group="row", convention="full-range")
    W, x = draw(n_out, n_in), draw(rows, n_in, seed=1)
    found = quantize_matrix(W, recipe=Recipe(weights=Target(grid)))
    exact = x.double() @ found.dequantize().double().T
    spread = x.abs().double() @ found.dequantize().double().abs().T
    for name, outputs in (("int8pack", 1.01), ("int8decoded", 2.03)):  # how often outputs are rounded
        y, chooser = through(found, x, name)
        bound = U * (2.02 * spread + outputs * (exact.abs() + 2 * spread * U)) + 1e-6 * spread
        assert not chooser.unfit and bool(((y.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("method", WEIGHTS, ids=lambda method: method.name)
def test_every_method_s_weights_multiply_as_they_dequantize(method):
    W, X = draw(64, 128), draw(160, 128, seed=1)
    try:
        found = quantize_matrix(W, method=method.name, bits=bits_of(method), X=X)
    except ValueError as error:
        pytest.skip(str(error))  # what takes a whole model has its turn in test_runtime_tokens
    again = Quantized.from_bytes(found.to_bytes(), found.header())
    wanted = X[:20].double() @ found.dequantize().double().T
    scale = wanted.square().mean().sqrt()
    for name in ("dense", "dequantize"):
        y, chooser = through(again, X[:20], name)
        assert not chooser.unfit
        assert float((y.double() - wanted).abs().max() / scale) < 1e-5  # sums of 128 products in float32
    y, _ = through(again, X[:20], "int4pack")  # or dequantized
    assert float((y.double() - wanted).square().mean().sqrt() / scale) < 2 * U  # three roundings in the mean square


def test_a_grid_is_affine_by_its_values_and_not_by_its_name():
    W = draw(48, 256)
    taken = {}
    for name, bits in (("rtn", 4), ("rtn", 8), ("hqq", 3), ("ternary", None), ("q4_0", None), ("q4_k", None),
                       ("q8_0", None), ("nf4", None), ("mxfp4", None), ("fp8", None), ("magnitude-24", 4)):  # fmt: skip
        core = core_of(quantize_matrix(W, method=name, bits=bits))
        found = affine(core.codes, core.fitted)
        taken[name, bits] = None if found is None else found.group
        if found is not None:
            again = found.expanded(found.base) + found.expanded(found.scale) * found.codes
            torch.testing.assert_close(again.float(), core.dequantized(), rtol=0, atol=2.0**-20 * float(W.abs().max()))
            q, z = found.raised
            steps = q - 8 if found.top < 16 else 16 * (q // 16 - 8) + q % 16 - 8
            torch.testing.assert_close(found.expanded(found.scale) * steps + found.expanded(z), again)
    assert taken["rtn", 4] == taken["rtn", 8] == 128 and taken["hqq", 3] is not None
    assert taken["q4_0", None] == taken["q4_k", None] == taken["q8_0", None] == 32
    assert taken["nf4", None] is None and taken["mxfp4", None] is None and taken["fp8", None] is None


def test_groups_in_an_order_of_their_own_are_not_affine():
    found = quantize_matrix(draw(8, 256), method="rtn", bits=4)
    fitted = core_of(found).fitted.in_order(torch.randperm(256, generator=torch.Generator().manual_seed(0)))
    assert affine(found.codes, fitted) is None


def test_int4pack_reads_the_bytes_it_should():
    core = core_of(quantize_matrix(draw(64, 256), method="rtn", bits=4, group=128))
    assert product_named("int4pack").prepare(core, torch.bfloat16, CPU).n_bytes == 64 * 256 // 2 + 64 * 2 * 4
    core = core_of(quantize_matrix(draw(64, 256), method="rtn", bits=8, group=128))
    assert product_named("int4pack").prepare(core, torch.bfloat16, CPU).n_bytes == 64 * 256 + 2 * 64 * 2 * 4


@settings(max_examples=20)
@given(bits=st.integers(1, 8), n_out=st.integers(1, 9), n_in=st.integers(1, 40))
def test_dequantize_keeps_codes_packed_and_in_order(bits, n_out, n_in):
    grid = Integer(bits=bits, group="row", convention="half-integer")
    core = core_of(quantize_matrix(draw(n_out, n_in), recipe=Recipe(weights=Target(grid))))
    prepared = product_named("dequantize").prepare(core, torch.float32, CPU)
    assert torch.equal(torch.cat([piece.codes() for piece in prepared.pieces], 1), core.codes)
    assert sum(p.packed.nbytes for p in prepared.pieces) <= -(
        -n_out * n_in * {3: 4, 5: 8, 6: 8, 7: 8}.get(bits, bits) // 8
    )


def test_wide_matrices_are_dequantized_in_pieces(monkeypatch):
    monkeypatch.setattr("suite.runtime.dequantized._AT_ONCE", 8 * 40)
    found, x = quantize_matrix(draw(8, 100), method="rtn", bits=4, group=32), draw(3, 100, seed=1)
    prepared = product_named("dequantize").prepare(core_of(found), torch.float32, CPU)
    assert [p.columns for p in prepared.pieces] == [slice(0, 40), slice(40, 80), slice(80, 100)]
    torch.testing.assert_close(prepared(x), x @ found.dequantize().T)


def test_bias_frame_and_channel_scale_pass_through():
    W, X, bias = draw(64, 128), draw(40, 128, seed=1), draw(64, seed=2)
    for method, bits in (("quip-sharp", 2), ("awq", 4)):
        found = quantize_matrix(W, method=method, bits=bits, X=X)
        layer = PackedLinear(found, bias, Chooser("dequantize").prepare, CPU)
        torch.testing.assert_close(layer(X[None]), X[None] @ found.dequantize().T + bias, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transforms", ["()", "(Incoherence(),)", "(SmoothScale(),)", "(SmoothScale(), Incoherence())"])
def test_a_side_branch_passes_beside_all_that_is_around_the_product(transforms):
    W, X, bias = draw(64, 128), draw(40, 128, seed=1), draw(64, seed=2)
    text = f"Recipe(transforms={transforms}, weights=Target(Integer(bits=3)), adaptation=LowRank(rounds=2))"
    found = quantize_matrix(W, recipe=parse(text), X=X)
    layer = PackedLinear(found, bias, Chooser("dequantize").prepare, CPU)
    plain = PackedLinear(replace(found, side=None), bias, Chooser("dequantize").prepare, CPU)
    torch.testing.assert_close(layer(X[None]), X[None] @ found.dequantize().T + bias, rtol=1e-4, atol=1e-4)
    assert layer.n_bytes == plain.n_bytes + 4 * 16 * (64 + 128)


def test_the_kernel_multiplies_what_it_can_under_the_interpreter():
    if not interpreted():
        pytest.skip("Triton was imported before TRITON_INTERPRET was set, or there is a GPU")
    W, x = draw(24, 160), draw(3, 160, seed=1).to(torch.bfloat16)
    for bits, convention in ((2, "asymmetric"), (3, "full-range"), (4, "asymmetric"), (8, "full-range")):
        grid = Integer(bits=bits, group=32, convention=convention)
        found = quantize_matrix(W, recipe=Recipe(weights=Target(grid)))
        y, chooser = through(found, x, "kernel", torch.bfloat16)
        exact = x.double() @ found.dequantize().double().T
        assert not chooser.unfit
        # decoded exactly, float32 sums; bfloat16 at the end, which the interpreter truncates to: twice the roundoff
        assert bool(((y.double() - exact).abs() <= 2 * U * exact.abs() + 1e-4 * exact.square().mean().sqrt()).all())


FORMATS = "nf4 nf2 fp4 mxfp4 nvfp4 mxfp6 mxfp6-e3m2 mxfp8 fp8 fp6 ternary lloyd-max q4_k"
FORMATS = [*FORMATS.split(), "quip-sharp", "qtip"]


@pytest.mark.parametrize("name", FORMATS)
def test_formats_have_kernels_under_the_interpreter(name):
    if not interpreted():
        pytest.skip("Triton was imported before TRITON_INTERPRET was set, or there is a GPU")
    (method,) = (method for method in METHODS if method.name == name)
    W, x = draw(24, 128), draw(3, 128, seed=1).to(torch.bfloat16)
    bits = 2 if name in ("quip-sharp", "qtip") else bits_of(method)
    found = quantize_matrix(W, method=name, bits=bits, H=torch.eye(128))
    y, chooser = through(found, x, "kernel", torch.bfloat16)
    exact = x.double() @ found.dequantize().double().T
    spread = x.double().abs() @ found.dequantize().double().abs().T
    assert not chooser.unfit
    # a table's entries to bfloat16, and outputs, which the interpreter truncates to: twice the roundoff
    assert bool(
        ((y.double() - exact).abs() <= 2 * U * exact.abs() + U * spread + 1e-4 * exact.square().mean().sqrt()).all()
    )


def test_a_measurement_decides_and_is_kept():
    found = quantize_matrix(draw(64, 128), method="rtn", bits=4)
    chooser = Chooser(dtype=torch.bfloat16)
    first, second = (PackedLinear(found, None, chooser.prepare, CPU) for _ in range(2))
    ((key, measured),) = chooser.measured.items()
    assert key == ("Target(Integer(bits=4))", (64, 128)) and not chooser.unfit
    all_of_one_row = {"int4pack", "int4decoded", "int8pack", "int8decoded", "dequantize"}  # a group is a row here
    assert set(measured.microseconds[0]) == all_of_one_row and len(measured.microseconds) == len(ROWS)
    best = [min(times, key=times.get) for times in measured.microseconds]
    assert measured.taken[0] == best[0] and measured.since[0] == 1 and list(measured.since) == sorted(measured.since)
    assert [name for i, name in enumerate(best) if i == 0 or name != best[i - 1]] == list(measured.taken)
    words = {name: product_named(name).reads or name for name in all_of_one_row}
    assert all(words[name] == words[best[0]] for times in measured.microseconds[1:] for name in times)
    assert str(first.by_rows) == str(second.by_rows)
    assert sum(one.n_bytes for one in first.by_rows.products[:1]) == first.n_bytes


def test_products_of_the_same_words_hold_them_once():
    core = core_of(quantize_matrix(draw(64, 128), method="rtn", bits=4, group=64))
    first, second = (product_named(name).prepare(core, torch.bfloat16, CPU) for name in ("int4pack", "int4decoded"))
    assert second.packed is first


def test_products_by_rows():
    found = ByRows(("a", "b", "c"), (1, 7, 65))
    assert [found.at(rows) for rows in (1, 6, 7, 64, 65, 1000)] == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize(("bits", "group"), [(2, 32), (4, 64), (8, 96)])
def test_words_decode_as_their_plain_twin(bits, group):
    recipe = Recipe(weights=Target(Integer(bits=bits, group=group, convention="real-zero")))
    core = core_of(quantize_matrix(draw(100, 200), recipe=recipe))
    packed = product_named("int4pack").prepare(core, torch.bfloat16, CPU)
    decoded = product_named("int4decoded").prepare(core, torch.bfloat16, CPU)
    every = decoded(torch.eye(200, dtype=torch.bfloat16)).T  # one product each: exactly the weights
    found, (q, z) = core.affine.grouped(256), core.affine.grouped(256).raised
    s, z = (found.expanded(x.to(torch.bfloat16)).float() for x in (found.scale, z))
    if bits > 4:
        high = found.expanded((16 * found.scale).to(torch.bfloat16)).float()
        wanted = ((q >> 4) - 8) * high + z + ((q & 15) - 8) * s
    else:
        wanted = (q - 8) * s + z
    assert torch.equal(every, wanted.to(torch.bfloat16)) and packed.planes == 1 + (bits > 4)


def test_words_are_decoded_by_many_threads_and_in_pieces(monkeypatch):
    core = core_of(quantize_matrix(draw(300, 96), method="rtn", bits=4, group=32))
    decoded, x = product_named("int4decoded").prepare(core, torch.bfloat16, CPU), draw(9, 96, seed=1).to(torch.bfloat16)
    whole = decoded(x)
    monkeypatch.setattr("suite.runtime.packed_integers._AT_ONCE", 2 * 64 * 96)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert torch.equal(decoded(x), whole)


def test_exact_choosers_take_products_that_round_nothing():
    chooser = Chooser(exact=True)
    PackedLinear(quantize_matrix(draw(64, 128), method="rtn", bits=4), None, chooser.prepare, CPU)
    (measured,) = chooser.measured.values()
    assert set(measured.microseconds[0]) == {"dequantize"}  # "dense" is for those who ask for it


def test_what_a_product_does_not_compute_is_dequantized_and_said():
    for method, bits, name, reason in (("nf4", None, "int4pack", "not evenly spaced"),
                                       ("rtn", 4, "int8pack", "groups of 64")):  # fmt: skip
        found = quantize_matrix(draw(32, 128), method=method, bits=bits, group=64) if bits else quantize_matrix(
            draw(32, 128), method=method)  # fmt: skip
        y, chooser = through(found, draw(2, 128), name)
        (said,) = chooser.unfit.values()
        assert name in said and reason in said
        torch.testing.assert_close(y, draw(2, 128) @ found.dequantize().T)


def test_unknown_products_are_refused():
    with pytest.raises(ValueError, match="product 'int5pack': expected one of int4pack, int4decoded, int8pack"):
        Chooser("int5pack")
    assert len({product.name for product in PRODUCTS}) == len(PRODUCTS)


def test_a_group_of_one_value_is_no_kernel_s():
    found = quantize_matrix(
        torch.full((16, 64), 3.0), recipe=Recipe(weights=Target(Integer(bits=4, group=32, convention="real-zero")))
    )
    core = core_of(found)
    core.fitted.scale.zero_()
    core.affine.base.fill_(3.0)
    with pytest.raises(Unfit, match="all the same"):
        product_named("kernel").prepare(core, torch.bfloat16, CPU)


@pytest.mark.parametrize("name", tiny.ARCHITECTURES)
def test_an_unquantized_model_generates_as_transformers_does(name, tmp_path):
    architecture, options = tiny.ARCHITECTURES[name]
    path = tiny.save(tiny.model_of(architecture, **options), tmp_path / "model")
    prompt = torch.arange(3, 15)
    found = generate(plain_runtime(load_model(str(path)), torch.float32), prompt, 20)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = model.generate(prompt[None], max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=0,
                                eos_token_id=None)  # fmt: skip
    assert found.tokens.tolist() == wanted[0, 12:].tolist()


@pytest.fixture(scope="module")
def packed_llama(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    path = tiny.save(tiny.model_of("llama", hidden_size=64, intermediate_size=96), root / "model")
    tokens = [str(tiny.save_tokens(root / f"{name}.npy", 6, tiny.CONTEXT, seed)) for seed, name in enumerate("ab", 1)]
    options = {"calibration": tokens[0], "evaluation": tokens[1], "store": root / "s.db", "jobs": 1}
    run(str(path), recipes=["Recipe(weights=Target(Integer(bits=4, group=32)))"], save=root / "packed", **options)
    return root / "packed", path, options


def test_the_runtime_never_holds_weights_dense_unless_asked(packed_llama):
    packed = PackedModel.open(str(packed_llama[0]))
    runtime = packed_runtime(packed, chooser_for(packed, "int4pack"))
    layers = runtime.packed_layers
    assert len(layers) == 3 * 7 and not any(
        p.numel() >= 64 * 32 for layer in layers.values() for p in layer.parameters()
    )
    # bfloat16 outside the layers: head, norms; in them 4 bits, and two bfloat16 for each group of 32
    weights = 3 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 96)
    filled = 3 * (4 * 64 * 64 + 2 * 128 * 64 + 64 * 96)  # words are of 64 outputs each
    assert runtime.token_bytes == 2 * tiny.VOCABULARY * 64 + 2 * 7 * 64 + filled // 2 + 4 * filled // 32
    dense = packed_runtime(packed, chooser_for(packed, "dense"))
    assert dense.token_bytes == 2 * tiny.VOCABULARY * 64 + 2 * 7 * 64 + 2 * weights


def test_generation_on_the_kernels_under_the_interpreter(packed_llama):
    if not interpreted():
        pytest.skip("Triton was imported before TRITON_INTERPRET was set, or there is a GPU")
    packed = PackedModel.open(str(packed_llama[0]))
    wanted = generate(packed_runtime(packed, None), torch.arange(3, 6), 2, keep=True)
    chooser = Chooser("kernel", dtype=torch.float32)
    found = generate(packed_runtime(packed, chooser), torch.arange(3, 6), 2, forced=wanted.tokens, keep=True)
    assert not chooser.unfit
    half = generate(packed_runtime(packed, Chooser("dense", dtype=torch.bfloat16)), torch.arange(3, 6), 2,
                    forced=wanted.tokens, keep=True)  # fmt: skip
    allowed = 4 * (half.logits - wanted.logits).square().mean().sqrt()  # what bfloat16 alone does, truncating twice
    assert float((found.logits - wanted.logits).square().mean().sqrt()) < float(allowed)


def test_evaluation_by_a_product_agrees_with_the_dequantized_model(packed_llama):
    _, path, options = packed_llama
    recipes = ["Recipe(weights=Target(Integer(bits=4, group=32)))"]
    plain, dense, packed = (
        run(str(path), recipes=recipes, product=p, **options)[0] for p in (None, "dense", "int4pack")
    )
    assert (dense.ppl, dense.kl, dense.top1) == (plain.ppl, plain.kl, plain.top1)
    assert dense.cell == plain.cell == packed.cell and len({r.env for r in (plain, dense, packed)}) == 3
    assert "product int4pack on cpu" in packed.env and packed.ppl != plain.ppl
    # the stated tolerance: of the perplexity the unit roundoff of bfloat16, of the divergence four times that and 1e-4
    assert abs(packed.ppl / plain.ppl - 1) < U and abs(packed.kl - plain.kl) < 4 * U * plain.kl + 1e-4
    assert packed.fallbacks == ()


def test_a_packed_model_is_evaluated_by_a_product_too(packed_llama):
    path, _, options = packed_llama
    plain, packed = (run(str(path), product=p, **options)[0] for p in (None, "int4pack"))
    assert packed.status == "ok" and abs(packed.ppl / plain.ppl - 1) < U
    said = run(str(path), product="int8pack", **options)[0]
    assert said.ppl == plain.ppl and any("int8pack does not take" in text for text in said.fallbacks)


def test_records_name_their_product(packed_llama):
    path, _, options = packed_llama
    for wrong, text in ((("auto", "cpu"), "needs the product's name"), (("kernel", "cpu"), "computes on cuda"),
                        (("int3", "cpu"), "expected one of")):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            run(str(path), product=wrong[0], device=wrong[1], **options)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="there is no GPU"):
            run(str(path), device="cuda", **options)


def test_generate_refuses_what_does_not_fit(packed_llama):
    runtime = packed_runtime(PackedModel.open(str(packed_llama[0])), None)
    for prompt, tokens in ((torch.arange(0), 3), (torch.arange(3), 0), (torch.arange(60), 6)):
        with pytest.raises(ValueError, match="tokens behind a prompt"):
            generate(runtime, prompt, tokens)
    assert len(generate(runtime, torch.arange(60), 5).tokens) == 5


def test_measurements_are_json(packed_llama):
    from suite.runtime.record import measure_speed

    row = measure_speed(str(packed_llama[0]), prompt=8, tokens=4, rounds=2)
    found = json.loads(row.products)
    assert sum(one["layers"] for one in found["taken"]) == 21 and len(found["measured"]) == 4
    assert row.decode > 0 and np.isfinite(row.decode_ratio) and row.roofline > 0 and row.overhead is not None
    assert row.decode_low <= row.decode <= row.decode_high
