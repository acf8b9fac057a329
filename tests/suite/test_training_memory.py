"""Memory of training: zeroth-order descent takes hardly more than inference, backpropagation several times as much.

What counts is what a process takes beyond its imports, at its peak, with one row of 64 tokens through 12 blocks of 3.2
million weights each.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc"),
]

CODE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from suite.methods import method_named
from suite.models.checkpoint import load_model
from suite.processes import mapped_memory, steady_memory
from suite.recipe import Recipe
from suite.learning.objective import next_token_loss
from suite.learning.student import Student, whole_model

def mib(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0]) / 1024

model, method = sys.argv[1:]
steady_memory()
checkpoint = load_model(model)
rows = torch.randint(0, checkpoint.config.vocab_size, (2, 64))
before = mib("VmRSS:")
if method == "inference":
    with torch.no_grad(), mapped_memory():
        whole = whole_model(checkpoint)
        for row in rows:
            next_token_loss(whole, row[None])
else:
    recipe = method_named(method).recipe(bits=4, group="row", steps=3, rows=1)
    with mapped_memory():
        Student.of(checkpoint, recipe, 0).train(rows, 0, None, lambda step, loss_nats: None)
print(json.dumps({"peak": mib("VmHWM:") - before}))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    options = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8,
               "num_key_value_heads": 4, "vocab_size": tiny.VOCABULARY}  # fmt: skip
    return tiny.save(tiny.model_of("llama", **options), tmp_path_factory.mktemp("model") / "model")


def peak_mib(model, method):
    command = [sys.executable, "-c", CODE, str(model), method]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)["peak"]


def test_zeroth_order_training_takes_the_memory_of_inference(model, record_property):
    inference, zeroth, full = (peak_mib(model, method) for method in ("inference", "zeroqat", "lsq"))
    record_property("MiB of inference, ZeroQAT, full QAT", f"{inference:.0f}, {zeroth:.0f}, {full:.0f}")
    assert zeroth <= 1.2 * inference
    assert full >= 3 * inference  # weights, gradients and two moments: the test can tell them apart
