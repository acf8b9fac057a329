"""The same greedy tokens from packed weights and from the dequantized model: 256 of both models, every method (slow).

The dequantized model is checked against evaluation first: the same logits, by another way, without a cache that grows.
Then the runtime is fed its tokens, and picks its own at each. With exact products in float32 these are the same. In
bfloat16, logits differ by what bfloat16 does to this model, which its dequantized weights in bfloat16 show; where picks
differ, the two best logits are closer than twice that. Reports (`--junitxml`) tell how many picks differ, by which gap.
"""

import dataclasses

import numpy as np
import pytest
import torch

from suite import run
from suite.methods import METHODS
from suite.models.checkpoint import load_model
from suite.readback import PackedModel
from suite.runtime import Chooser, chooser_for, generate, packed_runtime
from suite.tokens import load_tokens

TOKENS, FEW = 256, 40
FAST = {("stories", "rtn"), ("stories", "quip-sharp"), ("stories", "quarot"), ("stories", "kivi"), ("reference", "rtn")}
CASES = [
    pytest.param(model, method, n, id=f"{model}-{method.name}-{n}", marks=[] if n == FEW else pytest.mark.slow)
    for model in ("stories", "reference") for method in METHODS for n in (FEW, TOKENS)
    if n == TOKENS or (model, method.name) in FAST
]  # fmt: skip


def packed_by(method, model, root, stories):
    """A packed directory, calibrated on little: what is compared is the same matrix in two ways."""
    name = "reference" if model == "reference" else str(stories.path)
    tokens = load_tokens(stories and stories.inputs["calibration"], "calibration", load_model(name), 64).rows
    paths = [root / "calibration.npy", root / "evaluation.npy"]
    np.save(paths[0], tokens[:32])
    np.save(paths[1], tokens[32:34])
    bits = None if method.fixed else 4 if 4 in method.bits else method.bits[-1]
    asked = dict(methods=[method.name], bits=None if bits is None else [bits])
    if method.needs == "training":  # what is compared needs no training worth its name
        asked = dict(recipes=[method.recipe(bits=bits, steps=2, rows=2)], training=str(paths[0]))
    (record,) = run(name, **asked, calibration=str(paths[0]), evaluation=str(paths[1]),
                    store=root / "store.db", save=root / "packed", jobs=1)  # fmt: skip
    if record.status == "skipped":
        pytest.skip(str(record.reason))
    assert record.status == "ok", record.reason
    return PackedModel.open(str(root / "packed")), torch.from_numpy(tokens[40, :1].astype(np.int64))


def evaluated(packed, tokens):
    """Logits of whole rows, block by block, as a record's are."""
    checkpoint = packed.checkpoint
    hidden = checkpoint.embed(tokens[None])
    for i in range(checkpoint.n_blocks):
        hidden = checkpoint.run(i, packed.block(i)[0], hidden)
    return checkpoint.logits(hidden)[0]


def rms(x):
    return float(x.square().mean().sqrt())


def told(differ, gaps, allowed):
    """How many of the picks differ, the largest gap where they do, and what it may be."""
    largest = float(gaps[differ].max()) if bool(differ.any()) else 0.0
    return f"{int(differ.sum())} of {len(gaps)} by {largest:.3g}, allowed {float(allowed):.3g}"


@pytest.mark.parametrize(("model", "method", "n"), CASES)
def test_tokens_are_those_of_the_dequantized_model(model, method, n, tmp_path, request, record_property):
    stories = request.getfixturevalue("stories") if model == "stories" else None
    packed, prompt = packed_by(method, model, tmp_path, stories)
    wanted = generate(packed_runtime(packed, None), prompt, n, keep=True)
    best = wanted.logits.topk(2).values
    gaps = best[:, 0] - best[:, 1]

    with torch.no_grad():
        logits = evaluated(packed, torch.cat([prompt, wanted.tokens[:-1]]))
    rounds_inputs = packed.recipe.activations is not None or packed.recipe.cache is not None
    if not rounds_inputs:  # where sums in another order may tip a value over to the next level
        assert float((logits - wanted.logits).abs().max()) < 1e-3 * float(wanted.logits.abs().max())

    chooser = chooser_for(packed, "dequantize")
    exact = generate(packed_runtime(packed, dataclasses.replace(chooser, dtype=torch.float32)), prompt, n,
                     forced=wanted.tokens, keep=True)  # fmt: skip
    differ, allowed = exact.tokens != wanted.tokens, 1e-3 * wanted.logits.abs().max()
    record_property("exact", told(differ, gaps, allowed))
    assert not bool((gaps[differ] > allowed).any()) and int(differ.sum()) <= 2

    if chooser.dtype == torch.float32:
        return  # products that round on their own would make another model of one that rounds its inputs
    half, fast = (
        generate(packed_runtime(packed, Chooser(name, dtype=torch.bfloat16)), prompt, n, forced=wanted.tokens,
                 keep=True) for name in ("dense", "int4pack")
    )  # fmt: skip
    noise = half.logits - wanted.logits
    differ, allowed = fast.tokens != wanted.tokens, 2 * noise.abs().max()
    record_property("int4pack", told(differ, gaps, allowed))
    record_property("noise", f"{rms(fast.logits - wanted.logits):.3g} of {rms(noise):.3g}")
    assert rms(fast.logits - wanted.logits) < 2 * rms(noise)
    assert not bool((gaps[differ] > allowed).any())
