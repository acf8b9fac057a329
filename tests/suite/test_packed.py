"""A packed model is a file to keep: of the recorded size, the same bytes every time, and measured as it was written."""

import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from suite import engine
from suite.bench import open_bench
from suite.calibration import Calibration
from suite.commands.main import main
from suite.methods import METHODS
from suite.packed import Header, holds_packed
from suite.quantize import relative_errors
from suite.readback import PackedModel, read_packed
from suite.recipe import parse
from suite.store import VOLATILE, Store

UNTRAINED = [method for method in METHODS if method.needs != "training"]  # the others: test_learning
OF_THE_MODEL = ("cell", "model", "model_sha256", "command")  # a packed model is a model of its own, with its own hash
EMBEDDED = '("model.embed_tokens", Target(Integer(bits=4, group=16))), ("lm_head", Target(Integer(bits=4, group=16)))'
RECIPES = {
    "nothing": "Recipe()",
    "a mixed map": 'Recipe(weights=Target(Integer(bits=4, group=16)), layers=(("*.down_proj", Target(Integer(bits=8, '
    'group="row"))), ("model.layers.0.*", Target(Integer(bits=2, group=16, convention="span")))))',
    "some layers alone": 'Recipe(transforms=(AwqScale(),), layers=(("*.1.mlp.*", Target(Integer(bits=3, group=16))),))',
    "static activations": 'Recipe(transforms=(SmoothScale(),), weights=Target(Integer(bits=4, group="row")), '
    'activations=Target(Integer(bits=8, group="tensor", convention="full-range", scale_bits=32)))',
    "activations alone": 'Recipe(activations=Target(Integer(bits=6, group="row", convention="full-range")))',
    "activations in NVFP4": 'Recipe(weights=Target(Integer(bits=4, group=16)), activations=Target(Scaled('
    'element="e2m1", group=16, scale=TwoLevel(), pad=True)))',
    "clipped activations that Qronos corrects": 'Recipe(weights=Target(Integer(bits=3, group=16), Qronos()), '
    'inputs="quantized", activations=Target(Integer(bits=4, group=16, convention="full-range", clip=ClipRatio(0.9))))',
    "groups in an order of their own": 'Target(Integer(bits=3, group=16), Feedback(order="decreasing"))',
    "embedding and head": f"Recipe(weights=Target(Integer(bits=4, group=16)), layers=({EMBEDDED}))",
    "everything at once": f'Recipe(transforms=(AwqScale(),), weights=Target(Integer(bits=3, group=16), Feedback()), '
    f'layers=({EMBEDDED}), inputs="quantized", activations=Target(Integer(bits=8, group="tensor", '
    'convention="full-range", scale_bits=32)))',
}  # fmt: skip


@pytest.fixture
def run(llama, inputs, tmp_path):
    """`suite.run` of one cell into a store of its own; a packed model takes no calibration and no method."""

    def go(model=llama, **options):
        new = {} if holds_packed(Path(model)) else {"calibration": inputs["calibration"]}
        store = tmp_path / f"{len(list(tmp_path.glob('*.db')))}.db"
        options = {"jobs": 1, "evaluation": inputs["evaluation"], **new, **options}
        (record,) = engine.run(str(model), store=store, **options)
        with Store(store, create=False) as opened:
            return record, opened.layers(record)

    return go


def size(path):
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def figures(record):
    return {key: value for key, value in asdict(record).items() if key not in (*VOLATILE, *OF_THE_MODEL)}


def is_the_same_read_back(run, path, **options):
    """Save a cell, read the directory back, and compare everything that was recorded, field by field."""
    written, layers = run(**options, save=path)
    assert written.status == "ok", written.reason
    assert written.model_bytes == size(path)
    read, again = run(path)
    assert figures(read) == figures(written) and again == layers
    assert read.model == str(path) and read.model_sha256 != written.model_sha256 and read.cell != written.cell
    return written


@pytest.mark.parametrize("method", UNTRAINED, ids=lambda method: method.name)
def test_every_method_has_the_recorded_size_and_is_measured_as_it_was_written(method, run, tmp_path):
    bits = 3 if 3 in method.bits else method.bits[0]
    assert method.recipe(bits=bits).unsupported is None
    is_the_same_read_back(run, tmp_path / "out", methods=[method.name], bits=[bits])


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", ["llama", "qwen3 tied"])
def test_every_kind_of_recipe_is_measured_as_it_was_written(recipe, variant, run, tmp_path):
    architecture, options = tiny.ARCHITECTURES[variant]
    model = tiny.save(tiny.model_of(architecture, **options), tmp_path / "model")
    record = is_the_same_read_back(run, tmp_path / "out", model=model, recipes=[RECIPES[recipe]])
    assert (record.bpw is None) == (recipe in ("nothing", "activations alone"))


@pytest.mark.parametrize("variant", tiny.ARCHITECTURES)
def test_every_architecture_is_measured_as_it_was_written(variant, run, tmp_path):
    architecture, options = tiny.ARCHITECTURES[variant]
    model = tiny.save(tiny.model_of(architecture, **options), tmp_path / "model")
    is_the_same_read_back(run, tmp_path / "out", model=model, recipes=[RECIPES["everything at once"]])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("recipe", ["some layers alone", "everything at once"])
def test_what_is_stored_in_another_type_is_evaluated_as_it_is_stored(kind, recipe, run, tmp_path):
    model = tiny.save(tiny.model_of("llama").to(kind), tmp_path / "model")
    is_the_same_read_back(run, tmp_path / "out", model=model, recipes=[RECIPES[recipe]])
    norm = load_file(tmp_path / "out" / "block-00000.safetensors")["model.layers.0.input_layernorm.weight"]
    assert norm.dtype == kind


@pytest.mark.parametrize("model", [pytest.param("reference", marks=pytest.mark.slow), "reference+outliers"])
def test_the_shipped_models_are_known_again_with_rows_of_their_own(model, run, inputs, tmp_path):
    options = {"evaluation": None, "tier": "smoke"}
    written, _ = run(model, methods=["rtn"], bits=[4], save=tmp_path / "out", **options)
    assert figures(run(tmp_path / "out", **options)[0]) == figures(written)
    shutil.rmtree(tmp_path / "out" / "about")  # even where only the model's own files are left
    read, layers = run(tmp_path / "out", **options)
    unknown = dict(nmse=None, hnmse=None, bound=None, fallbacks=("nmse, hnmse: the directory does not say",))
    assert figures(read) == figures(written) | unknown and layers == []


def test_other_evaluation_tokens_are_measured_like_the_model_itself(run, inputs, tmp_path):
    recipe = RECIPES["everything at once"]
    run(recipes=[recipe], save=tmp_path / "out")
    short = tiny.save_tokens(tmp_path / "short.npy", 5, 17, 3)
    for tokens in (inputs["calibration"], str(short)):
        read, direct = run(tmp_path / "out", evaluation=tokens)[0], run(recipes=[recipe], evaluation=tokens)[0]
        assert figures(read) == figures(direct)


def test_a_packed_model_is_measured_again_each_time_it_is_asked_for(llama, inputs, tmp_path):
    options = {"evaluation": inputs["evaluation"], "store": tmp_path / "s.db", "jobs": 1}
    engine.run(str(llama), methods=["rtn"], bits=[4], save=tmp_path / "out", **options,
               calibration=inputs["calibration"])  # fmt: skip
    for _ in range(2):
        done = []
        engine.run(str(tmp_path / "out"), on_done=done.append, **options)
        assert [(r.status, r.method) for r in done] == [("ok", "rtn")]
    with Store(tmp_path / "s.db", create=False) as store:
        assert sorted(r.model for r in store.records()) == sorted([str(llama), str(tmp_path / "out")])


# what is written


def test_the_same_cell_gives_the_same_bytes_wherever_model_and_output_are(run, llama, tmp_path):
    here, there = shutil.copytree(llama, tmp_path / "here"), shutil.copytree(llama, tmp_path / "elsewhere" / "there")
    outs = tmp_path / "a", tmp_path / "deep" / "b"
    for model, out in zip((here, there), outs, strict=True):
        run(model, recipes=[RECIPES["everything at once"]], save=out)
    first, second = ({f.name: f.read_bytes() for f in out.iterdir() if f.is_file()} for out in outs)
    assert first == second and len(first) == 5
    assert not any(str(tmp_path).encode() in data for data in first.values())


def test_a_smaller_model_leaves_nothing_of_a_larger_one_that_was_there_and_other_files_as_they_were(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes").write_text("mine")
    for blocks in (3, 1):
        model = tiny.save(tiny.model_of("llama", num_hidden_layers=blocks), tmp_path / f"{blocks}")
        record, _ = run(model, methods=["rtn"], bits=[4], save=out)
    assert (out / "notes").read_text() == "mine"
    (out / "notes").unlink()
    assert record.model_bytes == size(out) == run(out)[0].model_bytes


def test_an_output_that_was_not_finished_is_no_packed_model(run, llama, tmp_path, monkeypatch):
    run(methods=["rtn"], bits=[4], save=tmp_path / "out")
    monkeypatch.setattr("suite.measure.quantize_head", lambda *arguments: 1 / 0)
    record, _ = run(methods=["rtn"], bits=[3], save=tmp_path / "out")
    assert record.status == "failed" and not holds_packed(tmp_path / "out")


def test_one_cell_is_written_into_the_directory_and_several_below_it(llama, inputs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for bits, places in (("4", ["out"]), ("3,4", ["many/rtn-", "many/rtn-"])):
        root = places[0].split("/")[0]
        words = ["run", str(llama), "--methods", "rtn", "--bits", bits, "--save", root, "--export", f"{root}-exported"]
        monkeypatch.setattr(sys, "argv", ["bitfrontier", *words, "--calibration", inputs["calibration"],
                                          "--evaluation", inputs["evaluation"], "--jobs", "1"])  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main()
        out = capsys.readouterr().out
        assert ended.value.code == 0
        written = re.findall(r"^packed: rtn at \d bits(?:, seed 0)?: (.*)$", out, re.MULTILINE)
        assert len(written) == len(places) and all(w.startswith(p) for w, p in zip(written, places, strict=True))
        assert all(holds_packed(tmp_path / w) for w in written)
        for place in re.findall(r"^dequantized: .*: (.*)$", out, re.MULTILINE):
            assert (tmp_path / place / "config.json").is_file()
    with pytest.raises(ValueError, match=r"many holds 2 packed models: name one of them, many/rtn-"):
        engine.run("many", store="other.db")


# embedding and head


@pytest.mark.parametrize("variant", ["llama", "llama tied"])
def test_a_quantized_embedding_and_head_are_what_transformers_finds_dequantized(variant, run, inputs, tmp_path):
    architecture, options = tiny.ARCHITECTURES[variant]
    path = tiny.save(tiny.model_of(architecture, **options), tmp_path / "model")
    record, layers = run(path, recipes=[RECIPES["embedding and head"]], save=tmp_path / "p", export=tmp_path / "e")
    plain, _ = run(path, recipes=["Target(Integer(bits=4, group=16))"])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "e", dtype=torch.float32).eval()
    found = dict(read_packed(tmp_path / "p"))
    assert torch.equal(model.model.embed_tokens.weight, found["model.embed_tokens"].dequantize())
    assert ("lm_head" in found) == ("tied" not in variant)
    if "tied" not in variant:
        assert torch.equal(model.lm_head.weight, found["lm_head"].dequantize())
    rows = torch.from_numpy(np.load(inputs["evaluation"]))
    with torch.no_grad():
        log_q = model(input_ids=rows).logits[:, :-1].log_softmax(-1)
    nll = -log_q.gather(-1, rows[:, 1:, None]).double()
    assert record.ppl == pytest.approx(float(nll.mean().exp()), rel=1e-6)  # as for exported models in test_engine
    assert record.ppl_base == plain.ppl_base and record.kl != plain.kl
    # the blocks' figures are the blocks' alone; the file is smaller by what 32 - 5.25 bits a weight make
    assert (record.bpw, record.nmse, record.hnmse) == (plain.bpw, plain.nmse, plain.hnmse)
    assert not {"model.embed_tokens", "lm_head"} & {x.layer for x in layers}
    weights = tiny.VOCABULARY * 48 * (1 if "tied" in variant else 2)
    assert plain.model_bytes - record.model_bytes == pytest.approx(weights * (32 - 5.25) / 8, abs=600)  # headers


@pytest.mark.parametrize("pattern", ["*", "**", "*.layers.*"])
def test_weights_and_bare_patterns_leave_embedding_and_head_alone(pattern, run, tmp_path):
    run(recipes=[f'Recipe(weights=Target(Integer(bits=4)), layers=(("{pattern}", Target(Integer(bits=3))),))'],
        save=tmp_path / "out")  # fmt: skip
    found = dict(read_packed(tmp_path / "out"))
    assert len(found) == 21 and {q.grid.grid.bits for q in found.values()} == {3}


@pytest.mark.parametrize("pattern, names", [("model.embed_tokens", {"model.embed_tokens"}), ("lm_*", {"lm_head"}),
                                            ("*[ae]d*", {"model.embed_tokens", "lm_head"})])  # fmt: skip
def test_patterns_that_say_something_reach_embedding_and_head(pattern, names, run, tmp_path):
    run(recipes=[f'Recipe(layers=(("{pattern}", Target(Integer(bits=3))),))'], save=tmp_path / "out")
    assert {name for name, _ in read_packed(tmp_path / "out")} == names


def test_the_heads_gram_matrix_is_that_of_what_leaves_the_final_norm(llama, inputs):
    bench = open_bench(engine.Setting(model=str(llama), **inputs), 0)
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    with torch.no_grad():
        X = model.model(input_ids=bench.calibration.tensor()).last_hidden_state.reshape(-1, 48).double()
    H = Calibration.of(bench.checkpoint, bench.calibration, 1).head_gram()
    torch.testing.assert_close(H, X.T @ X / len(X), rtol=1e-5, atol=1e-5 * float(H.abs().max()))  # float32 inputs


@pytest.mark.parametrize("inputs_of", ["original", "quantized"])
def test_error_feedback_lowers_the_heads_output_error(inputs_of, run, llama, inputs, tmp_path):
    bench = open_bench(engine.Setting(model=str(llama), **inputs), 0)
    H, W = Calibration.of(bench.checkpoint, bench.calibration, 1).head_gram(), bench.checkpoint.weight("lm_head")
    error = {}
    for rounding in ("Nearest()", "Feedback()"):
        target = f"Target(Integer(bits=3, group=16), {rounding})"
        blocks = 'weights=Target(Integer(bits=8, group=16)), inputs="quantized", ' if inputs_of == "quantized" else ""
        run(recipes=[f'Recipe({blocks}layers=(("lm_head", {target}),))'], save=tmp_path / rounding)
        error[rounding] = relative_errors(W, dict(read_packed(tmp_path / rounding))["lm_head"].dequantize(), H)
    assert error["Feedback()"][1] < error["Nearest()"][1] and error["Feedback()"][0] > error["Nearest()"][0]


@pytest.mark.parametrize(
    "variant, layers, reason",
    [
        ("llama", '(("model.embed_tokens", Target(Integer(bits=4), Feedback())),)',
         r"model.embed_tokens: error feedback needs the Gram matrix .* inputs are one-hot and give none"),
        ("llama", '(("model.embed_tokens", Target(Integer(bits=4, clip=OutputSearch()))),)',
         r"model.embed_tokens: an output search needs the Gram matrix H .* give none"),
        ("llama tied", '(("lm_head", Target(Integer(bits=4))),)',
         r"lm_head is model.embed_tokens again in this model, and takes no target of its own"),
        ("llama tied", '(("lm_head", Target(Integer(bits=4))), ("model.embed_tokens", Target(Integer(bits=8))))',
         r"lm_head is model.embed_tokens again"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_outside_the_blocks_is_a_recorded_skip(variant, layers, reason, run, tmp_path):
    architecture, options = tiny.ARCHITECTURES[variant]
    path = tiny.save(tiny.model_of(architecture, **options), tmp_path / "model")
    record, _ = run(path, recipes=[f"Recipe(layers={layers})"], save=tmp_path / "out")
    assert record.status == "skipped" and re.search(reason, record.reason), record.reason
    assert not (tmp_path / "out").exists()


# the unquantized model


def test_without_the_unquantized_model_the_perplexity_is_there_and_the_rest_is_said_to_be_missing(run, llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "model")
    written, _ = run(copy, methods=["gptq"], bits=[3], save=tmp_path / "out")
    copy.rename(tmp_path / "moved")
    alone, _ = run(tmp_path / "out")
    unknown = {name: None for name in ("ppl_se", "ppl_base", "kl", "kl_se", "kl_p99", "top1", "top1_se")}
    said = f"ppl_base, kl, top1: not measured without the unquantized model: {copy}: no such directory"
    assert figures(alone) == figures(written) | unknown | {"fallbacks": (said,)}
    assert figures(run(tmp_path / "out", base=str(tmp_path / "moved"))[0]) == figures(written)


def test_a_text_is_tokenized_without_the_unquantized_model(run, llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "model")
    (tmp_path / "t.txt").write_text("How few bits can a language model live in? " * 20)
    written, _ = run(copy, methods=["rtn"], bits=[3], save=tmp_path / "out", evaluation=str(tmp_path / "t.txt"))
    copy.rename(tmp_path / "moved")
    alone, _ = run(tmp_path / "out", evaluation=str(tmp_path / "t.txt"))
    assert (alone.ppl, alone.data_sha256) == (written.ppl, written.data_sha256)


def test_another_model_where_it_was_is_not_taken_for_it(run, llama, tmp_path):
    copy = shutil.copytree(llama, tmp_path / "model")
    written, _ = run(copy, methods=["rtn"], bits=[3], save=tmp_path / "out")
    tiny.save(tiny.model_of("llama", seed=1), copy)
    alone, _ = run(tmp_path / "out")
    assert alone.kl is None and alone.ppl == written.ppl
    assert re.fullmatch(r"ppl_base, kl, top1: .*model is another model: its SHA-256 is \w+, expected \w+",
                        alone.fallbacks[0])  # fmt: skip


def test_calibration_tokens_of_a_packed_model_are_checked_and_no_more(run, inputs, tmp_path):
    written, _ = run(methods=["rtn"], bits=[3], save=tmp_path / "out")
    assert figures(run(tmp_path / "out", calibration=inputs["calibration"])[0]) == figures(written)
    other, _ = run(tmp_path / "out", calibration=inputs["evaluation"])
    said = f"calibration {inputs['evaluation']}: not used, the model was calibrated on other tokens"
    assert figures(other) == figures(written) | {"fallbacks": (said,)}


def test_what_did_not_go_as_asked_when_it_was_quantized_is_still_said(run, tmp_path):
    model = tiny.model_of("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3] = 0  # the down projection's fourth input is always 0
    record = is_the_same_read_back(run, tmp_path / "out", model=tiny.save(model, tmp_path / "model"),
                                   methods=["gptq"], bits=[3])  # fmt: skip
    assert any("dead" in what for what in record.fallbacks)


# damage


@pytest.fixture(scope="module")
def saved(llama, inputs, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved")
    engine.run(str(llama), recipes=[RECIPES["everything at once"]], store=path / "s.db", jobs=1, **inputs,
               save=path / "out")  # fmt: skip
    return path / "out"


def change_header(path, change):
    """Edit the header, which keeps a hash that is right."""
    fields = asdict(Header.read(path, "saved"))
    change(fields)
    (path / "bitfrontier.json").write_text(Header(**fields).text)


def cut(path):
    data = (path / "block-00001.safetensors").read_bytes()
    (path / "block-00001.safetensors").write_bytes(data[: len(data) // 2])


def flip(path):
    data = bytearray((path / "block-00001.safetensors").read_bytes())
    data[-9] ^= 1
    (path / "block-00001.safetensors").write_bytes(data)


def edit_text(old, new):
    def spoil(path):
        text = (path / "bitfrontier.json").read_text()
        assert old in text
        (path / "bitfrontier.json").write_text(text.replace(old, new, 1))

    return spoil


def swap(path):
    (path / "block-00000.safetensors").replace(path / "spare")
    (path / "block-00001.safetensors").replace(path / "block-00000.safetensors")
    (path / "spare").replace(path / "block-00001.safetensors")


def without_a_shard(header):
    header["shards"].pop("block-00002.safetensors")


DAMAGE = {
    "a truncated shard": (cut, "block-00001.safetensors is damaged: its SHA-256 is"),
    "a flipped bit": (flip, "block-00001.safetensors is damaged: its SHA-256 is"),
    "shards in each other's place": (swap, "block-00000.safetensors is damaged"),
    "a missing shard": (lambda path: (path / "rest.safetensors").unlink(), "rest.safetensors is missing"),
    "a header that is no JSON": (lambda path: (path / "bitfrontier.json").write_text("{"), "cannot be read"),
    "a header of bytes": (lambda path: (path / "bitfrontier.json").write_bytes(b"\xff\xfe"), "cannot be read"),
    "a header of something else": (lambda path: (path / "bitfrontier.json").write_text("[]"), "is not the header of"),
    "a header that was edited": (edit_text('"seed":0', '"seed":1'), "bitfrontier.json is damaged: its SHA-256 is"),
    "another version": (edit_text('"version":3', '"version":1'), "has format version 1, this bitfrontier reads 3"),
    "a field too many": (edit_text('"seed":0', '"seed":0,"sown":1'), "does not have the fields of version 3"),
    "an unknown recipe": (lambda p: change_header(p, lambda h: h.update(recipe="Magic()")), "unknown name Magic"),
    "a shard elsewhere": (lambda p: change_header(p, lambda h: h["shards"].update({"../s": "0"})), "names '../s'"),
    "a shard left out": (lambda p: change_header(p, without_a_shard), "is missing"),
    "another shape": (lambda p: change_header(p, lambda h: h["layers"]["lm_head"].update(shape=[7, 9])),
                      "lm_head.weight has shape (7, 9), config.json makes it (101, 48)"),
    "another layout": (lambda p: change_header(p, lambda h: h["layers"]["lm_head"].update(
        grid="Target(Integer(bits=5, group=16))")), "lm_head: payload has"),
    "another architecture": (lambda p: change_header(p, lambda h: h["config"].update(model_type="gpt2")), "'gpt2'"),
    "a spoiled provenance": (lambda p: (p / "about/provenance.json").write_text("{}"), "provenance.json cannot be"),
}  # fmt: skip
OPTIONS = {
    "--methods rtn": "methods rtn: .* is a packed model, which is measured as it is",
    "--bits 3,4": "bits 3,4: .* is a packed model",
    "--group 64": "group 64: .* is a packed model",
    "--activation-bits 8": "activation-bits 8: .* is a packed model",
    "--recipe Recipe()": "recipe Recipe\\(\\): .* is a packed model",
    "--save again": "save again: .* is a packed model",
    "--export again": "export again: .* is a packed model",
    "--seed 3": "seed 3: .* was quantized with seed 0",
    "--base nowhere": "base nowhere: no such directory",
    "--base reference": "base reference is another model: its SHA-256 is",
    "--length 99": "takes rows of 2 to 64 tokens",
    "--calibration none.npy": "none.npy: cannot be read",
}


def refused(arguments, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["bitfrontier", "run", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capfd.readouterr()
    assert (ended.value.code, out) == (2, "") and err.startswith("bitfrontier: ") and err.count("\n") == 1, err
    return err


def tree(path):
    return {file: file.read_bytes() if file.is_file() else None for file in sorted(path.rglob("*"))}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_ends_with_one_line_and_nothing_written(kind, saved, inputs, tmp_path, monkeypatch, capfd):
    spoil, message = DAMAGE[kind]
    path = shutil.copytree(saved, tmp_path / "out")
    spoil(path)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    err = refused([path, "--evaluation", inputs["evaluation"]], monkeypatch, capfd)
    assert str(path) in err and message in err, err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("words", OPTIONS)
def test_options_that_do_not_apply_end_with_one_line(words, saved, inputs, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    err = refused([saved, "--evaluation", inputs["evaluation"], *words.split()], monkeypatch, capfd)
    assert re.search(OPTIONS[words], err), err
    assert not list(tmp_path.iterdir())


def test_a_dialed_model_is_found_again_from_elsewhere(llama, inputs, tmp_path, monkeypatch):
    shutil.copytree(llama, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    (written,) = engine.run("model+outliers:linear:16", methods=["rtn"], bits=[4], **inputs, store="a.db", jobs=1,
                     save=tmp_path / "out")  # fmt: skip
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (found,) = engine.run(str(tmp_path / "out"), **inputs, store="b.db", jobs=1)
    assert found.kl == written.kl and found.fallbacks == ()


@pytest.mark.parametrize("dose", ["", "+outliers"])
@pytest.mark.parametrize("option", ["--save", "--export"])
def test_a_model_is_not_overwritten_with_its_own_output(option, dose, llama, inputs, tmp_path, monkeypatch, capfd):
    copy = shutil.copytree(llama, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    err = refused([f"{copy}{dose}", "--methods", "rtn", "--bits", 4, option, "model", "--calibration",
                   inputs["calibration"], "--evaluation", inputs["evaluation"]], monkeypatch, capfd)  # fmt: skip
    assert "cannot write model: the model itself is there" in err and tree(tmp_path) == before


def test_outputs_of_two_formats_are_not_mixed(llama, saved, inputs, tmp_path):
    other = shutil.copytree(llama, tmp_path / "other")
    packed = shutil.copytree(saved, tmp_path / "packed")
    before = tree(tmp_path)
    for places, message in (({"save": tmp_path / "x", "export": tmp_path / "x"}, "asked for both"),
                            ({"save": other}, "other: a model in Hugging Face format is there"),
                            ({"export": packed}, "packed: a packed model is there")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            engine.run(str(llama), methods=["rtn"], bits=[4], store=tmp_path / "s.db", **places, **inputs)
    assert tree(tmp_path) == before


def test_a_base_is_for_packed_models(llama, inputs, tmp_path):
    with pytest.raises(ValueError, match="is not a packed model, and is its own base"):
        engine.run(str(llama), base="reference", store=tmp_path / "s.db", **inputs)
    assert not list(tmp_path.iterdir())


def test_a_packed_model_decodes_to_what_its_layers_say(saved):
    model = PackedModel.open(str(saved))
    assert model.recipe == parse(RECIPES["everything at once"])
    for i in range(model.checkpoint.n_blocks):
        block, layers = model.block(i)
        assert len(layers) == 7
        for name, found in layers.items():
            weight = block.get_submodule(name.removeprefix(f"model.layers.{i}.")).weight
            assert torch.equal(weight, found.dequantize())
