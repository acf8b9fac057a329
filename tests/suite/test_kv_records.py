"""Caches through the harness: records, the command line, packed models."""

import json

import caches
import numpy as np
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from suite import engine
from suite.cells import picks
from suite.kv_cache.cache import QuantizedCache
from suite.kv_cache.fisher import learn
from suite.methods import method_named
from suite.models.checkpoint import load_model
from suite.recipe import Recipe
from suite.tokens import load_tokens


@pytest.fixture
def run(llama, inputs, tmp_path):
    def run(**options):
        return engine.run(str(llama), jobs=1, seed=0, store=tmp_path / "s.db", **{**inputs, **options})

    return run


@pytest.mark.parametrize("kind", caches.KINDS)
def test_the_record_says_what_a_cache_holds_after_a_row(kind, run, llama, inputs):
    target = caches.KINDS[kind]
    (record,) = run(recipes=[Recipe(cache=target)])
    assert record.status == "ok", record.reason
    assert record.bpw is record.nmse is record.hnmse is None and record.fallbacks == ()
    assert record.kl > 0
    checkpoint, model = load_model(str(llama)), AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    calibration = load_tokens(inputs["calibration"], "calibration", checkpoint, tiny.CONTEXT)
    ids = torch.from_numpy(np.load(inputs["evaluation"]))
    model.set_attn_implementation("bitfrontier")
    cache = QuantizedCache(model.config, target, learn(checkpoint, calibration, target, 1))
    caches.in_runs(model, ids, cache, [tiny.CONTEXT])
    # the mean over rows, rounded up; in float32 one value in many may change sides of an outlier's threshold
    assert record.cache_bytes == pytest.approx(cache.n_bytes / len(ids), abs=1 + 4 * 3)
    outliers = any(getattr(side.grid, "outliers", 0) for side in (target.keys, target.values))
    assert outliers or record.cache_bytes == cache.n_bytes / len(ids)
    heads, d = model.config.num_key_value_heads, model.config.head_dim
    assert record.cache_bytes < 3 * 2 * tiny.CONTEXT * heads * d * 2  # less than float16


def test_a_window_as_long_as_the_row_changes_nothing(run):
    target = method_named("kivi").recipe(bits=2, window=tiny.CONTEXT * 2).cache
    exact = Recipe(cache=caches.of(target.values.grid, window=tiny.CONTEXT * 2, exact_bits=32))
    nothing, kept, float16 = run(recipes=[Recipe(), exact, Recipe(cache=target)])
    assert nothing.kl == 0 and nothing.cache_bytes is None
    # attention of ours and of torch differ in rounding alone, of which the divergence is the square
    assert kept.kl < 1e-9 and float16.kl < 1e-4
    assert kept.cache_bytes == 2 * float16.cache_bytes


def test_weights_and_cache_are_quantized_together(run):
    alone, both = run(recipes=[method_named("kivi").recipe(bits=2, window=32, weight_bits=bits) for bits in (None, 3)])
    assert both.bpw == pytest.approx(3 + 19 / 48, abs=0.1) and both.kl > alone.kl
    assert both.cache_bytes == alone.cache_bytes and both.model_bytes < alone.model_bytes


def test_learned_tables_are_stored_with_the_model_and_nothing_else_is(run):
    plain, kvquant = run(recipes=[Recipe(), method_named("kvquant").recipe(bits=2)])
    heads_d, levels = 24, 4
    beside = 3 * 2 * (levels + 2 * heads_d + levels)  # float16, in three blocks
    names = 4 * 3 * 110  # of four tensors, with their places, in each shard's header; and recipe in the model's
    assert beside <= kvquant.model_bytes - plain.model_bytes <= beside + names + 250


def test_a_head_without_a_hadamard_matrix_is_skipped(tmp_path, inputs):
    model = tiny.save(tiny.model_of("llama", head_dim=10), tmp_path / "model")
    (record,) = engine.run(str(model), jobs=1, store=tmp_path / "s.db", **inputs,
                           recipes=[Recipe(cache=caches.quarot(4))])  # fmt: skip
    assert (record.status, record.reason) == (
        "skipped", "a head of 10 channels has no Hadamard matrix to be rotated by")  # fmt: skip


def test_cache_bits_reach_every_method_and_are_refused_for_packed_models(run, llama, inputs, tmp_path):
    for method in ("rtn", "kivi", "kvquant", "fp8"):
        (pick,) = picks([method_named(method)], [4], cache_bits=3)
        assert pick.recipe.cache.bits == 3 and pick.method == method
    (record,) = run(methods=["rtn"], bits=[4], cache_bits=8, save=tmp_path / "out")
    assert record.cache_bytes == 3 * 2 * tiny.CONTEXT * 2 * (12 + 3)  # codes, a float16 step and a zero point of 8 bits
    with pytest.raises(ValueError, match=r"cache-bits 4: .* is a packed model"):
        engine.run(str(tmp_path / "out"), cache_bits=4, store=tmp_path / "t.db")
    (again,) = engine.run(str(tmp_path / "out"), store=tmp_path / "t.db", evaluation=inputs["evaluation"], jobs=1)
    assert (again.kl, again.cache_bytes) == (record.kl, record.cache_bytes)


def test_a_recipe_of_a_cache_alone_has_the_caches_width_and_the_methods_name():
    (pick,) = picks([], [], [method_named("kivi").recipe(bits=2)])
    assert (pick.method, pick.bits) == ("kivi", 2)
    (pick,) = picks([], [], [method_named("kivi").recipe(bits=2, window=64)])
    assert (pick.method, pick.bits) == ("custom", 2)
    (pick,) = picks([], [], [Recipe(cache=caches.KINDS["values before keys"])])
    assert pick.bits == 3.5


def test_the_command_line_shows_what_caches_hold(llama, inputs, tmp_path, capsys, monkeypatch):
    from suite.commands.main import main

    arguments = ["run", str(llama), "--methods", "kivi", "--bits", "2,4", "--jobs", "1", "--store", str(tmp_path / "s")]
    monkeypatch.setattr("sys.argv", ["bitfrontier", *arguments, *(x for k, v in inputs.items() for x in (f"--{k}", v))])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0 and "cache, KiB" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["bitfrontier", "methods", "--json"])
    with pytest.raises(SystemExit):
        main()
    (row,) = [row for row in json.loads(capsys.readouterr().out) if row["name"] == "kivi"]
    assert row["targets"] == ["cache"] and row["grid"] is None and row["cache"].startswith("CacheTarget(")
