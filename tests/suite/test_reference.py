"""The shipped checkpoint is what its card says, and the first facts that everything else stands on hold for it."""

import json

import numpy as np
import pytest
import torch

from suite.calibration import Calibration
from suite.cells import TIERS, picks
from suite.engine import Setting, run_cell
from suite.methods import method_named
from suite.models.checkpoint import REFERENCE, load_model
from suite.reference.text import LENGTH, cut_rows, read_files, repeats_of
from suite.reference.training import train_reference
from suite.tokens import load_tokens

CARD = json.loads((REFERENCE / "card.json").read_text())
PARTS = ("calibration", "validation", "evaluation")


@pytest.mark.parametrize("part", PARTS)
def test_the_text_rebuilt_from_the_installed_package_has_the_shipped_hash(part):
    tokens = load_tokens(None, part, load_model("reference"), LENGTH)  # raises where the hash differs
    assert tokens.rows.shape == (CARD["parts"][part]["rows"], LENGTH)
    assert len(np.unique(tokens.clusters)) <= CARD["parts"][part]["files"]


def test_shorter_rows_are_cut_from_the_same_text():
    model = load_model("reference")
    long, short = (load_tokens(None, "validation", model, length) for length in (LENGTH, 100))
    assert short.rows.shape == (2 * len(long.rows), 100)
    assert np.array_equal(short.rows[:2].reshape(-1), long.rows[0, :200])


def test_the_shipped_files_fit_in_20_mb_and_hold_no_text():
    assert sum(file.stat().st_size for file in REFERENCE.iterdir() if file.is_file()) < 20e6


def test_the_log_and_the_weight_statistics_ship():
    assert set(json.loads((REFERENCE / "weights.json").read_text())) == {"initial", "half", "final"}
    rows = (REFERENCE / "log.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[4]) == CARD["validation_perplexity"] < 9.1


@torch.no_grad()
def test_a_sample_of_validation_rows_has_about_the_logged_perplexity():
    model = load_model("reference")
    tokens = load_tokens(None, "validation", model, LENGTH).spread(64 * LENGTH)
    hidden = model.embed(tokens.tensor())
    for i in range(model.n_blocks):
        hidden = model.run(i, model.block(i), hidden)
    nll = torch.nn.functional.cross_entropy(
        model.logits(hidden[:, :-1]).flatten(0, 1), tokens.tensor()[:, 1:].flatten(), reduction="none"
    ).reshape(64, -1)
    per_row = nll.mean(1)
    three_sigma = 3 * float(per_row.std() / 64**0.5)
    assert abs(float(per_row.mean()) - np.log(CARD["validation_perplexity"])) < three_sigma


@torch.no_grad()
def test_outliers_are_there_and_the_unquantized_logits_are_what_they_were():
    plain, dialed = load_model("reference"), load_model("reference+outliers")
    tokens = load_tokens(None, "calibration", plain, LENGTH).spread(8 * LENGTH)
    logits = []
    for model in (plain, dialed):
        hidden = model.embed(tokens.tensor())
        for i in range(model.n_blocks):
            hidden = model.run(i, model.block(i), hidden)
        logits.append(model.logits(hidden))
    assert torch.allclose(logits[0], logits[1], rtol=0, atol=1e-4)
    largest = [Calibration.of(model, tokens, 1).statistics(0)["mlp.down_proj"].max_abs for model in (plain, dialed)]
    ratio = largest[1] / largest[0]
    assert set(ratio.round().tolist()) == {1.0, 64.0} and int((ratio > 2).sum()) == 768 // 64


def setting() -> Setting:
    tier = TIERS["default"]
    return Setting(model="reference", calibration_tokens=tier.calibration_tokens,
                   evaluation_tokens=tier.evaluation_tokens)  # fmt: skip


@pytest.mark.slow
def test_gptq_at_4_bits_in_groups_of_64_has_at_most_half_the_kl_of_rtn():
    kl = {m: run_cell(setting(), 0, picks([method_named(m)], [4], group=64)[0]).record.kl for m in ("rtn", "gptq")}
    assert kl["gptq"] <= kl["rtn"] / 2, kl


@pytest.mark.slow
def test_the_dropped_rows_are_those_that_repeat_training_text():
    tokenizer = load_model("reference").tokenizer().backend_tokenizer

    def encode(part):
        return [np.array(e.ids) for e in tokenizer.encode_batch(["<|file|>" + t for t in read_files(part).values()])]

    evaluation, _ = cut_rows(encode("evaluation"), LENGTH)
    found = np.flatnonzero(repeats_of(evaluation, np.concatenate(encode("training")))).tolist()
    assert found == CARD["dropped_evaluation_rows"]


@pytest.mark.slow
def test_the_training_command_starts_as_the_shipped_model_did(tmp_path):
    from dataclasses import replace

    from suite.reference.training import Plan

    plan = Plan(batch_rows=2)
    card = train_reference(tmp_path, replace(plan, schedule=replace(plan.schedule, steps=2)))
    assert {part: facts["sha256"] for part, facts in card["parts"].items()} == {
        part: facts["sha256"] for part, facts in CARD["parts"].items()
    }  # the tokenizer trained now is the shipped one
    assert load_model(str(tmp_path)).sha256 != load_model("reference").sha256
    initial = [json.loads((place / "weights.json").read_text())["initial"] for place in (tmp_path, REFERENCE)]
    assert initial[0] == initial[1]
