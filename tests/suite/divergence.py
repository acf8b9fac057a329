"""The reference model outside the harness: the divergence of any recipe token by token, for paired comparisons."""

from types import SimpleNamespace

import numpy as np
import torch

from suite.blockwise import quantize_block
from suite.calibration import Calibration, last_hidden
from suite.evaluation import Ended, compare
from suite.models.checkpoint import load_model
from suite.tokens import load_tokens
from suite.turning import turned_for


def open_reference():
    """The model, its calibration rows, evaluation clusters, and a way to the divergence of a recipe."""
    checkpoint = load_model("reference")
    calibration = load_tokens(None, "calibration", checkpoint, 256).draw(1 << 15, 0)
    evaluation = load_tokens(None, "evaluation", checkpoint, 256).spread(1 << 16)
    kept, ids = Calibration.of(checkpoint, calibration, 1), evaluation.tensor()
    base = Ended(checkpoint, torch.from_numpy(np.array(last_hidden(checkpoint, evaluation, 1))))

    @torch.no_grad()
    def divergence(recipe):
        """KL by token (rows, length - 1), stored bits per weight, bits with the codes coded, and fallbacks."""
        turned = turned_for(checkpoint, recipe, calibration, seed=0, threads=1)
        statistics = kept if turned is checkpoint else Calibration.of(turned, calibration, 1)
        hidden, records, fallbacks = turned.embed(ids), [], []
        calibrating = turned.embed(calibration.tensor()) if "quantized" in recipe.streams else None
        original = turned.embed(calibration.tensor()) if "original" in recipe.streams else None
        for i in range(turned.n_blocks):
            block = turned.block(i)
            done = quantize_block(turned, i, block, recipe, statistics.statistics(i), 0, calibrating, original)
            fallbacks += [what for found in done.layers.values() for what in found.fallbacks]
            records += done.records
            original = None if original is None else turned.run(i, done.unquantized, original)
            calibrating = None if calibrating is None else turned.run(i, block, calibrating)
            hidden = turned.run(i, block, hidden)
        kl = compare(Ended(turned, hidden), base, ids).paired.kl
        weights = sum(x.n_out * x.n_in for x in records)
        stored, coded = sum(x.n_bits for x in records) / weights, sum(x.coded_bits for x in records) / weights
        return kl, stored, coded, fallbacks

    return SimpleNamespace(checkpoint=checkpoint, calibration=calibration, clusters=evaluation.clusters,
                           divergence=divergence)  # fmt: skip
