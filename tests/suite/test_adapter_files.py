"""Adapters as files: what is written comes back bit for bit, onto its own base alone."""

import json
import re
import shutil
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from suite import run
from suite.commands.main import main
from suite.learning.adapter_files import BESIDE, CONFIG, TENSORS, Adapter, base_sha256, with_adapter
from suite.packed import Header
from suite.readback import PackedModel
from suite.side import LowRankSide
from suite.store import VOLATILE

SHORT = "schedule=Schedule(steps=3, rate=0.01, warmup=0.0, weight_decay=0.0), rows=4"
NF4 = "weights=Target(Scaled(element='nf4', group=64, axis='flat', scale=RealScale(bits=32)))"
OF_ADAPTERS = {
    "qlora": f"Recipe({NF4}, adaptation=LowRank(adapters=Adapters(rank=2, scale=0.5), {SHORT}))",
    "other": f"Recipe({NF4}, adaptation=LowRank(adapters=Adapters(rank=3), elastic=True, {SHORT}))",
    "loftq": f"Recipe({NF4}, adaptation=LowRank(adapters=Adapters(rank=2), rounds=2, {SHORT}))",
    "base": f"Recipe({NF4})",
}
NO_BRANCH = {
    "merged into zero points": "Recipe(weights=Target(Integer(bits=3, group=16, convention='real-zero')), "
    f"adaptation=LowRank(adapters=Adapters(rank=2), pooled=True, {SHORT}))",
    "within the weights that were rounded": "Recipe(weights=Target(Integer(bits=3, group=16, convention='real-zero')), "
    f"adaptation=QuantizationAware({SHORT}, start='symmetric', adapters=Adapters(rank=2)))",
    "custom has no side branches": OF_ADAPTERS["base"],
    "down_proj sees its inputs through a map": "Recipe(transforms=(RotateInputs(),), weights=Target(Integer(bits=4)), "
    "adaptation=LowRank(adapters=Adapters(rank=2), rounds=1))",
}
MEASURED_NO_MORE = ("cell", "model", "model_sha256", "command", "nmse", "hnmse", "fallbacks", "model_bytes")
LAYER = "model.layers.1.mlp.up_proj"  # (80, 48)


def command(monkeypatch, capsys, *words):
    """Run the command line; its exit status and what it printed to either stream."""
    monkeypatch.setattr(sys, "argv", ["bitfrontier", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    found = capsys.readouterr()
    return ended.value.code, found.out, found.err


def figures(record):
    return {key: x for key, x in asdict(record).items() if key not in (*VOLATILE, *MEASURED_NO_MORE)}


@pytest.fixture(scope="module")
def made(llama, inputs, tmp_path_factory):
    """Packed models with one base, but for loftq, and their records, with the adapter of each."""
    path = tmp_path_factory.mktemp("made")
    training = str(tiny.save_tokens(path / "training.npy", 24, tiny.CONTEXT, 3))
    found = SimpleNamespace(path=path, training=training, records={}, root=lambda name: str(path / name),
                            adapter=lambda name: str(path / f"{name}-adapter"))  # fmt: skip
    for name, recipe in OF_ADAPTERS.items():
        (found.records[name],) = run(str(llama), recipes=[recipe], training=training, store=path / "s.db", jobs=1,
                                     save=path / name, **inputs)  # fmt: skip
        assert found.records[name].status == "ok", found.records[name].reason
        if name != "base":
            packed = PackedModel.open(found.root(name))
            Adapter.of(packed).write(path / f"{name}-adapter", packed)
    return found


def again(made, inputs, name, adapter=None, **options):
    (record,) = run(made.root(name), store=made.path / "again.db", jobs=1, evaluation=inputs["evaluation"],
                    adapter=None if adapter is None else made.adapter(adapter), **options)  # fmt: skip
    assert record.status == "ok", record.reason
    return record


def spoil(made, tmp_path, change):
    """A copy of an adapter whose files `change` has edited."""
    out = shutil.copytree(made.adapter("qlora"), tmp_path / "spoiled")
    change(out)
    return str(out)


@pytest.mark.parametrize("donor", ["qlora", "loftq"])
def test_an_adapter_is_read_back_bit_for_bit(made, donor):
    packed, read = PackedModel.open(made.root(donor)), Adapter.read(made.adapter(donor))
    assert set(read.branches) == set(packed.payloads)
    for layer, side in read.branches.items():
        assert side.to_bytes() == packed.quantized(layer).side.to_bytes()
    assert read.base_sha256 == base_sha256(packed) and read.rank == 2


@pytest.mark.parametrize("onto", ["base", "other", "qlora"])
def test_a_model_with_an_adapter_is_the_one_it_was_taken_from(made, inputs, onto):
    """Onto a base without branches, with branches of another rank, and with its own."""
    found = again(made, inputs, onto, "qlora")
    of_cell = {"method": found.method, "recipe": found.recipe}  # those of the codes, which are the base's
    assert figures(found) == figures(made.records["qlora"]) | of_cell
    assert found.ppl != again(made, inputs, onto).ppl or onto == "qlora"
    assert found.nmse is None and found.fallbacks == ("nmse, hnmse: not measured again with an adapter",)
    packed = with_adapter(PackedModel.open(made.root(onto)), made.adapter("qlora"))
    donor = PackedModel.open(made.root("qlora"))
    for layer in donor.payloads:
        assert packed.quantized(layer).to_bytes() == donor.quantized(layer).to_bytes()
        assert packed.quantized(layer).header() == donor.quantized(layer).header()


def test_a_cell_is_known_by_its_adapter(made, inputs):
    cells = [again(made, inputs, "base", adapter) for adapter in (None, "qlora", "other", "qlora")]
    assert len({cell.cell for cell in cells}) == len({cell.model_sha256 for cell in cells}) == 3
    assert cells[1].cell == cells[3].cell and cells[1].ppl == cells[3].ppl != cells[2].ppl


def test_what_is_on_disk_is_charged(made, inputs):
    files = sum((made.path / "qlora-adapter" / file).stat().st_size for file in (CONFIG, TENSORS))
    base = sum(file.stat().st_size for file in (made.path / "base").iterdir() if file.is_file())
    assert again(made, inputs, "base", "qlora").model_bytes == base + files
    own = sum(side.n_bits // 8 for side in Adapter.read(made.adapter("other")).branches.values())
    other = sum(file.stat().st_size for file in (made.path / "other").iterdir() if file.is_file())
    assert again(made, inputs, "other", "qlora").model_bytes == other - own + files


def test_the_same_model_gives_the_same_bytes_by_the_command(made, monkeypatch, capsys, tmp_path):
    moved = shutil.copytree(made.root("qlora"), tmp_path / "moved")
    status, out, _ = command(monkeypatch, capsys, "adapter", moved, tmp_path / "out")
    assert status == 0 and "side branches of rank 2" in out
    for file in (CONFIG, TENSORS, BESIDE):
        assert (tmp_path / "out" / file).read_bytes() == (made.path / "qlora-adapter" / file).read_bytes()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted((CONFIG, TENSORS, BESIDE))


def test_the_files_are_as_peft_has_them(made, llama):
    config = json.loads((made.path / "qlora-adapter" / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 2 and config["peft_type"] == "LORA"
    assert config["task_type"] == "CAUSAL_LM" and config["base_model_name_or_path"] == str(llama)
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    found = load_file(made.path / "qlora-adapter" / TENSORS)
    A, B = (found[f"base_model.model.{LAYER}.lora_{letter}.weight"] for letter in "AB")
    assert (A.shape, B.shape) == ((2, 48), (80, 2)) and A.dtype == B.dtype == torch.float16
    assert len(found) == 2 * len(PackedModel.open(made.root("qlora")).payloads)


def test_bases_are_told_apart_by_their_codes_and_not_by_their_branches(made):
    hashes = {name: base_sha256(PackedModel.open(made.root(name))) for name in OF_ADAPTERS}
    assert hashes["qlora"] == hashes["other"] == hashes["base"] != hashes["loftq"]


sides = st.dictionaries(st.text("abc.", min_size=1, max_size=4), st.tuples(st.integers(1, 5), st.integers(1, 5)),
                        min_size=1, max_size=3)  # fmt: skip


@given(sides, st.integers(1, 4), st.integers(0, 1 << 20), st.data())
@settings(max_examples=60)
def test_any_branches_come_back_and_any_bit_counts(tmp_path_factory, shapes, rank, seed, data):
    generator = torch.Generator().manual_seed(seed)
    branches = {layer: LowRankSide.stored(torch.randn(rank, n_in, generator=generator),
                                          torch.randn(n_out, rank, generator=generator))
                for layer, (n_out, n_in) in shapes.items()}  # fmt: skip
    adapter, out = Adapter(branches, "base"), tmp_path_factory.getbasetemp() / "any"
    checkpoint = SimpleNamespace(n_blocks=0, architecture=SimpleNamespace(layers=()))
    adapter.write(out, SimpleNamespace(provenance=None, checkpoint=checkpoint))
    read = Adapter.read(str(out))
    assert read.sha256 == adapter.sha256 and read.base_sha256 == "base"
    assert {layer: side.to_bytes() for layer, side in read.branches.items()} == {
        layer: side.to_bytes() for layer, side in branches.items()}  # fmt: skip
    layer = data.draw(st.sampled_from(sorted(branches)))
    A = branches[layer].A.clone()
    bits = A.view(torch.int16).view(-1)
    bits[data.draw(st.integers(0, len(bits) - 1))] ^= 1 << data.draw(st.integers(0, 14))
    assert replace(adapter, branches=branches | {layer: LowRankSide(A, branches[layer].B)}).sha256 != adapter.sha256


# one line for what does not fit


def edit(file, **changes):
    def change(out):
        fields = json.loads((out / file).read_text())
        (out / file).write_text(json.dumps({**fields, **changes}))

    return change


def edit_tensors(change):
    def spoiled(out):
        tensors = load_file(out / TENSORS)
        change(tensors)
        save_file(tensors, out / TENSORS, {"format": "pt"})

    return spoiled


def renamed(old, new):
    def change(tensors):
        for letter in "AB":
            tensors[f"base_model.model.{new}.lora_{letter}.weight"] = tensors.pop(
                f"base_model.model.{old}.lora_{letter}.weight")  # fmt: skip

    return edit_tensors(change)


KEY_A, KEY_B = (f"base_model.model.{LAYER}.lora_{letter}.weight" for letter in "AB")


def narrower(tensors):
    tensors[KEY_A] = tensors[KEY_A][:, :40].contiguous()


def rehash(change):
    """A change that somebody has taken care to hide: the hash of the branches is right again."""

    def spoiled(out):
        change(out)
        fields = json.loads((out / BESIDE).read_text())
        with pytest.raises(ValueError, match="is damaged") as error:
            Adapter.read(str(out))
        found = str(error.value).split("branches is ")[1].split(",")[0]
        (out / BESIDE).write_text(json.dumps({**fields, "sha256": found}))

    return spoiled


SPOILED = {
    "no adapter": (lambda out: (out / BESIDE).unlink(), "is not an adapter that `bitfrontier adapter` wrote"),
    "no configuration": (lambda out: (out / CONFIG).unlink(), "adapter_config.json cannot be read"),
    "no tensors": (lambda out: (out / TENSORS).unlink(), "adapter_model.safetensors is missing"),
    "tensors that are none": (lambda out: (out / TENSORS).write_bytes(b"x" * 99), "is not a readable safetensors file"),
    "a list": (lambda out: (out / CONFIG).write_text("[]"), "is not an object of JSON"),
    "another format": (edit(BESIDE, format="letter"), "is not that of an adapter"),
    "another version": (edit(BESIDE, version=2), "has format version 2, this bitfrontier reads 1"),
    "another kind": (edit(CONFIG, peft_type="IA3"), "peft_type 'IA3', expected 'LORA'"),
    "magnitudes": (edit(CONFIG, use_dora=True), "use_dora True, expected False"),
    "a scale": (edit(CONFIG, lora_alpha=16), "r 2, lora_alpha 16: expected the same"),
    "another rank": (edit(CONFIG, r=4, lora_alpha=4), "has r 4, the branch of .* has rank 2"),
    "a rank that is none": (edit(CONFIG, r=[2], lora_alpha=[2]), r"has r \[2\], the branch of"),
    "half a branch": (edit_tensors(lambda t: t.pop(KEY_B)), f"{LAYER} has no lora_B"),
    "another type": (edit_tensors(lambda t: t.update({KEY_A: t[KEY_A].float()})), "expected float16, as it is stored"),
    "something else": (edit_tensors(lambda t: t.update(x=t[KEY_A].clone())), "has x, which is none of a plain"),
    "nothing": (edit_tensors(dict.clear), "holds no branches"),
    "a changed number": (edit_tensors(lambda t: t[KEY_A].view(torch.int16)[0].add_(1)), "is damaged: the SHA-256 of"),
    "a missing layer": (edit_tensors(lambda t: [t.pop(KEY_A), t.pop(KEY_B)]), "is damaged: the SHA-256 of"),
    "a layer too many": (rehash(renamed(LAYER, "model.layers.9.mlp.up_proj")),
                         r"has no quantized layer model\.layers\.9\.mlp\.up_proj"),
    "a head": (rehash(renamed(LAYER, "lm_head")), "has no quantized layer lm_head"),
    "another shape": (rehash(edit_tensors(narrower)), f"{LAYER} takes 40 inputs to 80 outputs, in .* 48 to 80"),
    "another base": (edit(BESIDE, base_sha256="ab" * 32), r"belongs to another base: SHA-256 abababababab\.\., that of "
                     r".*base is \w{12}\.\."),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILED)
def test_what_is_no_adapter_of_this_model_ends_with_one_line(made, tmp_path, monkeypatch, capsys, inputs, what):
    change, said = SPOILED[what]
    path = spoil(made, tmp_path, change)
    status, out, err = command(monkeypatch, capsys, "run", made.root("base"), "--adapter", path, "--store",
                               tmp_path / "new.db", "--evaluation", inputs["evaluation"])  # fmt: skip
    assert status == 2 and err.startswith("bitfrontier: ") and len(err.splitlines()) == 1 and not out
    assert re.search(said, err), err
    assert not (tmp_path / "new.db").exists()


def test_an_adapter_of_other_codes_or_of_another_model_is_refused(made, inputs, tmp_path, llama):
    with pytest.raises(ValueError, match=r"belongs to another base: SHA-256 \w{12}\.\., that of .*loftq is \w{12}\.\."):
        again(made, inputs, "loftq", "qlora")
    other = tiny.save(tiny.model_of("llama", seed=1), tmp_path / "model")
    run(str(other), recipes=[OF_ADAPTERS["base"]], store=tmp_path / "s.db", jobs=1, save=tmp_path / "out", **inputs)
    with pytest.raises(ValueError, match="belongs to another base"):
        run(str(tmp_path / "out"), adapter=made.adapter("qlora"), store=tmp_path / "s.db", **inputs)
    with pytest.raises(ValueError, match=r"adapter \S+: \S+ is not a packed model"):
        run(str(llama), adapter=made.adapter("qlora"), store=tmp_path / "s.db", **inputs)


def test_a_model_with_an_adapter_is_not_packed_again(made, inputs, tmp_path):
    with pytest.raises(ValueError, match=r"save \S+: \S+ is a packed model, which is measured as it is"):
        again(made, inputs, "base", "qlora", save=tmp_path / "out")


@pytest.mark.parametrize("said", NO_BRANCH)
def test_what_has_no_adapter_of_its_own_says_why(made, llama, inputs, tmp_path, monkeypatch, capsys, said):
    (record,) = run(str(llama), recipes=[NO_BRANCH[said]], training=made.training, store=tmp_path / "s.db", jobs=1,
                    save=tmp_path / "packed", **inputs)  # fmt: skip
    assert record.status == "ok", record.reason
    status, out, err = command(monkeypatch, capsys, "adapter", tmp_path / "packed", tmp_path / "out")
    assert status == 2 and said in err and len(err.splitlines()) == 1 and not out
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_over_a_model(made, llama, tmp_path, monkeypatch, capsys):
    for source, out, said in ((made.root("qlora"), made.root("qlora"), "the model itself is there"),
                              (made.root("qlora"), made.root("base"), "a packed model is there"),
                              (made.root("qlora"), llama, "a model in Hugging Face format is there"),
                              (llama, tmp_path / "out", "expected a directory that `run --save` wrote")):  # fmt: skip
        status, _, err = command(monkeypatch, capsys, "adapter", source, out)
        assert status == 2 and said in err and len(err.splitlines()) == 1
    assert Header.read(made.path / "base", "base") and not (tmp_path / "out").exists()


def test_layers_that_are_not_the_same_in_every_block_are_named_in_full(made, tmp_path):
    packed = PackedModel.open(made.root("qlora"))
    whole = Adapter.of(packed)
    for layers, said in (([LAYER], [LAYER]), ([x for x in whole.branches if x.endswith("up_proj")], ["up_proj"])):
        replace(whole, branches={layer: whole.branches[layer] for layer in layers}).write(tmp_path / "out", packed)
        assert json.loads((tmp_path / "out" / CONFIG).read_text())["target_modules"] == said
        found = with_adapter(packed, str(tmp_path / "out"))
        assert {layer for layer in packed.payloads if found.quantized(layer).side is not None} == set(layers)


# transformers renames what peft asks it for; a warning of peft that it does not know what is written would not pass
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_computes_what_was_packed(made, llama, inputs, tmp_path):
    """In float64, beside dequantized weights or within them: to 1e-9 of the largest logit, through three blocks."""
    peft = pytest.importorskip("peft", reason="peft is not installed: it comes with the extra `oracles`")
    from transformers import AutoModelForCausalLM

    run(str(llama), recipes=[OF_ADAPTERS["base"]], store=tmp_path / "s.db", jobs=1, export=tmp_path / "dense", **inputs)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float64)
    rows = torch.arange(40).reshape(2, 20)
    with torch.no_grad():
        before = plain(rows).logits
        found = peft.PeftModel.from_pretrained(plain, made.adapter("qlora")).double()
        theirs = found(rows).logits
        donor = PackedModel.open(made.root("qlora"))
        dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float64)
        for layer in donor.payloads:
            q = donor.quantized(layer)
            weight = replace(q, side=None).dequantize().double() + q.side.product(torch.float64)
            dense.get_submodule(layer).weight.copy_(weight)
        ours = dense(rows).logits
    size = float(ours.abs().max())
    assert (theirs - ours).abs().max() <= 1e-9 * size < 1e-3 * size < (before - ours).abs().max()
