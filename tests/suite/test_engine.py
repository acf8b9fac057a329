import json
import math
import os
import shutil
from collections import Counter
from dataclasses import asdict, fields, replace

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from suite import engine
from suite.calibration import Calibration
from suite.cells import picks
from suite.methods import METHODS
from suite.models.architecture import architecture_of
from suite.models.checkpoint import load_model
from suite.readback import PackedModel, read_packed
from suite.recipe import Recipe, parse
from suite.store import VOLATILE, Store

UNTRAINED = [method for method in METHODS if method.needs != "training"]
NAMES = [method.name for method in UNTRAINED]
LAYERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
N_LAYERS = 3 * len(LAYERS)
MIXED = (
    'Recipe(weights=Target(Integer(bits=4, group=16)), layers=(("*.down_proj", Target(Integer(bits=8, group=16))), '
    '("model.layers.0.*", Target(Integer(bits=2, group=16)))))'
)


@pytest.fixture
def run(llama, inputs, tmp_path):
    """`suite.run` on the small model, into a store of the test's own."""

    def go(model=llama, store="s.db", **options):
        options = {"methods": ["rtn"], "bits": [4], "jobs": 1, **inputs, **options}
        return engine.run(str(model), store=tmp_path / store, **options)

    return go


def stable(records):
    """What is reproducible of records, by cell and code."""
    drop = {name: None for name in VOLATILE} | {"started": ""}
    return {(r.cell, r.code): asdict(replace(r, **drop)) for r in records}


def test_a_record_has_every_field_of_the_contract_and_figures_that_fit_together(run, llama, inputs, tmp_path):
    (record,) = run(methods=["gptq"], command="how it was asked for")
    contract = """cell, code, env, status, reason, model, model_sha256, data_sha256, method, recipe, bits, bpw,
        bpw_entropy, bpw_coded, model_bytes, ppl, ppl_base, kl, kl_se, kl_p99, top1, nmse, hnmse, bound, accuracy,
        cache_bytes, tokens_per_second, seconds, peak_mib, seed, fallbacks, command, started""".replace("\n", " ")
    assert {name.strip() for name in contract.split(",")} <= set(asdict(record))
    assert (record.status, record.reason) == ("ok", None)
    assert (record.method, record.bits, record.seed) == ("gptq", 4, 0)
    assert (record.model, record.model_sha256) == (str(llama), load_model(str(llama)).sha256)
    assert record.recipe == str(parse(record.recipe)) and record.command == "how it was asked for"
    assert 4 < record.bpw_entropy < record.bpw < 6  # groups of 48 and 80 with 20 bits beside 4 of each weight
    assert record.kl > 0 and record.kl_p99 > record.kl and 0 < record.top1 < 1 and record.kl_se > 0
    assert record.ppl > 0 and record.ppl_base > 0 and record.ppl_se > 0 and math.isfinite(record.kl_se)
    assert record.hnmse < record.nmse  # error feedback lowers the one at the other's expense
    assert record.seconds > 0 and record.peak_mib > 10 and record.fallbacks == ()
    assert record.hnmse < record.bound < math.inf  # with feedback on integers there is a theorem
    unmeasured = (record.accuracy, record.cache_bytes, record.tokens_per_second)
    assert unmeasured == (None,) * 3
    with Store(tmp_path / "s.db", create=False) as store:
        assert store.records() == [record]


def test_bits_per_weight_are_the_layers_exact_bits_over_their_weights(run, tmp_path):
    (record,) = run(recipes=[MIXED], methods=[])
    with Store(tmp_path / "s.db", create=False) as store:
        layers = store.layers(record)
        spectra = store.spectra(record)
    assert len(layers) == N_LAYERS
    assert record.bpw == sum(x.n_bits for x in layers) / sum(x.n_out * x.n_in for x in layers)
    assert record.bpw_entropy == sum(x.entropy_bits for x in layers) / sum(x.n_out * x.n_in for x in layers)
    assert record.bpw_coded == sum(x.coded_bits for x in layers) / sum(x.n_out * x.n_in for x in layers)
    assert all(x.entropy_bits < x.coded_bits for x in layers)
    assert [(s.layer, s.n_out, len(s.eigenvalues)) for s in spectra] == [(x.layer, x.n_out, x.n_in) for x in layers]
    for x in layers:  # first match wins: down projections of block 0 have 8 bits, the rest of block 0 two
        width = 8 if x.layer.endswith("down_proj") else 2 if ".0." in x.layer else 4
        groups = x.n_out * -(-x.n_in // 16)
        assert (x.n_bits, x.group_size) == (x.n_out * x.n_in * width + groups * (16 + width), 16)


def test_errors_are_those_of_the_weights_and_the_unquantized_models_inputs(run, llama, inputs, tmp_path):
    (record,) = run(methods=["awq"], save=tmp_path / "out")
    checkpoint = load_model(str(llama))
    bench = engine.open_bench(engine.Setting(model=str(llama), **inputs, calibration_tokens=1 << 15,
                                             evaluation_tokens=1 << 16), 0)  # fmt: skip
    kept = Calibration.of(checkpoint, bench.calibration, 1)
    with Store(tmp_path / "s.db", create=False) as store:
        layers = {x.layer: x for x in store.layers(record)}
    packed = dict(read_packed(tmp_path / "out"))
    # down projections are scaled by the rows of the up projection: undo it with what the packed norm and rows say
    block, name = checkpoint.block(1), "model.layers.1.mlp.gate_proj"
    W = block.mlp.gate_proj.weight.double()
    norm = load_file(tmp_path / "out/block-00001.safetensors")["model.layers.1.post_attention_layernorm.weight"]
    s = block.post_attention_layernorm.weight / norm  # what the transform divided the gain by
    E = W - packed[name].dequantize() / s.double()
    H = kept.statistics(1)["mlp.gate_proj"].gram
    # weights are scaled and unscaled in float32, the sums here are in float64
    assert layers[name].nmse == pytest.approx(float((E**2).sum() / (W**2).sum()), rel=1e-4)
    assert layers[name].hnmse == pytest.approx(float(((E @ H) * E).sum() / ((W @ H) * W).sum()), rel=1e-4)


def test_the_same_cell_gives_the_same_record_in_any_order_and_number_of_jobs(run):
    bits = [2, 4]
    first = stable(run(methods=NAMES, bits=bits))
    assert len(first) == len(picks(UNTRAINED, bits))
    backwards = stable(run(methods=NAMES[::-1], bits=[4], store="backwards.db"))
    moved = [method.name for method in UNTRAINED[2:] + UNTRAINED[:2] if 2 in method.bits]
    two_jobs = stable(run(methods=moved, bits=[2], store="two.db", jobs=2))
    for again in (backwards, two_jobs):
        assert again == {key: first[key] for key in again}
    assert len(backwards) + len(two_jobs) >= len(first)


def test_a_second_run_does_nothing_and_returns_the_same(run, monkeypatch):
    first = run(methods=["rtn", "hqq"], bits=[1, 3])
    assert {r.status for r in first} == {"ok", "skipped"}
    monkeypatch.setattr(engine, "run_cell", lambda *arguments: pytest.fail("a finished cell ran again"))
    done = []
    assert stable(run(methods=["rtn", "hqq"], bits=[1, 3], on_done=done.append)) == stable(first)
    assert done == []


def test_a_combination_that_makes_no_sense_is_a_recorded_skip(run):
    (record,) = run(bits=[1])
    assert record.status == "skipped" and "half-integer" in record.reason
    assert (record.bpw, record.kl, record.ppl, record.seconds) == (None,) * 4


def test_a_cell_that_fails_is_recorded_the_others_go_on_and_it_is_tried_again(run, monkeypatch):
    whole = engine.measure

    def fail_at_three_bits(bench, pick, blank):
        if pick.bits == 3:
            raise RuntimeError("no luck\nand more of it")
        return whole(bench, pick, blank)

    monkeypatch.setattr(engine, "measure", fail_at_three_bits)
    records = {r.bits: r for r in run(bits=[2, 3, 4])}
    assert {bits: r.status for bits, r in records.items()} == {2: "ok", 3: "failed", 4: "ok"}
    assert records[3].reason == "RuntimeError: no luck" and records[3].kl is None
    monkeypatch.setattr(engine, "measure", whole)
    done = []
    again = {r.bits: r for r in run(bits=[2, 3, 4], on_done=done.append)}
    assert [r.bits for r in done] == [3] and again[3].status == "ok"
    assert (again[2], again[4]) == (records[2], records[4])


def _die_at_three_bits(setting, seed, pick):  # at the top level, so that another process can find it
    if pick.bits == 3:
        os._exit(9)
    return _run_cell(setting, seed, pick)


_run_cell = engine.run_cell


def test_a_process_that_dies_fails_its_own_cell_and_no_other(run, monkeypatch):
    monkeypatch.setattr(engine, "run_cell", _die_at_three_bits)
    records = {r.bits: r for r in run(bits=[2, 3], jobs=2)}
    assert {bits: r.status for bits, r in records.items()} == {2: "ok", 3: "failed"}
    assert records[3].reason == "the process running this cell died"


def test_recipes_as_text_and_as_values_are_the_same_cells(run):
    recipe = parse(MIXED)
    (record,) = run(methods=None, recipes=[recipe, MIXED, str(recipe)])
    assert (record.method, record.bits, record.recipe) == ("custom", 4, str(recipe))


def test_a_recipe_that_changes_nothing_has_no_divergence(run, llama):
    (record,) = run(methods=[], recipes=[Recipe()])
    assert (record.status, record.kl, record.top1, record.ppl) == ("ok", 0.0, 1.0, record.ppl_base)
    assert (record.bpw, record.nmse, record.hnmse) == (None,) * 3


def test_eight_bits_are_nearly_the_model_and_two_are_not(run):
    by_bits = {r.bits: r for r in run(bits=[2, 4, 8])}
    assert by_bits[8].kl < by_bits[4].kl / 10 < by_bits[2].kl / 10
    # a bit more quarters the squared error of fine steps, and divergence goes with it: 256-fold for four
    assert by_bits[8].nmse == pytest.approx(by_bits[4].nmse / 256, rel=0.5)


@pytest.mark.parametrize("method", NAMES)
def test_the_packed_directory_has_model_bytes_and_gives_back_what_was_evaluated(method, run, tmp_path):
    (record,) = run(methods=[method], bits=[3], save=tmp_path / "packed", export=tmp_path / "exported")
    packed, exported = tmp_path / "packed", tmp_path / "exported"
    assert record.model_bytes == sum(file.stat().st_size for file in packed.iterdir() if file.is_file())
    weights = {key: t for file in exported.glob("*.safetensors") for key, t in load_file(file).items()}
    found = dict(read_packed(packed))
    weighed = record.bpw is not None  # or the cache alone is quantized
    assert set(found) == {f"model.layers.{i}.{layer}" for i in range(3) for layer in LAYERS if weighed}
    maps = PackedModel.open(str(packed)).maps
    for name, quantized in found.items():
        assert torch.equal(without(maps, name, quantized.dequantize()), weights[f"{name}.weight"])
    n_bits = sum(q.n_bits for q in found.values()) + sum(m.n_bits for chain in maps.values() for m in chain)
    assert not weighed or record.bpw == n_bits / sum(weights[f"{name}.weight"].numel() for name in found)


def without(maps, name, W):
    """A layer's weights before the maps that its inputs pass through, which go by the first layer of its site."""
    site = next(site for site in architecture_of("llama").sites if name.endswith(site.layers))
    layer = next(layer for layer in site.layers if name.endswith(layer))
    for m in reversed(maps.get(name.removesuffix(layer) + site.layers[0], ())):
        W = m.from_weights(W)
    return W


def test_outputs_are_the_same_bytes_every_time_and_written_for_cells_that_are_in_the_store(run, tmp_path):
    run(methods=["gptq"])
    outputs = []
    for name in ("a", "b"):
        run(methods=["gptq"], save=tmp_path / name / "packed", export=tmp_path / name / "exported")
        root = tmp_path / name
        outputs.append({p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()})
    assert outputs[0] == outputs[1] and len(outputs[0]) > 8


@pytest.mark.parametrize("variant", ["llama", "llama tied", "mistral", "qwen2", "qwen3 tied"])
def test_transformers_finds_the_recorded_perplexity_in_the_exported_directory(variant, run, inputs, tmp_path):
    architecture, options = tiny.ARCHITECTURES[variant]
    path = tiny.save(tiny.model_of(architecture, **options), tmp_path / "model")
    for method in ("gptq", "awq"):
        (record,) = run(model=path, methods=[method], bits=[3], export=tmp_path / method)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / method, dtype=torch.float32).eval()
        rows = torch.from_numpy(np.load(inputs["evaluation"]))
        with torch.no_grad():
            log_q = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
        nll = -log_q.gather(-1, rows[:, 1:, None]).double()
        # the same weights in the same modules: float32 sums in another order at most, averaged over 756 tokens
        assert record.ppl == pytest.approx(float(nll.mean().exp()), rel=1e-6)


def test_weights_stored_in_bfloat16_are_charged_and_exported_as_such(run, tmp_path):
    path = tiny.save(tiny.model_of("llama").bfloat16(), tmp_path / "half")
    (record,) = run(model=path, save=tmp_path / "packed", export=tmp_path / "exported")
    assert record.model_bytes == sum(f.stat().st_size for f in (tmp_path / "packed").iterdir() if f.is_file())
    kinds = {t.dtype for file in (tmp_path / "exported").glob("*.safetensors") for t in load_file(file).values()}
    assert kinds == {torch.bfloat16}


def test_statistics_are_computed_once_for_all_methods_widths_and_runs(run, monkeypatch, tmp_path):
    monkeypatch.setenv("BITFRONTIER_CACHE", str(tmp_path / "cache"))
    run(methods=NAMES, bits=[4])
    run(methods=["rtn", "gptq", "awq", "quarot", "spinquant", "expansion", "kvquant"], bits=[2, 3], store="other.db")
    about = [path.read_text().split()[0] for path in (tmp_path / "cache").glob("*/description.txt")]
    # statistics as the model is, as QuaRot and expansion turn it, and as SpinQuant does, by rotations learned once for
    # all widths of weights; KVQuant's tables for each width of the cache
    assert Counter(about) == {"last": 1, "statistics": 3, "rotations": 1, "cache": 3}


def test_a_run_goes_on_when_the_cache_may_hold_nothing(run, monkeypatch, tmp_path):
    first = stable(run(methods=["gptq"]))
    monkeypatch.setenv("BITFRONTIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("BITFRONTIER_CACHE_GIB", "0")
    assert stable(run(methods=["gptq"], store="other.db")) == first


def test_another_seed_or_threads_or_data_is_another_record(run, inputs):
    base = {(r.cell, r.env, r.data_sha256) for r in run()}
    other = {(r.cell, r.env, r.data_sha256) for options in ({"seed": 1}, {"threads": 2}, {"length": 32})
             for r in run(**options)}  # fmt: skip
    assert len(base | other) == 4
    swapped = {"calibration": inputs["evaluation"], "evaluation": inputs["calibration"]}
    assert not {r.data_sha256 for r in run(**swapped)} & {data for _, _, data in base | other}
    torch.set_num_threads(1)


def test_a_model_that_changed_in_place_is_another_model(run, llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "model")
    (first,) = run(model=copy)
    tiny.save(tiny.model_of("llama", seed=1), copy)
    (second,) = run(model=copy)
    assert first.model_sha256 != second.model_sha256 and first.ppl_base != second.ppl_base


def test_activations_are_quantized_where_the_recipe_says_so(run):
    (weights,), (both,) = run(bits=[8]), run(bits=[8], activation_bits=4)
    assert both.kl > 10 * weights.kl and both.bpw == weights.bpw and both.nmse == weights.nmse


def test_the_tiers_bound_calibration_and_evaluation_tokens(run, llama, tmp_path):
    many = tiny.save_tokens(tmp_path / "many.npy", 300, tiny.CONTEXT, 4)
    seen = {}
    for tier in ("smoke", "full"):
        run(tier=tier, evaluation=str(many), calibration=str(many), seed=0, store=f"{tier}.db")
        setting = engine.Setting(model=str(llama), evaluation=str(many), calibration=str(many),
                                 calibration_tokens=engine.TIERS[tier].calibration_tokens,
                                 evaluation_tokens=engine.TIERS[tier].evaluation_tokens)  # fmt: skip
        bench = engine.open_bench(setting, 0)
        seen[tier] = len(bench.calibration.rows), len(bench.evaluation.rows)
    assert seen == {"smoke": (2**12 // tiny.CONTEXT, 2**13 // tiny.CONTEXT), "full": (300, 300)}


def test_undefined_errors_are_null_in_the_store(run, llama, tmp_path):
    one = tiny.save_tokens(tmp_path / "one.npy", 1, tiny.CONTEXT, 4)  # a single row is a single cluster
    run(evaluation=str(one))
    with Store(tmp_path / "s.db", create=False) as store:
        (record,) = store.records()
    assert record.kl_se is None and record.ppl_se is None and record.kl > 0
    assert json.loads(json.dumps(asdict(record)))["kl_se"] is None
    assert {f.name for f in fields(record)} >= set(VOLATILE)
