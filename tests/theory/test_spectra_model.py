"""Spectra of a small model: all layers and blocks, in agreement with each other and with dense matrices."""

import numpy as np
import pytest
import tiny
import torch

from suite.calibration import Calibration
from suite.models.checkpoint import load_model
from suite.tokens import Tokens
from theory.spectra.model import KINDS, How, fronts, spectra_of

SMALL = {"vocab_size": 23, "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
         "num_key_value_heads": 1, "num_hidden_layers": 2}  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    checkpoint = load_model(str(tiny.save(tiny.model_of("llama", **SMALL), tmp_path_factory.mktemp("small"))))
    rows = np.random.default_rng(3).integers(0, 23, (2, 6))
    return checkpoint, Tokens(rows, np.arange(2))


def test_every_layer_and_the_block_have_three_spectra_that_agree(small):
    checkpoint, tokens = small
    names = checkpoint.architecture.layers
    found = list(spectra_of(checkpoint, tokens, How(starts=3, steps=4), blocks=(1,)))
    expected = [f"model.layers.1{part}" for part in [*(f".{x}" for x in names), ""]]
    assert [(s.name, s.kind) for s in found] == [(name, kind) for name in expected for kind in KINDS]
    by = {(s.name, s.kind): s for s in found}
    for kind in KINDS:
        assert by["model.layers.1.mlp.down_proj", kind].density.n == 96
        parts, block = [by[f"model.layers.1.{x}", kind] for x in names], by["model.layers.1", kind]
        assert block.density.n == sum(part.density.n for part in parts)
        # A trace is the sum of its diagonal blocks' traces; the largest eigenvalue is at least each of theirs.
        se = sum(x.trace.se**2 for x in (*parts, block)) ** 0.5  # 0 of the inputs, which are known whole
        total = sum(part.trace.value for part in parts)
        assert abs(block.trace.value - total) <= 5 * se + 1e-9 * abs(total)  # t of few degrees, eight terms
        assert block.largest >= max(part.largest for part in parts) * (1 - 2e-3)
        assert block.smallest <= min(part.smallest for part in parts) + 2e-3 * block.largest
    assert all(s.smallest > -1e-5 * s.largest for s in found if s.kind != "hessian")  # float32


def test_the_inputs_spectra_are_the_gram_matrices(small, tmp_path, monkeypatch):
    checkpoint, tokens = small
    monkeypatch.setenv("BITFRONTIER_CACHE", str(tmp_path))
    kept = Calibration.of(checkpoint, tokens, 1)
    for spectrum in spectra_of(checkpoint, tokens, How(starts=1, steps=1), blocks=(1,)):
        if spectrum.kind != "inputs":
            continue
        if spectrum.name.endswith("down_proj"):
            H = kept.statistics(1)["mlp.down_proj"].gram
            assert spectrum.trace.value == pytest.approx(8 * float(H.trace()), rel=1e-6)
            assert spectrum.largest == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-6)
        if spectrum.name == "model.layers.1":
            out = {"self_attn.q_proj": 8 + 4 + 4, "self_attn.o_proj": 8, "mlp.gate_proj": 24, "mlp.down_proj": 8}
            traces = {site: float(kept.statistics(1)[site].gram.trace()) for site in out}
            assert spectrum.trace.value == pytest.approx(sum(out[k] * traces[k] for k in out), rel=1e-6)


def test_blocks_are_reached_without_those_behind_them(small):
    checkpoint, tokens = small
    (only,) = fronts(checkpoint, tokens, (1,))
    both = list(fronts(checkpoint, tokens))
    assert only[0] == both[1][0] == 1 and torch.equal(only[1], both[1][1])
    assert set(only[2]) == set(checkpoint.architecture.layers)


def test_the_same_seed_gives_the_same_spectra(small):
    checkpoint, tokens = small
    hows = [How(starts=1, steps=2, seed=seed, extremes="none") for seed in (0, 0, 1)]
    a, b, c = ([s.trace.value for s in spectra_of(checkpoint, tokens, how, (1,), layers=False)] for how in hows)
    assert a == b and a != c
