"""On a small model trained by others on real text: its published figures, and orders that must come out."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from suite import engine
from suite.models.checkpoint import load_model
from suite.store import Store

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("stories")


@pytest.fixture(scope="module")
def records(stories, work):
    """RTN at 2, 4 and 8 bits, GPTQ and AWQ at 4, by method and bits; exported at 8."""
    common = {"jobs": 1, "seed": 0, "tier": "smoke", "store": work / "s.db", **stories.inputs}
    found = engine.run(str(stories.path), methods=["rtn"], bits=[8], export=work / "eight", **common)
    found += engine.run(str(stories.path), methods=["rtn"], bits=[2, 4], **common)
    found += engine.run(str(stories.path), methods=["gptq", "awq"], bits=[4], **common)
    return {(r.method, int(r.bits)): r for r in found}


@pytest.mark.parametrize("part, nats", [("evaluation", 1.29367), ("calibration", 1.29185)])
def test_the_unquantized_model_has_its_published_likelihood(part, nats, stories, work):
    tokens = {"evaluation": stories.inputs[part], "calibration": stories.inputs["calibration"]}
    (record,) = engine.run(str(stories.path), recipes=["Recipe()"], jobs=1, tier="full", seed=0, store=work / part,
                           **tokens)  # fmt: skip
    assert math.log(record.ppl_base) == pytest.approx(nats, abs=5e-6)  # half a unit of the last digit given
    assert record.ppl == record.ppl_base and record.kl == 0
    assert part != "evaluation" or round(record.ppl, 4) == 3.6461


def test_at_eight_bits_the_exported_model_tells_the_same_story(records, work):
    exported = work / "eight"
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ids = torch.tensor([[1]])
    with torch.no_grad():
        while len(text := tokenizer.decode(ids[0], skip_special_tokens=True).strip()) < len(STORY):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert text == STORY


def test_more_bits_are_better_and_feedback_is_better_than_none(records):
    assert records["rtn", 8].kl < 1e-3 < records["rtn", 4].kl < records["rtn", 2].kl
    assert records["rtn", 8].ppl < records["rtn", 4].ppl < records["rtn", 2].ppl
    assert records["gptq", 4].kl < records["rtn", 4].kl
    assert records["awq", 4].kl < records["rtn", 4].kl
    for record in records.values():
        assert record.status == "ok" and record.fallbacks == () and record.kl_se < record.kl / 5


def test_groups_that_do_not_divide_are_charged_as_they_are(records, work):
    with Store(work / "s.db", create=False) as store:
        layers = store.layers(records["rtn", 4])
    assert len(layers) == 5 * 7
    for x in layers:  # groups of 128 on rows of 64 and 172: one, and two of which the last is short
        assert x.n_bits == x.n_out * (4 * x.n_in + -(-x.n_in // 128) * (16 + 4))
        assert x.group_size == min(x.n_in, 128)


def test_the_tokens_are_within_the_vocabulary_and_cut_to_what_is_asked(stories):
    checkpoint = load_model(str(stories.path))
    assert np.load(stories.inputs["evaluation"]).max() < checkpoint.config.vocab_size
    assert (checkpoint.context, checkpoint.n_blocks, checkpoint.tied) == (512, 5, True)
