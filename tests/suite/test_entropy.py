"""What matrices take under every coder: `bitfrontier entropy`, and how often codes occur in a run's blocks."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from suite import engine
from suite.coding import entropy_bits
from suite.commands.main import main
from suite.entropy import Origin, byte_planes, coded_sizes, float_parts, formats, weight_shapes
from suite.methods import METHODS, method_named
from suite.models.architecture import linear
from suite.models.checkpoint import load_model
from suite.readback import read_packed
from suite.rows import CodedSize
from suite.store import Store

ORIGIN = Origin(model="tiny", model_sha256="0" * 64, code="c", env="e", command="bitfrontier entropy", started="now")


def entropy(symbols):
    """In bits a symbol, from a plain count."""
    shares = np.array(list(Counter(symbols.tolist()).values())) / len(symbols)
    return float(-(shares * np.log2(shares)).sum())


@given(arrays.arrays(st.sampled_from([np.int16, np.int32]), st.integers(1, 50)))
def test_planes_hold_every_bit_of_a_word_and_the_exponent_alone_in_the_first(words):
    planes = byte_planes(words)
    width, unsigned = 8 * words.itemsize, words.view(f"u{words.itemsize}").astype(np.uint64)
    assert len(planes) == words.itemsize and all(plane.dtype == np.uint8 for plane in planes)
    turned = sum(plane.astype(np.uint64) << np.uint64(width - 8 * (i + 1)) for i, plane in enumerate(planes))
    back = (turned >> np.uint64(1)) | (turned & np.uint64(1)) << np.uint64(width - 1)
    assert np.array_equal(back, unsigned)
    assert np.array_equal(planes[0], (unsigned >> np.uint64(width - 9)) & np.uint64(255))


def test_parts_of_floating_point_words_have_the_entropies_that_theory_says():
    w = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul(0.02).float()
    words = w.bfloat16().view(torch.int16).numpy()
    parts = {name: bits / len(words) for name, bits in float_parts(words, 8, 7).items()}
    # a Gaussian's, by numeric integration; a share's error is below 1e-3, an entropy's a few of that
    assert parts["sign"] == pytest.approx(1, abs=1e-4)
    assert parts["exponent"] == pytest.approx(2.546, abs=6e-3)
    assert parts["mantissa"] == pytest.approx(6.971, abs=2e-3)
    whole = {name: bits / len(words) for name, bits in float_parts(w.view(torch.int32).numpy(), 8, 23).items()}
    assert whole["exponent"] == pytest.approx(parts["exponent"], abs=6e-3)  # rounding moves few to the next one
    assert 22.9 < whole["mantissa"] < 23


def test_every_group_of_every_format_is_there_once_and_says_which_it_is():
    found = formats(["rtn", "nf4", "mxfp4", "rtn"], [4, 3], [32, 128, "tensor"])
    named = [(f.name, getattr(f.target.grid, "group", None) if f.target else None, f.swept) for f in found]
    assert named[:3] == [("fp32", None, False), ("bf16", None, False), ("fp8", "row", False)]
    assert [x for x in named if x[0] == "rtn"] == 2 * [
        ("rtn", 128, False), ("rtn", 32, True), ("rtn", "tensor", True)]  # fmt: skip
    assert [x for x in named if x[0] == "nf4"] == [("nf4", 64, False), ("nf4", 32, True), ("nf4", 128, True)]
    assert [x for x in named if x[0] == "mxfp4"] == [("mxfp4", 32, False)]  # which the standard fixes
    with pytest.raises(ValueError, match="gptq needs calibration"):
        formats(["gptq"], [4], [])


def test_sizes_add_up_and_follow_the_entropy(llama):
    checkpoint = load_model(str(llama))
    sizes = coded_sizes(checkpoint, 1, formats(["rtn", "mxfp4"], [4], [32]), ORIGIN)
    layer = "model.layers.1.mlp.gate_proj"
    W = checkpoint.block(1).mlp.gate_proj.weight.detach()
    bits = {(s.format, s.group, s.coder): s.n_bits for s in sizes if s.layer == layer}
    n, words = W.numel(), W.bfloat16().view(torch.int16).numpy().reshape(-1)
    assert bits["fp32", "", "fixed"] == 32 * n and bits["bf16", "", "fixed"] == 16 * n
    planes = byte_planes(words)
    assert bits["bf16", "", "entropy"] == pytest.approx(n * sum(map(entropy, planes)), rel=1e-9)
    parts = sum(bits["bf16", "", part] for part in ("sign", "exponent", "mantissa"))
    assert parts >= bits["bf16", "", "entropy"] * (1 - 1e-12)  # sign and mantissa together take no more than apart
    for form, group in (("fp32", ""), ("bf16", ""), ("fp8", "row"), ("rtn", "128"), ("rtn", "32"), ("mxfp4", "32")):
        least = bits[form, group, "entropy"]
        assert all(bits[form, group, coder] >= least for coder in ("huffman", "ans", "fixed")), (form, group)
    q = method_named("rtn").recipe(bits=4, group=32).weights
    rounded = q.rounding.round(W, q.grid, None, torch.Generator())
    (row,) = [s for s in sizes if (s.layer, s.format, s.group, s.coder) == (layer, "rtn", "32", "entropy")]
    assert row.n_bits == pytest.approx(rounded.grid.beside_bits + entropy_bits(rounded.codes), rel=1e-12)
    E = W - rounded.grid.decode32(rounded.codes)
    assert row.nmse == pytest.approx(float((E.double() ** 2).sum() / (W.double() ** 2).sum()), rel=1e-12)
    assert row.beside_bits == rounded.grid.beside_bits  # whole bytes


def test_shapes_count_every_weight_in_units_of_their_root_mean_square(llama):
    checkpoint = load_model(str(llama))
    block = checkpoint.block(0)
    for shape in weight_shapes(checkpoint, 0, ORIGIN):
        W = linear(block, shape.layer.removeprefix("model.layers.0.")).weight.detach().double()
        assert shape.counts.sum() == shape.n_weights == W.numel()
        assert shape.rms == pytest.approx(float(W.square().mean().sqrt()), rel=1e-12)
        inside = ((W / shape.rms).abs() < 1).sum()
        assert shape.counts[480:544].sum() == inside  # bins of 1/32: from -1 to 1


def test_the_command_writes_what_it_prints_and_a_second_run_changes_nothing(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["bitfrontier", "entropy", str(llama), "--methods", "rtn", "--groups", "32", "--name", "mine",
                 "--jobs", "1"]  # fmt: skip
    kept = []
    for _ in range(2):
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        with Store(tmp_path / "bitfrontier.db", create=False) as store:
            kept.append((store.rows(CodedSize), store.weight_shapes()))
    (first, shapes), (second, again) = kept
    assert len(first) == len(second) and {s.model for s in first} == {"mine"} == {s.model for s in shapes}
    assert [s.n_bits for s in first] == [s.n_bits for s in second] and len(shapes) == len(again)
    printed = capsys.readouterr().out
    rows = [s for s in first if (s.format, s.group, s.coder) == ("rtn", "128", "ans")]
    assert f"{sum(s.n_bits for s in rows) / sum(s.n_weights for s in rows):.3f}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "awq"], "awq needs calibration"),
        (["--methods", "rtm"], "did you mean rtn"),
        (["--groups", "0"], "not a positive integer, row or tensor"),
        (["--bits", "four"], "not a list of integers"),
    ],
)
def test_what_cannot_be_coded_is_one_line_and_no_store(llama, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bitfrontier", "entropy", str(llama), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", [m.name for m in METHODS if m.needs == "nothing"])
def test_histograms_count_the_codes_of_all_blocks(method, llama, inputs, tmp_path):
    (record,) = engine.run(str(llama), methods=[method], bits=[4], **inputs, store=tmp_path / "s.db", jobs=1,
                           save=tmp_path / "out")  # fmt: skip
    with Store(tmp_path / "s.db", create=False) as store:
        found = store.histograms(record)
    assert record.status == "ok", record.reason
    total = Counter()
    for _, q in read_packed(tmp_path / "out"):
        for i, stream in enumerate(q.grid.streams(q.codes)):
            total[i] += stream.numel()
    if found or method != "dfloat11":
        assert {h.stream: int(h.counts.sum()) for h in found} == total
    if method == "ecsq":  # whose zero has another code in every matrix
        (h,) = found
        assert abs(h.levels[h.counts.argmax()]) <= 1
    for h in found:
        assert (np.diff(h.levels) > 0).all() and (h.counts > 0).all()
