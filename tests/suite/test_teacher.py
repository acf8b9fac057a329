"""What a model writes itself: prompts stay, the rest follows its own distribution and the seed."""

import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from scipy import stats
from transformers import AutoModelForCausalLM

from suite.commands.main import bitfrontier
from suite.learning.teacher import written
from suite.models.checkpoint import load_model
from suite.tokens import Tokens, load_tokens


@pytest.fixture(scope="module")
def checkpoint(llama):
    return load_model(str(llama))


def rows(count, length=12, seed=0):
    drawn = np.random.default_rng(seed).integers(0, tiny.VOCABULARY, (count, length))
    return Tokens(drawn, np.arange(count) // 2)


def test_prompts_stay_and_the_rest_follows_the_seed(checkpoint):
    tokens = rows(5)
    first, again, other = (written(checkpoint, tokens, 4, seed, batch=2) for seed in (0, 0, 1))
    assert first.rows.shape == tokens.rows.shape and np.array_equal(first.clusters, tokens.clusters)
    assert np.array_equal(first.rows[:, :4], tokens.rows[:, :4]) and np.array_equal(first.rows, again.rows)
    assert (first.rows[:, 4:] != other.rows[:, 4:]).any() and (first.rows[:, 4:] != tokens.rows[:, 4:]).any()
    assert np.array_equal(tokens.rows, rows(5).rows)  # what was given is left as it was


def test_tokens_are_drawn_from_the_models_own_distribution(checkpoint):
    count = 4000
    same = Tokens(np.repeat(rows(1, 6).rows, count, 0), np.arange(count))
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(checkpoint.path)(same.tensor()[:1, :5]).logits[0, -1]
    expected = count * logits.double().softmax(-1).numpy()
    found = np.bincount(written(checkpoint, same, 5, 3, batch=count).rows[:, 5], minlength=tiny.VOCABULARY)
    assert stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue > 1e-4


@pytest.mark.parametrize("prompt", [0, 12, 13])
def test_a_prompt_is_a_part_of_a_row(checkpoint, prompt):
    with pytest.raises(ValueError, match=rf"prompt {prompt}: of rows of 12 tokens, expected 1 to 11"):
        written(checkpoint, rows(2), prompt, 0)


def test_the_command_keeps_what_was_written(tmp_path, llama):
    out, text = tmp_path / "t.npz", tmp_path / "a.txt"
    text.write_text("to learn from what another writes " * 40)
    arguments = ["tokens", str(out), str(text), "--model", str(llama), "--length", "16", "--rows", "3"]
    result = CliRunner().invoke(bitfrontier, [*arguments, "--written", "5"])
    assert result.exit_code == 0, result.output
    ours = load_tokens(str(out), "training", load_model(str(llama)), 16)
    assert CliRunner().invoke(bitfrontier, arguments).exit_code == 0
    plain = load_tokens(str(out), "training", load_model(str(llama)), 16)
    assert np.array_equal(ours.rows[:, :5], plain.rows[:, :5]) and (ours.rows[:, 5:] != plain.rows[:, 5:]).any()
